"""Which tokens end an answer: those that a model's files name, and those that its vocabulary shows by their text."""

from collections.abc import Iterable, Mapping

# Texts that end a turn, an answer or a document in the families that use them; llama.cpp goes by the same list
# (src/llama-vocab.cpp, "end of generation"). Nobody writes these for anything else, so a vocabulary that calls them
# user-defined rather than control, as many finetunes do, means the same.
_END_TEXTS = frozenset(
    {
        "<|eot_id|>", "<|eom_id|>",  # Llama 3
        "<|im_end|>",  # ChatML
        "<|end|>",  # Phi
        "<|return|>", "<|call|>",  # gpt-oss
        "<|flush|>", "<|calls|>",  # Solar Open
        "<end_of_turn>", "<turn|>", "<|tool_response>",  # Gemma
        "<|endoftext|>", "<|end_of_text|>",  # GPT-2 and its many heirs, Granite
        "<EOT>", "_<EOT>", "[EOT]", "[EOS]",  # Code Llama, Kimi
        "<end_of_utterance>",  # SmolVLM
        "<｜end▁of▁sentence｜>",  # DeepSeek
        "[e~[",  # MiniMax
    }
)  # fmt: skip
# Texts that end an answer only as control tokens: web pages and source code hold the same characters, and Gemma's
# vocabulary has </s> as a word of its own. The last ones stand between the files of code that a model was trained on.
# Qwen's three of that kind (<|fim_pad|>, <|repo_name|>, <|file_sep|>) aren't here: its authors call them words and end
# no answer with them, while converters to GGUF call everything between <| and |> a control token.
_END_TEXTS_OF_CONTROL_TOKENS = frozenset(
    {
        "</s>", "<eos>",
        "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
        "<|fim_repo|>", "<fim-repo>", "<REPO>", "<reponame>",
    }
)  # fmt: skip
# A vocabulary with one of each is gpt-oss's or Solar Open's: there <|end|> ends one message, and the answer continues.
_CALLS, _LAST_WORDS = {"<|call|>", "<|calls|>"}, {"<|return|>", "<|flush|>"}


def end_token_ids(
    named_ids: Iterable[int], control_tokens: Mapping[str, int], user_defined_tokens: Mapping[str, int] | None = None
) -> tuple[int, ...]:
    """Return the ids of every token that ends an answer, each once: `named_ids` in their order, then by rising id those
    whose text says so.

    `named_ids` are those of the model's own files (eos_token_id, or eos, eot and eom of a GGUF). `control_tokens` are
    the vocabulary's control (special) tokens, text → id, and `user_defined_tokens` those added to it as plain ones.
    """
    user_defined_tokens = user_defined_tokens or {}
    texts = control_tokens.keys() | user_defined_tokens.keys()
    found = {i for text, i in user_defined_tokens.items() if text in _END_TEXTS}
    found |= {i for text, i in control_tokens.items() if text in _END_TEXTS or text in _END_TEXTS_OF_CONTROL_TOKENS}
    if texts & _CALLS and texts & _LAST_WORDS:
        found -= {tokens["<|end|>"] for tokens in (control_tokens, user_defined_tokens) if "<|end|>" in tokens}
    return tuple(dict.fromkeys([*named_ids, *sorted(found)]))


def ends_a_turn(text: str) -> bool:
    """Return whether a token of this text ends a turn, an answer or a document, no matter how it is marked."""
    return text in _END_TEXTS
