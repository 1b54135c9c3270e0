"""The process that compiles grammars: what it refuses, and that nothing it is given ends more than itself."""

import threading
import time

import pytest

from edgellm.errors import UsageError
from edgellm.structure import Constraint
from edgellm.text import grammars
from edgellm.text.grammars import GrammarProcess, WorkerEnded, check

ENDLESS = Constraint("json_schema", '{"type": "array", "minItems": 1000000000000, "items": {"type": "string"}}')
REFUSED = {
    "no JSON": (Constraint("json_schema", "{"), "the JSON schema can't be compiled: Expecting property name"),
    "no object": (Constraint("json_schema", "true"), "the JSON schema can't be compiled: it must be an object."),
    "an unknown type": (Constraint("json_schema", '{"type": "objec"}'), "can't be compiled: Invalid type: objec."),
    "an unknown keyword": (Constraint("json_schema", '{"not": {}}'), 'Unimplemented keys: ["not"]. Simplify it.'),
    "another machine's schema": (Constraint("json_schema", '{"$ref": "http://x.org/y"}'), "http://x.org/y"),
    "a deep one": (Constraint("json_schema", "[" * 40_000), "maximum recursion depth exceeded"),
    "half a character": (Constraint("regex", "\ud800"), "the regular expression can't be compiled"),
    "no regex": (Constraint("regex", "("), "the regular expression can't be compiled: unclosed group. Simplify it."),
    "a back-reference": (Constraint("regex", "(a)\\1"), "backreferences are not supported"),
    "brackets": (Constraint("regex", "(" * 5000 + "a" + ")" * 5000), "the regular expression can't be compiled"),
    "no grammar": (Constraint("lark", "start: b"), 'the grammar can\'t be compiled: at 1(8): unknown name: "b".'),
    "an endless list": (ENDLESS, "it takes more than 3 s or 128 MB. Simplify it."),
}  # fmt: skip


@pytest.mark.parametrize("constraint, reason", REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_compiled_is_refused_in_one_sentence(constraint, reason):
    for _ in range(2):
        with pytest.raises(UsageError) as e:
            check(constraint)
        said = str(e.value)
        assert reason in said and said.isprintable() and len(said) < 320


@pytest.mark.parametrize("constraint", [
    Constraint("json"), Constraint("json_schema", '{"type": "object"}'), Constraint("regex", "[a-z]{1,9}"),
    Constraint("lark", 'start: "a" | "b"'), Constraint("json_schema", '{"type": "string", "pattern": "(a|aa)*"}'),
], ids=lambda c: c.kind)  # fmt: skip
def test_what_can_be_compiled_passes(constraint):
    check(constraint)


def test_many_threads_may_check_at_once_beside_a_bomb():
    grammars._checked.clear()
    said: dict[int, str] = {}

    def one(i: int) -> None:
        constraint = ENDLESS if i == 3 else Constraint("regex", f"a{{{i}}}")
        try:
            check(constraint)
            said[i] = "fine"
        except UsageError as e:
            said[i] = str(e)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {i: text for i, text in said.items() if i != 3} == {i: "fine" for i in range(8) if i != 3}
    assert "can't be compiled" in said[3]


def test_when_the_process_ends_the_first_request_in_it_is_to_blame_and_the_others_are_told():
    process = GrammarProcess()
    first = process.start()
    blamed = process.send({"op": "check", **ENDLESS.to_wire()})
    others = [process.send({"op": "check", "kind": "regex", "source": "a"}) for _ in range(3)]
    with pytest.raises(WorkerEnded) as e:
        blamed.result(20)
    assert e.value.culprit
    for other in others:
        with pytest.raises(WorkerEnded) as e:
            other.result(20)
        assert not e.value.culprit
    assert process.running is None
    with pytest.raises(WorkerEnded):
        process.send({"op": "check", "kind": "regex", "source": "a"}).result(0)
    assert process.start() is not first
    assert process.send({"op": "check", "kind": "regex", "source": "a"}).result(20).fields == {}
    process.close()
    assert process.running is None


def test_a_process_that_nobody_holds_ends():
    process = GrammarProcess()
    process.start()
    popen = process._running._process
    del process
    end_s = time.monotonic() + 20
    while popen.poll() is None:
        assert time.monotonic() < end_s
        time.sleep(0.01)
