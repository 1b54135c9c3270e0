"""An answer is the same whatever happens to boards, cables and plans while it is being made."""

import asyncio
import re
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.sampling import Sampling
from tests.certificates import make_cluster
from tests.fakes import GREEDY, Boards, generate, make_manifest, run, until
from tests.manager.asking import (
    PROMPT,
    Happening,
    asked,
    cut,
    cut_between_boards,
    drain,
    form,
    hang,
    lose_a_step,
    restart,
    stop,
)

COUNT = 150  # tokens: far more than come while something happens

pytestmark = pytest.mark.usefixtures("quick")

CASES = {
    "the first board's cable": ({3: cut(0)}, "board b0", 1),
    "a middle board's cable": ({3: cut(1)}, "board b1", 1),
    "the last board's cable": ({3: cut(2)}, "board b2", 1),
    "all cables": ({3: cut(0, 1, 2)}, "board b", 1),
    "a cable before the first token": ({0: cut(1)}, None, 1),
    "the same cable again and again": ({i: cut(1) for i in range(3, 60, 9)}, "board b1", 1),
    "the cable between two boards": ({3: cut_between_boards}, "board b1", 1),
    "the first board is gone for good": ({3: stop(0)}, "board b0", 2),
    "a middle board is gone for good": ({3: stop(1)}, "board b1", 2),
    "the last board is gone for good": ({3: stop(2)}, "board b2", 2),
    "a board is gone before the first token": ({0: stop(2)}, "epoch 2", 2),
    "two boards are gone": ({3: stop(0, 2)}, "board b", 2),
    "one is gone, then another": ({3: stop(1), 40: stop(2)}, "board b2", 3),
    "an agent restarts empty-handed": ({3: restart(1)}, "epoch 2: b0 layers 0-3, b1 layers 3-5, b2 layers 5-6", 2),
    "all agents restart": ({3: restart(0, 1, 2)}, "epoch 2: b0 layers 0-3, b1 layers 3-5, b2 layers 5-6", 2),
    "all restart, twice": ({3: restart(0, 1, 2), 50: restart(2, 1, 0)}, "epoch 3", 3),
    "another manager commits a plan": ({3: form((0, 1, 2, 6), 2)}, "has moved on to epoch 2", 2),
    "another manager commits many": (
        {k: form(cuts, k) for k, cuts in ((3, (0, 1, 6)), (9, (0, 5, 6)), (30, (0, 6)), (31, (0, 2, 3, 6)))},
        "has moved on to epoch 30", 31,
    ),
    "another manager leaves two boards out": ({3: form((0, 6), 2)}, "has moved on to epoch 2", 2),
    "a plan with other chunks and slots": ({3: form((0, 3, 5, 6), 2, chunk=64, slots=1)}, "has moved on to epoch 2", 2),
    "a board hangs": ({3: hang}, "board b1 .* has not answered for 1 s", 2),
    "a step is lost": ({3: lose_a_step}, "the answer stalled", 1),
    "a plan, and a board of it": ({3: form((0, 1, 2, 6), 2), 20: stop(1), 50: restart(2)}, "board b2", 4),
}  # fmt: skip


@pytest.mark.parametrize("at, told, epoch", CASES.values(), ids=CASES)
def test_the_answer_is_the_same_whatever_happens(tmp_path, monkeypatch, at, told, epoch):
    monkeypatch.setattr("edgellm.manager.board.PONG_TIMEOUT_S", 1.0)
    # A board that hangs is no longer seen to work: as in earnest, silence is noticed before idleness.
    monkeypatch.setattr("edgellm.manager.client.STALL_TIMEOUT_S", 0.1 if told == "the answer stalled" else 5.0)

    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 5, 6), context=256)
            got = await asked(boards, plan, at, COUNT)
            # No sequence is left behind.
            await until(lambda: all(a.stage.engine.free_slots == a.stage.plan.slots for a in boards.running if a.stage))
            return got

    got = run(go())
    assert got.tokens == generate(PROMPT, COUNT) and got.finish == "length"
    assert [p.epoch for p in got.adopted][-1:] == ([epoch] if epoch > 1 else [])
    assert told is None or re.search(told, "\n".join(got.told)), got.told


def test_what_a_replay_finds_held_was_not_held_before_the_answer(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 5, 6), context=256)
            return await asked(boards, plan, {30: cut(1)}, COUNT)

    got = run(go())
    assert got.tokens == generate(PROMPT, COUNT)
    assert {told.reused_tokens for told in got.stats.values()} == {0}


def test_a_draining_board_answers_to_the_end_and_the_next_answer_goes_without_it(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 5, 6), context=256)
            return await asked(boards, plan, {3: drain(1)}, COUNT), await asked(boards, plan, {}, COUNT)

    first, second = run(go())
    assert first.tokens == second.tokens == generate(PROMPT, COUNT)
    assert (first.told, first.adopted) == ([], []) and "b1" not in second.adopted[0].boards


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.3, seed=7),
        Sampling(temperature=1.5, top_k=20, seed=8),
        Sampling(temperature=0.5, top_p=0.8, min_p=0.01, seed=9),
        Sampling(temperature=0.4, repeat_penalty=1.7, seed=10),
        Sampling(repeat_penalty=1.3),
    ],
    ids=lambda s: f"t{s.temperature:g}-p{s.repeat_penalty:g}",
)
def test_seeded_answers_are_the_same_too(tmp_path, sampling):
    at = {3: cut(1), 20: restart(2), 40: form((0, 1, 2, 6), 5), 70: stop(0)}

    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 5, 6), context=256)
            return await asked(boards, plan, at, 100, sampling)

    got = run(go())
    assert got.tokens == generate(PROMPT, 100, sampling) and got.adopted[-1].epoch == 6
    if sampling.temperature:
        assert got.tokens != generate(PROMPT, 100)


@pytest.mark.parametrize("switch", [13, 20, 40, 41, 42, 43, 44, 100])
def test_a_long_rope_sequence_is_the_same_when_it_is_replayed_before_at_or_after_its_switch(tmp_path, switch):
    at = {28: cut(1), 29: cut(1), 30: restart(1), 31: cut(2), 60: form((0, 1, 6), 9)}

    async def go():
        async with Boards(tmp_path, 3, make_manifest(rope_switch_len=switch)) as boards:
            plan = await boards.form((0, 3, 5, 6), context=256)
            return await asked(boards, plan, at, 100)

    assert run(go()).tokens == generate(PROMPT, 100, switch=switch)


def test_over_tls_it_is_no_different(tmp_path):
    tls = make_cluster(tmp_path / "tls", ["b0", "b1", "b2"])
    at = {3: cut(1), 20: restart(2), 40: form((0, 1, 2, 6), 5), 60: cut_between_boards, 80: stop(0)}

    async def go():
        async with Boards(tmp_path, 3, tls=tls) as boards:
            plan = await boards.form((0, 3, 5, 6), context=256)
            return await asked(boards, plan, at, COUNT)

    got = run(go())
    assert got.tokens == generate(PROMPT, COUNT) and got.adopted[-1].epoch == 6


def test_three_answers_at_once_are_all_right(tmp_path):
    async def go():
        async with Boards(tmp_path, 4) as boards:
            plan = await boards.form((0, 3, 5, 6), context=256, slots=3)
            at = {3: cut(1), 30: restart(2), 60: form((0, 1, 6), 20, slots=3), 90: stop(0)}
            return await asyncio.gather(*(asked(boards, plan, happens, COUNT) for happens in (at, {}, {})))

    answers = run(go())
    assert [a.tokens for a in answers] == [generate(PROMPT, COUNT)] * 3


def test_a_question_that_is_cancelled_in_a_replay_leaves_nothing_behind(tmp_path):
    gate = threading.Event()
    gate.set()

    async def go():
        async with Boards(tmp_path, 2, gates={"b1": gate}) as boards:
            plan = await boards.form((0, 3, 6), context=256)

            async def cut_and_close(boards):
                boards.cut(0)
                gate.clear()

            answer = asyncio.create_task(asked(boards, plan, {3: cut_and_close}, COUNT))
            await until(lambda: not gate.is_set() and boards.agents[1].stage.engine.step_s > 0)  # in its replay
            answer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answer
            gate.set()
            await until(lambda: all(a.stage.engine.free_slots == 2 and not a.holding.claimed for a in boards.agents))
            return await asked(boards, plan, {}, COUNT)

    assert run(go()).tokens == generate(PROMPT, COUNT)


# Chance


_HAPPENINGS = st.one_of(
    st.sampled_from([cut(0), cut(1), cut(2), cut(0, 1, 2), cut_between_boards]),
    st.sampled_from([restart(0), restart(1), restart(2), restart(0, 1, 2)]),
    st.sets(st.integers(1, 5), max_size=2).map(lambda cuts: (0, *sorted(cuts), 6)),
)


@settings(max_examples=25, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.integers(1, 70), _HAPPENINGS, max_size=5),
    st.sampled_from([GREEDY, Sampling(temperature=0.5, seed=3), Sampling(temperature=0.4, repeat_penalty=1.5)]),
    st.none() | st.integers(14, 80),
    st.integers(0, 2),
)
def test_the_answer_is_the_same_whenever_it_happens(tmp_path, monkeypatch, program, sampling, switch, gone):
    monkeypatch.setattr("edgellm.manager.client.STALL_TIMEOUT_S", 0.2)
    epochs = iter(range(100, 200))

    def happening(what) -> Happening:
        async def another_plan(boards):
            try:
                await boards.form(what, epoch=next(epochs), context=256)
            except Exception as e:  # the asker is changing the plan itself, or has
                assert "claim" in str(e) or "giving" in str(e) or "connection" in str(e), e

        async def unless_there_is_none(boards):
            stage = boards.agents[0].stage
            if what is not cut_between_boards or (stage and stage._next and stage._next.peer):
                await what(boards)

        return another_plan if isinstance(what, tuple) else unless_there_is_none

    async def go():
        async with Boards(tmp_path, 3, make_manifest(rope_switch_len=switch)) as boards:
            plan = await boards.form((0, 3, 5, 6), context=256)
            at = {k: happening(what) for k, what in program.items()}
            return await asked(boards, plan, {**at, 75: stop(gone)}, 90, sampling)

    assert run(go()).tokens == generate(PROMPT, 90, sampling, switch)
