"""A constrained answer is the same whatever happens to boards in the middle of its schema."""

import json

import jsonschema
import pytest

from edgellm.sampling import Sampling
from edgellm.structure import Constraint
from edgellm.text.tokenizer import Tokenizer
from tests.constrained import EOS, SCHEMA, Oracle, be_wild, constrained_manifest
from tests.fakes import GREEDY, Boards, run
from tests.manager.asking import PROMPT, asked, cut, form, restart, stop
from tests.tiny import split_tiny

pytestmark = pytest.mark.usefixtures("quick")

CASES = {
    "nothing": {},
    "the last board is gone in mid-key": {2: stop(2)},
    "the first board is gone in a string": {9: stop(0)},
    "a board restarts again and again": {i: restart(1) for i in (1, 7, 13)},
    "cables": {i: cut(0, 1, 2) for i in range(1, 20, 3)},
    "another manager's plan": {6: form((0, 1, 2, 6), 2)},
}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, seed=7)], ids=["greedy", "seed"])
@pytest.mark.parametrize("at", CASES.values(), ids=CASES)
def test_the_answer_is_the_same_and_matches_its_schema(tmp_path, monkeypatch, at, sampling):
    be_wild(monkeypatch)

    async def go():
        async with Boards(tmp_path, 3, constrained_manifest(tmp_path, ram_bytes=8)) as boards:
            plan = await boards.form((0, 3, 5, 6), context=256)
            return await asked(boards, plan, at, 80, sampling, eos=(EOS,), constraint=SCHEMA)

    got, oracle = run(go()), Oracle(tmp_path)
    assert got.tokens == oracle.answer(PROMPT, SCHEMA, 80, sampling) and got.finish == "eos"
    assert list(json.loads(oracle.text(got.tokens))) == ["name", "ages", "true"]


@pytest.mark.native
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9, seed=5)], ids=["greedy", "seed"])
def test_with_a_real_model_too(tmp_path, sampling):
    folder = split_tiny(tmp_path)
    properties = {"on": {"type": "boolean"}, "name": {"type": "string", "maxLength": 9}, "size": {"enum": [1, 22, 3]}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    constraint = Constraint("json_schema", json.dumps(schema))

    async def go():
        async with Boards(folder, 3, real=True) as boards:
            answers = []
            for epoch, (cuts, at) in enumerate(
                [((0, 5), {}), ((0, 3, 5), {}), ((0, 2, 4, 5), {4: cut(1), 15: restart(1), 25: stop(2)})], 1
            ):
                plan = await boards.form(cuts, epoch=epoch, chunk=5, context=256)
                answers.append(await asked(boards, plan, at, 120, sampling, eos=(511,), constraint=constraint))
            return answers

    one, two, stormy = run(go(), 100)
    assert one.tokens == two.tokens == stormy.tokens and one.finish == "eos" and len(stormy.adopted) >= 1
    stream = Tokenizer(folder).stream()
    text = "".join(stream.feed(token) for token in one.tokens[:-1]) + stream.flush()
    jsonschema.validate(json.loads(text), schema)
