"""Text and tokens on the manager's side: templates, streaming decode, stop strings."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from edgellm.errors import ClusterError, ManifestError, UsageError
from edgellm.manager.tokens import StopStrings, Tokenizer

TEMPLATE = (
    "{% if messages[0].role == 'system' and messages[0].content == 'no' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    """A tokenizer with one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "bos_token": "<s>"}))
    return tmp_path


def decode(tokenizer, ids):
    stream = tokenizer.decoder()
    return [stream.feed(i) for i in ids]


def test_a_chat_is_written_as_the_model_wants_it(folder):
    tokenizer = Tokenizer(folder)
    text = "".join(decode(tokenizer, tokenizer.encode_chat("hi", "be brief")))
    assert text == "<system>be brief<user>hi<assistant>"


def test_a_template_that_refuses_says_so_in_one_line(folder):
    with pytest.raises(UsageError, match="refuses this prompt: no system. Try it without --system"):
        Tokenizer(folder).encode_chat("hi", "no")


def test_a_template_of_its_own_file_comes_first(folder):
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    tokenizer = Tokenizer(folder)
    assert "".join(decode(tokenizer, tokenizer.encode_chat("hi", None))) == "hi!"


def test_a_hostile_template_reaches_nothing(folder):
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UsageError, match="unsafe|refuses"):
        Tokenizer(folder).encode_chat("hi", None)


def test_half_a_character_waits_for_its_other_half(folder):
    tokenizer = Tokenizer(folder)
    pieces = decode(tokenizer, tokenizer.encode("aé🐦"))
    assert pieces[0] == "a" and "".join(pieces) == "aé🐦" and pieces.count("") == 4


def test_a_missing_or_broken_tokenizer_is_named(tmp_path):
    with pytest.raises(ClusterError, match="tokenizer.json is missing"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ManifestError, match="tokenizer.json"):
        Tokenizer(tmp_path)


@given(st.lists(st.text("abc", max_size=3), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_end_the_text_before_the_first_of_them_however_it_comes(pieces, strings):
    stop = StopStrings(tuple(strings))
    shown = ""
    for piece in pieces:
        shown += stop.feed(piece)
        if stop.found:
            break
    else:
        shown += stop.flush()
    whole = "".join(pieces)
    starts = [i for s in strings if (i := whole.find(s)) >= 0]
    if not stop.found:
        assert shown == whole and not starts
    else:
        assert whole.startswith(shown) and any(whole.startswith(s, len(shown)) for s in strings)
        assert not any(s in shown for s in strings)


def test_nothing_is_held_back_that_can_not_begin_a_stop_string():
    stop = StopStrings(("STOP",))
    assert [stop.feed(t) for t in ("abS", "T", "x", "ST", "OP", "more")] == ["ab", "", "STx", "", "", ""]
    assert stop.found
