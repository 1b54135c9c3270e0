"""A GGUF file's vocabulary as tokenizer.json, made of its metadata alone.

Texts get the ids that the model was trained on, which are llama.cpp's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.checkpoint.vocabulary import bpe, sentencepiece
from edgellm.checkpoint.vocabulary.ends import end_token_ids, ends_a_turn
from edgellm.checkpoint.vocabulary.metadata import (
    CONTROL,
    END_NAMES,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
)
from edgellm.checkpoint.vocabulary.pretokenizers import pre_tokenizer
from edgellm.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KINDS = {"llama": sentencepiece.sections, "gpt2": bpe.sections, "gemma4": sentencepiece.sections}
_SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def write_tokenizer(path: Path, metadata: Mapping[str, object], folder: Path) -> list[str]:
    """Write tokenizer.json and tokenizer_config.json for the GGUF at `path` into `folder`; returns their names, none if
    the file has no vocabulary. Raises CheckpointError for a vocabulary that can't be read right."""
    vocabulary = Vocabulary.parse(metadata, str(path))
    if vocabulary is None:
        return []
    tokenizer = tokenizer_json(vocabulary)
    text = json.dumps(tokenizer, ensure_ascii=False)
    _check(text, tokenizer["added_tokens"], vocabulary)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = json.dumps(tokenizer_config(vocabulary), indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    return ["tokenizer.json", "tokenizer_config.json"]


def gguf_end_token_ids(metadata: Mapping[str, object], where: str) -> tuple[int, ...]:
    """Return the ids that end an answer: those that the metadata names, and those whose text says so. Raises
    CheckpointError for a vocabulary that contradicts itself."""
    vocabulary = Vocabulary.parse(metadata, where)
    if vocabulary is None:
        named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in END_NAMES]
        return end_token_ids([i for i in named if isinstance(i, int) and i >= 0], {})
    return _end_token_ids(vocabulary)


def _end_token_ids(vocabulary: Vocabulary) -> tuple[int, ...]:
    control, others = vocabulary.of_kind(CONTROL), vocabulary.of_kind(NORMAL, USER_DEFINED)
    named = vocabulary.named_end_ids()
    if _is_phi3(vocabulary) and "<|assistant|>" in control:
        named.append(control["<|assistant|>"])  # as Phi-3's generation_config.json says, of which a GGUF has nothing
    return end_token_ids(named, control, others)


def _is_phi3(vocabulary: Vocabulary) -> bool:
    """Whether this is Phi-3's vocabulary, Phi-3.5's included. Phi-4's is of another model."""
    return vocabulary.metadata.get("general.architecture") == "phi3" and vocabulary.model == "llama"


def tokenizer_json(vocabulary: Vocabulary) -> dict:
    """Return the content of tokenizer.json."""
    if vocabulary.model not in _KINDS:
        raise CheckpointError(
            f"{vocabulary.where}: tokenizer.ggml.model is {vocabulary.model[:40]!r}; readable are "
            f"{', '.join(_KINDS)}. Use the model's safetensors folder."
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "post_processor": _post_processor(vocabulary),
        **_KINDS[vocabulary.model](vocabulary),
    }


def make_library(text: str, where: str) -> "Tokenizer":
    """Return the tokenizers library's object for the tokenizer.json made of the vocabulary in `where`; raises
    CheckpointError if the library refuses it."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except BaseException as e:  # the library panics over a vocabulary that contradicts itself
        if isinstance(e, (KeyboardInterrupt, SystemExit)):
            raise
        reason = " ".join(str(e).split())[:200]
        raise CheckpointError(f"{where}: its vocabulary makes no tokenizer: {reason}") from None


def tokenizer_config(vocabulary: Vocabulary) -> dict:
    """Return the content of tokenizer_config.json: the texts of special tokens, and the chat template."""
    config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"add_{name}_token": i is not None for name, i in _around(vocabulary).items()}
    for name, key in _SPECIAL_TOKENS.items():
        if (i := vocabulary.named_id(name)) is not None:
            config[key] = vocabulary.texts[i]
    if isinstance(template := vocabulary.metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    return config


def _around(vocabulary: Vocabulary) -> dict[str, int | None]:
    """Return the ids of the tokens put before ("bos") and after ("eos") every text."""
    add_bos = vocabulary.model != "gpt2" or pre_tokenizer(vocabulary.pre, vocabulary.where).add_bos
    return {
        "bos": vocabulary.named_id("bos") if vocabulary.flag("add_bos_token", add_bos) else None,
        "eos": vocabulary.named_id("eos") if vocabulary.flag("add_eos_token", False) else None,
    }


def _post_processor(vocabulary: Vocabulary) -> dict:
    around = {key: vocabulary.texts[i] for key, i in _around(vocabulary).items() if i is not None}

    def one(sequence: str, type_id: int) -> list[dict]:
        whole = [("SpecialToken", around.get("bos")), ("Sequence", sequence), ("SpecialToken", around.get("eos"))]
        return [{kind: {"id": name, "type_id": type_id}} for kind, name in whole if name is not None]

    ids = vocabulary.ids()
    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": one("A", 0) + one("B", 1),
        "special_tokens": {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in around.values()},
    }


def _added_tokens(vocabulary: Vocabulary) -> list[dict]:
    """Return the tokens found in a text before all else. The special ones among them are those that a user's text must
    not become."""
    left, right = _strips(vocabulary)
    # Some files call these plain tokens; they would be cut into pieces in every chat.
    marks = {i for i in (vocabulary.named_id("bos"), *vocabulary.named_end_ids()) if i is not None}
    marks = {i for i in marks if vocabulary.texts[i][0] in "<[" and vocabulary.texts[i][-1] in ">]"}
    found = []
    for i, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.kinds, strict=True)):
        special = kind in (CONTROL, UNKNOWN) or (kind == NORMAL and (ends_a_turn(text) or i in marks))
        if special or kind == USER_DEFINED:
            found.append(
                {
                    "id": i,
                    "content": text,
                    "single_word": False,
                    "lstrip": text in left,
                    "rstrip": text in right,
                    "normalized": False,
                    "special": special,
                }
            )
    return found


def _strips(vocabulary: Vocabulary) -> tuple[frozenset[str], frozenset[str]]:
    """Return the tokens that swallow white space to their left, and to their right. No key of a GGUF says so: llama.cpp
    goes by names, and so must we."""
    name = str(vocabulary.metadata.get("general.name", "")).lower()
    if "phi-3" in name or "phi3" in name or _is_phi3(vocabulary):
        swallowing = vocabulary.of_kind(CONTROL, UNKNOWN, USER_DEFINED).keys() - {"<unk>", "<s>", "<|endoftext|>"}
        return frozenset(), frozenset(swallowing)
    masked = any(pre in vocabulary.pre for pre in ("jina-v2-de", "jina-v2-es", "jina-v2-code"))
    return frozenset({"<mask>"} if masked else ()), frozenset()


def _check(text: str, added_tokens: list[dict], vocabulary: Vocabulary) -> None:
    """An end token that doesn't encode as itself would be cut into pieces in every chat: better no split at all."""
    tokenizer = make_library(text, vocabulary.where)
    ends = set(_end_token_ids(vocabulary))
    for token in added_tokens:
        if token["id"] in ends:
            ids = tokenizer.encode(token["content"], add_special_tokens=False).ids
            if ids != [token["id"]]:
                raise CheckpointError(
                    f"{vocabulary.where}: special token {token['content']!r} encodes as {ids[:8]}, "
                    f"expected [{token['id']}]"
                )
