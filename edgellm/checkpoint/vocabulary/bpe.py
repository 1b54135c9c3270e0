"""Byte-level BPE vocabularies ("gpt2") for the tokenizers library: how the text is cut, pairs merged, bytes decoded."""

import re
from functools import lru_cache

from edgellm.checkpoint.vocabulary.metadata import USER_DEFINED, Vocabulary
from edgellm.checkpoint.vocabulary.pretokenizers import pre_tokenizer

_MAX_SPELLED_OUT = 256


def sections(vocabulary: Vocabulary) -> dict:
    """Return the sections normalizer, pre_tokenizer, model and decoder of tokenizer.json; raises CheckpointError for a
    pre-tokenizer that isn't known here."""
    pre = pre_tokenizer(vocabulary.pre, vocabulary.where)
    cuts = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False} for regex in pre.regexes
    ]
    bytes_to_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    if spelled_out := _spelled_out(vocabulary):
        decoder = {"type": "Sequence", "decoders": [*spelled_out, decoder]}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, bytes_to_letters]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocabulary.ids(),
            "merges": vocabulary.merges(),
        },
        "decoder": decoder,
    }


@lru_cache(1)
def bytes_to_letters() -> dict[int, str]:
    """Return the letter that stands for each byte in a byte-level vocabulary: GPT-2's bytes_to_unicode."""
    as_is = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in as_is]
    return {byte: chr(byte) for byte in as_is} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def _spelled_out(vocabulary: Vocabulary) -> list[dict]:
    """Return decoders for user-defined tokens such as DeepSeek's "ø": the letter itself is meant, and the byte-level
    decoder takes it for the byte 0xF8."""
    letters = bytes_to_letters()
    alphabet = frozenset(letters.values())
    found = []
    for text in vocabulary.of_kind(USER_DEFINED):
        if not text.isascii() and alphabet.issuperset(text):
            content = "".join(letters[byte] for byte in text.encode())
            pattern = {"Regex": rf"\A{re.escape(text)}\z"}
            found.append({"type": "Replace", "pattern": pattern, "content": content})
    return found[:_MAX_SPELLED_OUT]
