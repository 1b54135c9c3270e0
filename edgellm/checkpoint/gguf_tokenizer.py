"""A GGUF file's vocabulary as tokenizer.json, with the text split as the model was trained to see it."""

import json
from pathlib import Path

from edgellm.checkpoint.names import one_line
from edgellm.errors import CheckpointError

# tokenizer.ggml.pre: how text is cut before byte pairs are merged. transformers knows those with a regular expression
# of their own (qwen2, llama-bpe, …); it takes GPT-2's for all others, which is right for these:
_AS_GPT2 = {
    "default", "gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "mpt", "olmo", "jais", "trillion",
    "granite-docling", "gigachat", "a.x-4.0", "mellum",
}  # fmt: skip
# … and wrong for these, where every digit stands alone:
_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
# Whole words of the vocabulary are taken before merging, and a beginning-of-text token is added unless denied.
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
_LOOKED_AT = ("bos", "eos", "unknown", "padding")


def write_tokenizer(path: Path, metadata: dict, eos_token_ids: tuple[int, ...], folder: Path) -> list[str]:
    """Write tokenizer.json and tokenizer_config.json for the GGUF at `path` into `folder`; returns their names, none if
    the file has no vocabulary."""
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if kind in (None, "none") or not isinstance(tokens, list):
        return []
    pre = metadata.get("tokenizer.ggml.pre", "default")
    tokenizer = _convert(path)
    backend = tokenizer.backend_tokenizer
    if kind == "gpt2":
        _split_as_trained(backend, pre, path)
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre in _WHOLE_WORDS)
    named = {name: _token(metadata, tokens, name) for name in _LOOKED_AT}
    _set_bos(backend, tokens, metadata.get("tokenizer.ggml.bos_token_id") if add_bos else None)
    backend.no_truncation()
    backend.no_padding()
    content = json.loads(backend.to_str())
    if kind == "gpt2" and pre in _WHOLE_WORDS:
        content["model"]["ignore_merges"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    _check(folder / "tokenizer.json", tokens, eos_token_ids, path)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(add_bos),
        "bos_token": named["bos"],
        "eos_token": named["eos"],
        "unk_token": named["unknown"],
        "pad_token": named["padding"],
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    return ["tokenizer.json", "tokenizer_config.json"]


def _convert(path: Path):
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except BaseException as e:  # the tokenizers library panics over a vocabulary that contradicts itself
        if isinstance(e, (KeyboardInterrupt, SystemExit)):
            raise
        raise CheckpointError(f"{path}: transformers can't make a tokenizer of its vocabulary: {one_line(e)}") from None


def _split_as_trained(backend, pre, path: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if pre in _SINGLE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    elif pre not in _AS_GPT2 and pre not in GGUF_PRE_TOKENIZER_SPLITS:
        raise CheckpointError(
            f"{path}: tokenizer.ggml.pre is {str(pre)[:40]!r}, whose way to split text isn't known here; guessing "
            "would give worse answers. Give the model's safetensors folder."
        )


def _token(metadata: dict, tokens: list, name: str) -> str | None:
    i = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[i] if type(i) is int and 0 <= i < len(tokens) else None


def _set_bos(backend, tokens: list, bos_id) -> None:
    """Add the beginning-of-text token to what is encoded with special tokens, or nothing at all."""
    from tokenizers.processors import TemplateProcessing

    if type(bos_id) is int and 0 <= bos_id < len(tokens):
        bos = tokens[bos_id]
        backend.post_processor = TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
        )
    else:
        backend.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])


def _check(file: Path, tokens: list, eos_token_ids: tuple[int, ...], path: Path) -> None:
    """An end token that doesn't encode as itself would be cut into pieces in every chat: better no split at all."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    for i in eos_token_ids:
        if i < len(tokens):
            ids = tokenizer.encode(tokens[i], add_special_tokens=False).ids
            if ids != [i]:
                raise CheckpointError(f"{path}: special token {tokens[i]!r} encodes as {ids[:8]}, expected [{i}]")
