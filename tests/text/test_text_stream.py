"""Streams of text: equal to the text decoded at once, whatever the bytes, at a cost that doesn't grow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models
from tokenizers import Tokenizer as Library

from edgellm.text.text_stream import TextStream, make_joiner
from tests.steps import calls_of
from tests.text.vocabularies import SHAPES, byte_level, llama, phi3

LIBRARIES = {name: make()[0] for name, make in SHAPES.items()}
IDS = {name: library.get_vocab() for name, library in LIBRARIES.items()}


def stream_of(library):
    return TextStream(make_joiner(library)())


def pieces_of(library, ids):
    stream = stream_of(library)
    return [*map(stream.feed, ids), stream.flush()]


def text_of(library, ids):
    return "".join(pieces_of(library, ids))


@pytest.mark.parametrize("name", LIBRARIES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("hiuse <|>/s\n é🐦▁\u200d👩"), max_size=30))
def test_a_stream_is_the_text_that_the_library_decodes_at_once(name, text):
    library = LIBRARIES[name]
    ids = library.encode(text).ids
    assert text_of(library, ids) == library.decode(ids)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, LIBRARIES["byte_level"].get_vocab_size() + 3), max_size=40))
def test_any_tokens_of_a_byte_level_vocabulary_stream_as_the_library_decodes_them(ids):
    library = LIBRARIES["byte_level"]
    assert text_of(library, ids) == library.decode(ids)


@pytest.mark.parametrize("name", ["llama", "metaspace", "phi3", "unigram"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_tokens_stream_without_an_error_and_lose_nothing_that_is_whole(name, data):
    library = LIBRARIES[name]
    ids = data.draw(st.lists(st.integers(0, library.get_vocab_size() + 3), max_size=40))
    special = {i for i, t in library.get_added_tokens_decoder().items() if t.special}
    tokens = [library.id_to_token(i) or "" for i in ids if i not in special]
    letters = "".join(chr(int(t[3:5], 16)) if t.startswith("<0x") else t for t in tokens)
    assert [c for c in text_of(library, ids) if c in "ABCabc012"] == [c for c in letters if c in "ABCabc012"]


def test_bytes_that_are_no_utf8_become_one_mark_and_text_goes_on():
    library, _ = llama()
    ids = library.get_vocab()
    newline, broken, letter = ids["<0x0A>"], [ids["<0xF0>"], ids["<0x9F>"]], ids["h"]
    assert pieces_of(library, [newline, *broken, letter]) == ["\n", "", "", "\ufffdh", ""]
    assert pieces_of(library, [letter, ids["<0x80>"], newline, letter]) == ["h", "\ufffd", "\n", "h", ""]


def test_what_is_left_at_the_end_is_flushed():
    for library, half in ((llama()[0], ["<0xF0>", "<0x9F>"]), (byte_level()[0], ["ð", "Ł"])):
        ids = [library.token_to_id(t) for t in ("h", *half)]
        assert pieces_of(library, ids) == ["h", "", "", "\ufffd"]


def test_half_a_character_waits_for_its_other_half():
    library, _ = byte_level()
    pieces = pieces_of(library, library.encode("aé🐦").ids)
    assert pieces == ["a", "", "é", "", "", "", "🐦", ""]


def test_only_the_texts_beginning_loses_its_space():
    library, _ = phi3()
    ids = [library.token_to_id(t) for t in ("▁", "▁", "h", "▁", "h")]
    assert pieces_of(library, ids) == ["", " ", "h", " ", "h", ""]


def test_control_tokens_have_no_text():
    library, _ = llama()
    ids = [library.token_to_id(t) for t in ("<s>", "h", "<|im_end|>", "▁", "h", "</s>")]
    assert text_of(library, ids) == "h h"


OTHERS = {
    "WordPiece": decoders.WordPiece(prefix="##"),
    "BPE with suffixes": decoders.BPEDecoder(suffix="</w>"),
    "CTC": decoders.CTC(),
    "a replaced pattern": decoders.Replace(Regex("[ac]+"), "x"),
    "none": None,
}


@pytest.mark.parametrize("decoder", OTHERS.values(), ids=OTHERS)
def test_other_decoders_stream_too(decoder):
    library = Library(models.WordLevel({"a": 0, "##b": 1, "c": 2, "d</w>": 3, "é": 4}, unk_token="a"))
    if decoder is not None:
        library.decoder = decoder
    for ids in ([0], [0, 1, 2, 2], [4, 2, 1, 0]):
        text = text_of(library, ids)
        assert text.replace(" ", "") == library.decode(ids).replace(" ", "") or decoder is OTHERS["CTC"]


@pytest.mark.parametrize(("library", "token"), [(byte_level, "ð"), (llama, "<0x80>"), (llama, "h")])
def test_the_cost_of_a_token_does_not_grow(library, token):
    """Also where no byte ever completes a character, which is what made other streams slow."""
    library, _ = library()
    stream, i = stream_of(library), library.token_to_id(token)

    def feed():
        for _ in range(1000):
            stream.feed(i)

    feed()
    assert calls_of(feed) == calls_of(feed) == calls_of(feed)
    held, _ = stream._joiner._utf8.getstate()  # all that it keeps of the tokens so far
    assert len(held) < 4
