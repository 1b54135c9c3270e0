"""Control tokens of an answer: left out of its text, unless who asks needs them there."""

import asyncio
from types import SimpleNamespace

import pytest

from edgellm.manager.answer import Answer, Asker, Question
from edgellm.sampling import Sampling
from edgellm.text.tokenizer import Tokenizer
from tests.text.vocabularies import byte_level


class Session:
    """Yields tokens as boards would, the last one with a finish."""

    def __init__(self, ids, finish):
        self._ids, self._finish = ids, finish

    async def generate(self, _ids, **_given):
        for i, token in enumerate(self._ids):
            last = i == len(self._ids) - 1
            yield SimpleNamespace(token=token, finish=self._finish if last else "", logprobs=())


@pytest.fixture
def asker(tmp_path):
    library, _ = byte_level()
    library.save(str(tmp_path / "tokenizer.json"))
    asker = Asker.__new__(Asker)
    asker.tokenizer = Tokenizer(tmp_path)
    asker.manifest = SimpleNamespace(vocab_size=10_000)
    asker.eos_token_ids = ()
    return asker


def text_of(asker, said, *, controls=(), stop=(), finish="length"):
    question = Question("Why?", controls=frozenset(controls), stop=tuple(stop))

    async def read():
        stream = asker.stream(question, [1], Session(asker.tokenizer.encode(said), finish), Answer(1, Sampling()))
        return "".join([delta.text async for delta in stream])

    return asyncio.run(read())


def test_control_tokens_are_left_out(asker):
    assert text_of(asker, "<|im_start|>a é</s>b") == "a éb"


def test_those_that_are_asked_for_are_text_where_they_stand(asker):
    assert text_of(asker, "<|im_start|>a é</s>b", controls=["<|im_start|>"]) == "<|im_start|>a éb"
    assert text_of(asker, "a é<|im_start|>b</s>", controls=["<|im_start|>", "</s>"]) == "a é<|im_start|>b</s>"


def test_what_ends_the_answer_is_no_text(asker):
    assert text_of(asker, "a</s>", controls=["</s>"], finish="eos") == "a"


def test_a_stop_text_behind_one_still_ends_the_answer(asker):
    assert text_of(asker, "a<|im_start|>bcd", controls=["<|im_start|>"], stop=["c"]) == "a<|im_start|>b"


def test_held_back_text_stays_before_it(asker):
    assert text_of(asker, "ab<|im_start|>c", controls=["<|im_start|>"], stop=["bx"]) == "ab<|im_start|>c"
