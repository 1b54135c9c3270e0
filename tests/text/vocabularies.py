"""Small tokenizers of the shapes that language models have, made by code."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
_LETTERS = [*"abcdefghijklmnopqrstuvwxyzHIW?!.,<>|/_-", "é"]
_MERGES = ["h i", "H i", "< |", "| >", "< /", "s >", "</ s>", "i m", "e n", "en d", "u s", "us e", "use r"]


def byte_level() -> tuple[Tokenizer, str]:
    """GPT-2's, Qwen's, SmolLM2's: every byte has a letter."""
    library = Tokenizer(_bpe([*sorted(pre_tokenizers.ByteLevel.alphabet())]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return _with(library, CONTROL), CHATML


def words_too() -> tuple[Tokenizer, str]:
    """DeepSeek's, Qwen3's: its template writes added tokens that aren't special, and others are white space."""
    library, _ = byte_level()
    library.add_tokens([AddedToken(t, normalized=False) for t in ("<|user|>", "<think>", "\n\n", "  ", "role")])
    return library, (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
        "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}<|user|>{{ m.content }}{% endif %}\n\n{% endfor %}"
        "<think>\n"
    )


def llama() -> tuple[Tokenizer, str]:
    """Llama 2's, Mistral's: byte fallback, and a space before each piece of text between control tokens."""
    library = Tokenizer(_bpe(["▁", *_bytes(), *_LETTERS], byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = _fallback_decoder()
    return _with(library, CONTROL), CHATML


def metaspace() -> tuple[Tokenizer, str]:
    """Mistral's newer ones: a space before the first piece of text only."""
    library = Tokenizer(_bpe(["▁", *_bytes(), *_LETTERS], byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    library.decoder = _fallback_decoder()
    return _with(library, CONTROL), CHATML


def phi3() -> tuple[Tokenizer, str]:
    """Phi-3's: control tokens swallow the white space after them."""
    library = Tokenizer(_bpe(["▁", *_bytes(), *_LETTERS], byte_fallback=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = _fallback_decoder()
    tokens = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    library.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=t != "<s>") for t in tokens])
    return library, PHI3


def unigram() -> tuple[Tokenizer, str]:
    """T5's, Gemma's kin: control tokens are pieces of the vocabulary, which plain text could be cut into."""
    pieces = [("<unk>", 0.0), *((t, 0.0) for t in CONTROL), ("▁", -2.0), ("\n", -2.0)]
    library = Tokenizer(models.Unigram([*pieces, *((c, -3.0) for c in _LETTERS)], unk_id=0, byte_fallback=False))
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    library.decoder = decoders.Metaspace(prepend_scheme="always")
    return _with(library, CONTROL), CHATML


SHAPES = {f.__name__: f for f in (byte_level, words_too, llama, metaspace, phi3, unigram)}


def write(folder: Path, library: Tokenizer, template: str | None, **config: object) -> Path:
    """Write a split's tokenizer files into `folder`."""
    library.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def _bpe(alphabet: list[str], **options: object) -> models.BPE:
    merges = [tuple(m.split()) for m in _MERGES]
    vocab = {t: i for i, t in enumerate(["<unk>", *alphabet])}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    return models.BPE(vocab, merges, unk_token="<unk>", **options)


def _with(library: Tokenizer, control: tuple[str, ...]) -> Tokenizer:
    library.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return library


def _bytes() -> list[str]:
    return [f"<0x{i:02X}>" for i in range(256)]


def _fallback_decoder() -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(steps)
