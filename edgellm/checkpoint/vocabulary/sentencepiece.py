"""SentencePiece vocabularies ("llama", and Gemma 4's) for the tokenizers library: scores become merges, unknown
characters bytes."""

from edgellm.checkpoint.vocabulary.metadata import BYTE, CONTROL, UNKNOWN, Vocabulary

_SPACE = "\u2581"
_NEVER_MERGED = (UNKNOWN, CONTROL, BYTE)
_BY_LINES = {"type": "Split", "pattern": {"Regex": "[^\\n]+|\\n+"}, "behavior": "Isolated", "invert": False}


def sections(vocabulary: Vocabulary) -> dict:
    """Return the sections normalizer, pre_tokenizer, model and decoder of tokenizer.json.

    Each text between two special tokens is a text of its own, as in llama.cpp: with `add_space_prefix` it gets a space
    in front, after a special token too. Gemma 4's vocabulary says itself what is merged, never beyond a line's end.
    """
    own_merges = vocabulary.model == "gemma4"
    prefix = vocabulary.flag("add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spaces]},
        "pre_tokenizer": _BY_LINES if own_merges else None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocabulary.texts[vocabulary.named_id("unknown") or 0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary.ids(),
            "merges": vocabulary.merges() if own_merges else _merges(vocabulary),
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
    }


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return every way to join two tokens into a third, those with the highest score first.

    SentencePiece joins the neighbours that make the token with the highest score, no matter what they are, the
    leftmost first among equals. Merges have one order among all pairs, so that pairs that make the same token (or
    tokens of one score) are in a fixed order instead: the longer left half first, because runs of one character are
    joined from the left.
    """
    scores, kinds = vocabulary.scores(), vocabulary.kinds
    ids = {text: i for text, i in vocabulary.ids().items() if kinds[i] not in _NEVER_MERGED}
    found = []
    for text, i in ids.items():
        for cut in range(1, len(text)):
            if (left := text[:cut]) in ids and (right := text[cut:]) in ids:
                found.append((-scores[i], -cut, left, right))
    return [(left, right) for _, _, left, right in sorted(found, key=lambda merge: merge[:2])]
