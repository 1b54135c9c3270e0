"""SentencePiece vocabularies out of GGUF metadata: joined by score, spaces and bytes as the model was trained.

The ids are llama.cpp's (llama-cpp-python 0.3.36) for the same metadata in a file, and sentencepiece's own.
"""

import io
import json
import random

import pytest
from tokenizers import Tokenizer

from edgellm.checkpoint.gguf_tokenizer import tokenizer_config, tokenizer_json
from edgellm.checkpoint.vocabulary.metadata import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary
from edgellm.errors import CheckpointError

# After <unk>, <s>, </s> and 256 bytes: pieces from 259 on, the best score first.
_PIECES = ["▁▁", "he", "▁t", "▁H", "▁▁▁▁", "hel", "▁the", "Hi", "▁Hi", "lo", "hello", "▁hello", *"▁Hithelo?[]"]
_MARKS = [
    ("<|user|>", CONTROL),
    ("<|end|>", CONTROL),
    ("<tool>", USER_DEFINED),
    ("  ", USER_DEFINED),
    ("<|endoftext|>", CONTROL),
]


def _metadata(marks=(), **changes) -> dict:
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{i:02X}>", BYTE) for i in range(256)]
    tokens += [(piece, NORMAL) for piece in _PIECES] + list(marks)
    scores = [0.0] * 259 + [-float(i) for i in range(len(_PIECES))] + [-1000.0] * len(marks)
    gguf = {"model": "llama", "tokens": [t for t, _ in tokens], "token_type": [k for _, k in tokens], "scores": scores}
    return {f"tokenizer.ggml.{name}": value for name, value in (gguf | changes).items() if value is not None}


def _tokenizer(metadata: dict) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_json(Vocabulary.parse(metadata, "m.gguf"))))


def _ids(metadata: dict, text: str) -> list[int]:
    return _tokenizer(metadata).encode(text).ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [1]),
        (" ", [1, 259]),
        ("Hi", [1, 267]),
        (" Hi", [1, 259, 266]),
        ("  Hi", [1, 259, 267]),
        ("Hi the hello", [1, 267, 265, 270]),
        ("hellohe", [1, 270, 260]),
        ("the    the     Hi", [1, 265, 263, 274, 260, 263, 267]),  # "▁▁" comes before "▁t"
        ("Hi\n\thello", [1, 267, 13, 12, 269]),
        ("é🙂", [1, 271, 198, 172, 243, 162, 156, 133]),
        ("<s>[Hi]</s> Hi", [1, 1, 271, 280, 266, 281, 2, 259, 266]),  # a space before each text between special tokens
        ("<0x41>▁Hi", [1, 271, 63, 51, 123, 55, 52, 65, 267]),  # a byte's name is text
        ("thehe?", [1, 265, 260, 279]),
        ("<unk>Hi", [1, 0, 267]),
    ],
)
def test_pieces_are_joined_by_score(text, ids):
    assert _ids(_metadata(), text) == ids


@pytest.fixture(scope="module")
def trained():
    """A vocabulary that sentencepiece trains on this very file."""
    import sentencepiece

    model = io.BytesIO()
    with open(__file__, encoding="utf-8") as text:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=text, model_writer=model, vocab_size=700, model_type="bpe", byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            split_by_whitespace=True, character_coverage=1.0, minloglevel=2,
        )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_ids_are_those_of_sentencepiece(trained):
    ids = range(trained.vocab_size())
    kinds = [UNKNOWN if trained.is_unknown(i) else CONTROL if trained.is_control(i) else NORMAL for i in ids]
    metadata = _metadata(
        tokens=[trained.id_to_piece(i) for i in ids], scores=[trained.get_score(i) for i in ids],
        token_type=[BYTE if trained.is_byte(i) else kind for i, kind in zip(ids, kinds, strict=True)],
    )  # fmt: skip
    tokenizer, rng = _tokenizer(metadata), random.Random(0)
    tokenizer.encode_special_tokens = True  # sentencepiece takes their names for text
    with open(__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    for _ in range(300):
        letters = rng.choices('  \n\tabehtns_.<|>"0é你🙂\u0301', k=rng.randint(1, 40))
        text = "".join(letters) + rng.choice(lines)
        assert tokenizer.encode(text).ids == [1, *trained.encode(text)], text


@pytest.mark.parametrize(
    ("text", "ids"),
    [("Hi", [1, 266]), (" Hi", [1, 267]), ("<s> Hi</s>Hi", [1, 1, 267, 2, 266]), ("hello", [1, 269])],
)
def test_no_space_in_front_where_the_file_says_so(text, ids):
    assert _ids(_metadata(add_space_prefix=False), text) == ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<|user|>Hi<|end|>\n<|user|> Hi", [1, 282, 267, 283, 271, 13, 282, 259, 266]),
        ("Hi<tool>Hi <tool> Hi", [1, 267, 284, 267, 271, 284, 259, 266]),
        ("the  the   the", [1, 265, 285, 265, 285, 259, 274, 260]),
        ("a<|end|><|end|>b", [1, 271, 100, 283, 283, 271, 101]),
    ],
)
def test_control_and_user_defined_tokens_stay_whole(text, ids):
    assert _ids(_metadata(_MARKS), text) == ids


@pytest.mark.parametrize("names", [{"general.name": "Phi-3 mini"}, {"general.architecture": "phi3"}])
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<|user|>\nHi?<|end|>\n<|user|>\n", [1, 282, 267, 279, 283, 282]),
        ("<s> \n Hi</s> \n Hi", [1, 1, 259, 13, 267, 2, 267]),  # <s> swallows nothing
        ("<tool> \n Hi", [1, 284, 267]),
    ],
)
def test_special_tokens_of_phi_3_swallow_the_white_space_behind_them(names, text, ids):
    assert _ids(_metadata(_MARKS) | names, text) == ids


def test_text_in_which_special_tokens_are_text_keeps_user_defined_ones():
    tokenizer = _tokenizer(_metadata(_MARKS))
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode("<|end|><tool>", add_special_tokens=False).ids == [
        271, 63, 127, 276, 113, 103, 127, 65, 284,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, [1, 267]),
        ({"add_bos_token": False}, [267]),
        ({"add_bos_token": False, "add_eos_token": True}, [267, 2]),
        ({"bos_token_id": 2, "eos_token_id": 1, "add_eos_token": True}, [2, 267, 1]),
        ({"bos_token_id": 99999}, [1, 267]),  # beyond the vocabulary
    ],
)
def test_tokens_around_a_text_are_those_that_the_file_wants(settings, ids):
    assert _ids(_metadata(**settings), "Hi") == ids


def test_special_tokens_of_a_file_that_names_none_are_sentencepiece_s_own():
    config = tokenizer_config(Vocabulary.parse(_metadata(), "m.gguf"))
    assert [config[key] for key in ("bos_token", "eos_token", "unk_token")] == ["<s>", "</s>", "<unk>"]
    assert config["add_bos_token"] is True and config["add_eos_token"] is False and "pad_token" not in config


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("text", ["Hi the  hello", " é🙂\n\n", "?[] lo ", "  Hi"])
def test_text_comes_back(text, prefix):
    tokenizer = _tokenizer(_metadata(add_space_prefix=prefix))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scores": None}, "has no tokenizer.ggml.scores"),
        ({"scores": [0.0]}, "scores has 1 entries, expected 282"),
        ({"scores": [float("nan")] * 282}, "scores has an entry that is not a finite number"),
        ({"token_type": 3}, "token_type is not a list, expected 282 numbers"),
        ({"tokens": [1, 2]}, "tokens is not a list of texts"),
        ({"tokens": ["a" * 1025]}, "a token has 1025 characters, at most 1024 are read"),
        ({"add_bos_token": "yes"}, "add_bos_token is yes, expected true or false"),
        ({"model": "t5"}, "model is 't5'; readable are llama, gpt2, gemma4"),
    ],
)
def test_metadata_that_makes_no_vocabulary_is_refused(changes, error):
    with pytest.raises(CheckpointError, match=f"m.gguf: .*{error}"):
        _tokenizer(_metadata(**changes))
