"""A constrained answer is the same whatever happens to boards in the middle of its schema."""

import json

import pytest

from edgellm.sampling import Sampling
from tests.constrained import EOS, SCHEMA, Oracle, be_wild, constrained_manifest
from tests.fakes import GREEDY, Boards, run
from tests.manager.asking import PROMPT, asked, cut, form, restart, stop

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
