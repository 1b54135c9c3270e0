"""With drafts, batches and reused slots or without: the same tokens, and fewer passes."""

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.manager.client import ClusterClient
from edgellm.model.sampler import sample
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from tests.agent.hostile import BEFORE, DEADLINE_S, Stranger, until
from tests.fakes import GREEDY, HIDDEN, VOCAB, Boards, FakeSection, generate, make_manifest, run

PROMPT = [5, 17, 3, 42, 8, 1, 90, 33, 2, 11, 64, 7]


def parrot_logits(ids: list[int], total: float, chance: int) -> np.ndarray:
    """A model that mostly says what followed the last token before, and now and then anything: `chance` of 8 words are
    its own. Which ones depends on all that came before."""
    mixed = sum((i + 1) * (k + 1) for k, i in enumerate(ids)) + int(total)
    logits = np.random.default_rng(mixed).normal(size=VOCAB).astype(np.float32)
    before = [k for k in range(len(ids) - 1) if ids[k] == ids[-1]]
    if before and mixed % 8 >= chance:
        logits[ids[before[-1] + 1]] += 9.0
    return logits


def parrot(ids: list[int], count: int, sampling=GREEDY, switch=None, chance=2, eos=()) -> list[int]:
    """What it answers, one token at a time."""
    ids, start = list(ids), len(ids)
    for _ in range(count):
        each = sum(range(6)) + (7 * 6 if switch is not None and len(ids) > switch else 0)
        logits = parrot_logits(ids, len(ids) * each, chance)
        ids.append(sample(logits, ids, sampling, len(ids), start))
        if ids[-1] in eos:
            break
    return ids[start:]


@pytest.fixture
def parrots(monkeypatch):
    """Boards hold a parrot."""

    def logits(section, held):
        return parrot_logits([int(i) for i in held[:, 0]], held[:, 1].sum(), section.chance)

    monkeypatch.setattr(FakeSection, "_logits", logits)
    monkeypatch.setattr(FakeSection, "chance", 2, raising=False)


async def answer(cluster, prompt, count, sampling=GREEDY, stats=None, **kwargs):
    stream = cluster.generate(list(prompt), sampling=sampling, max_tokens=count, stats=stats, **{"eos": (), **kwargs})
    return [c async for c in stream]


SAMPLINGS = [
    GREEDY, Sampling(repeat_penalty=1.3), Sampling(temperature=0.3, seed=7), Sampling(temperature=1.5, seed=8),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, seed=9), Sampling(temperature=0.5, repeat_penalty=1.7, seed=10),
    Sampling(temperature=0.7, min_p=0.1, seed=11), Sampling(presence_penalty=1.5, frequency_penalty=0.2),
    Sampling(temperature=0.4, seed=12, frequency_penalty=-0.5, logit_bias={5: 1.0, 17: -1.0}),
]  # fmt: skip


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: f"t{s.temperature:g}-p{s.repeat_penalty:g}")
@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 1, 4, 6)])
def test_the_tokens_are_the_same_with_drafts_and_without(tmp_path, parrots, cuts, sampling):
    async def go():
        async with Boards(tmp_path, len(cuts) - 1) as boards:
            plan = await boards.form(cuts, context=256)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                with_drafts, without = {}, {}
                drafted = await answer(cluster, PROMPT * 2, 120, sampling, with_drafts)
                plain = await answer(cluster, PROMPT * 2, 120, sampling, without, speculate=False, reuse=False)
            return drafted, plain, with_drafts, without, boards.sections

    drafted, plain, with_drafts, without, sections = run(go())
    assert [c.token for c in drafted] == [c.token for c in plain] == parrot(PROMPT * 2, 120, sampling)
    assert [(c.position, c.finish) for c in drafted] == [(c.position, c.finish) for c in plain]
    last = f"b{len(cuts) - 2}"
    assert {s.decode_steps for s in without.values()} == {119}
    assert {s.draft_tokens for s in without.values()} == {0} and without[last].accepted_tokens == 0
    steps = with_drafts["b0"].decode_steps
    assert steps + with_drafts[last].accepted_tokens == 119
    if sampling == GREEDY:
        assert steps < 90
    assert all(held.startswith("b") for held in sections)


def test_logits_come_with_every_token_of_a_step(tmp_path, parrots):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                return [await answer(cluster, PROMPT * 2, 60, logits=True, speculate=s) for s in (True, False)]

    drafted, plain = run(go())
    assert [(c.token, c.logits) for c in drafted] == [(c.token, c.logits) for c in plain]
    assert len(drafted) == 60 and all(len(c.logits) == 4 * VOCAB for c in drafted)


@pytest.mark.parametrize("count, context, eos_at", [(n, 256, None) for n in range(1, 9)] + [
    (100, n, None) for n in range(24, 33)] + [(60, 256, n) for n in range(9)] + [(5, 29, 3)])  # fmt: skip
def test_an_answer_ends_at_the_same_token_for_the_same_reason(tmp_path, monkeypatch, parrots, count, context, eos_at):
    monkeypatch.setattr(FakeSection, "chance", 0)  # every draft is right
    said = parrot(PROMPT * 2, 60, chance=0)
    eos = () if eos_at is None else (said[eos_at],)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=context)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                got = [
                    [(c.token, c.position, c.finish) for c in await answer(
                        cluster, PROMPT * 2, count, eos=eos, speculate=s, reuse=False)] for s in (True, False)
                ]  # fmt: skip
            return got, boards.sections["b1"].calls

    (drafted, plain), calls = run(go())
    assert drafted == plain
    assert [t for t, _, _ in plain] == parrot(PROMPT * 2, 60, chance=0, eos=eos)[: min(count, context - 24 + 1)]
    assert all(position + tokens <= min(pass_len, context) for position, tokens, pass_len in calls)


@pytest.mark.parametrize("switch", [24, 25, 26, 30, 40, 41, 42, 43])
def test_no_draft_crosses_a_long_rope_switch(tmp_path, parrots, switch):
    async def go():
        async with Boards(tmp_path, 2, make_manifest(rope_switch_len=switch)) as boards:
            plan = await boards.form((0, 3, 6), context=256, chunk=8)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                return await answer(cluster, PROMPT * 2, 60), boards.sections["b1"].calls

    chosen, calls = run(go())
    assert [c.token for c in chosen] == parrot(PROMPT * 2, 60, switch=switch)
    assert any(tokens > 1 and position > switch for position, tokens, _ in calls)
    again = calls.index((0, 8, switch + 1)) if switch >= 24 else 0
    assert all(pass_len <= switch for _, _, pass_len in calls[:again])


def test_without_batches_on_every_board_nothing_is_drafted(tmp_path, parrots):
    async def go(without):
        async with Boards(tmp_path / without, 3) as boards:
            plan = await boards.form((0, 1, 4, 6), context=256)
            boards.agents[int(without[1])].stage.engine.batches = False
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stats = {}
                return [c.token for c in await answer(cluster, PROMPT * 2, 40, stats=stats)], stats

    for board in ("b0", "b1", "b2"):
        (tmp_path / board).mkdir()
        tokens, stats = run(go(board))
        assert tokens == parrot(PROMPT * 2, 40)
        assert {s.draft_tokens for s in stats.values()} == {0}


def test_drafts_at_a_board_that_can_not_verify_are_refused(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            await boards.form((0, 3, 6))
            boards.agents[1].stage.engine.batches = False
            stranger = await Stranger.dial(boards.agents[1], BEFORE)
            stranger.send(m.Hidden(1, 9, 0, 2, 2, (1, 2), bytes(2 * HIDDEN * 4)))
            reason = await stranger.refused()
            await Stranger.hang_up()
            return reason

    assert run(go()) == "hidden states of 1 drafts; board b1 can't verify any"


# Reuse


def prefilled(stats) -> set:
    return {(s.reused_tokens, s.prefill_tokens) for s in stats.values()}


def test_a_follow_up_computes_only_what_is_new(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 1, 4, 6), context=256)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                found = []
                prompt = PROMPT
                for _ in range(3):
                    stats = {}
                    said = [c.token for c in await answer(cluster, prompt, 20, stats=stats)]
                    assert said == generate(prompt, 20)
                    found.append((len(prompt), prefilled(stats)))
                    prompt = prompt + said + [1, 2, 3]
                return found

    first, second, third = run(go())
    assert first == (12, {(0, 12)})
    # The last token of an answer was chosen, but never computed.
    assert second == (35, {(31, 4)}) and third == (58, {(54, 4)})


def test_a_shared_system_prompt_is_computed_once_and_a_repeated_one_not_at_all(tmp_path):
    system = list(range(30))

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                found = []
                for prompt in (system + [7, 7], system + [8, 8, 8], system + [8, 8, 8], PROMPT, system + [9]):
                    stats = {}
                    said = [c.token for c in await answer(cluster, prompt, 5, stats=stats)]
                    assert said == generate(prompt, 5)
                    found.append({(s.reused_tokens) for s in stats.values()})
                return found

    assert run(go()) == [{0}, {30}, {32}, {0}, {30}]


def test_boards_that_hold_different_lengths_begin_at_the_least(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 1, 4, 6), context=256)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                await answer(cluster, PROMPT, 5)
                await until(lambda: [a.stage.engine.free_slots for a in boards.agents] == [2, 2, 2])
                for i, kept in ((0, 9), (1, 4), (2, 7)):
                    (slot,) = [s for s in boards.agents[i].stage.engine._slots.free() if s.ids]
                    del slot.ids[kept:]
                stats = {}
                said = [c.token for c in await answer(cluster, PROMPT, 10, stats=stats)]
                return said, prefilled(stats)

    assert run(go()) == (generate(PROMPT, 10), {(4, 8)})


def test_nothing_is_reused_across_epochs_regimes_or_when_it_is_not_wanted(tmp_path):
    async def go():
        async with Boards(tmp_path, 2, make_manifest(rope_switch_len=20)) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            found = {}

            async def reused(name, plan, prompt, count=3, **kwargs):
                async with ClusterClient.dial(plan, boards.addresses) as cluster:
                    stats = {}
                    said = [c.token for c in await answer(cluster, prompt, count, stats=stats, **kwargs)]
                    assert said == generate(prompt, count, switch=20)
                    (found[name],) = {s.reused_tokens for s in stats.values()}

            await reused("first", plan, PROMPT)
            await reused("not wanted", plan, PROMPT, reuse=False)
            await reused("wanted", plan, PROMPT)
            await reused("long", plan, PROMPT + PROMPT)
            await reused("long again", plan, PROMPT + PROMPT + [1])
            await reused("short again", plan, PROMPT)
            await reused("grows long", plan, PROMPT, 15)
            again = await boards.form((0, 3, 6), context=256, epoch=2)  # the same sections, kept as they are
            await reused("epoch", again, PROMPT)
            return found

    assert run(go()) == {
        "first": 0, "not wanted": 0, "wanted": 11, "long": 0, "long again": 24, "short again": 11, "grows long": 11,
        "epoch": 0,
    }  # fmt: skip


def test_a_manager_that_claims_too_much_is_told_of_the_gap(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                await answer(cluster, PROMPT, 5)
                await until(lambda: [a.stage.engine.free_slots for a in boards.agents] == [2, 2])
                for slot in boards.agents[1].stage.engine._slots.free():
                    slot.forget()
                events = asyncio.Queue()
                options = {"plan": plan.digest, "max_tokens": 3, "reuse": 99}
                found, first = [], cluster.boards[0]
                async with asyncio.timeout(DEADLINE_S):
                    for board in cluster.boards:
                        board.subscribe(7, events)
                        board.send(m.Open(1, 7, options, tuple(PROMPT)))
                        found.append((await events.get())[1])
                        options["slot"] = found[-1].slot
                    first.send(m.Start(1, 7, found[0].reused))
                    while not found or not isinstance(found[-1], m.Failed):
                        found.append((await events.get())[1])
                return [type(f).__name__ for f in found], found[-1].reason

    kinds, reason = run(go())
    assert kinds == ["Opened", "Opened", "Failed"] and reason == "step at position 11, expected at most 0"


# Several at once, and chance


def test_answers_at_once_run_in_batches_and_do_not_mix(tmp_path):
    gates = {"b1": threading.Event()}

    async def go():
        async with Boards(tmp_path, 2, gates=gates) as boards:
            plan = await boards.form((0, 3, 6), context=256, slots=6)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                prompts = [[i, 2 * i + 1, 7] * (i + 1) for i in range(6)]
                answers = [asyncio.create_task(answer(cluster, p, 40)) for p in prompts]
                await until(lambda: boards.agents[1].stage.engine.waiting >= 6)
                gates["b1"].set()
                return prompts, [[c.token for c in await a] for a in answers], boards.sections

    prompts, answers, sections = run(go())
    assert answers == [generate(p, 40) for p in prompts]
    assert max(sections["b1"].together) > 1


@settings(max_examples=30, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_questions_in_any_order_and_number_get_the_answers_of_one_alone(tmp_path, parrots, data):
    """Related prompts, several at once, few slots, some cancelled: whatever is batched, drafted and reused."""
    switch = data.draw(st.none() | st.integers(10, 60))
    cuts = data.draw(st.sampled_from([(0, 6), (0, 3, 6), (0, 2, 4, 6)]))
    rounds = data.draw(st.lists(st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 20), st.sampled_from(SAMPLINGS), st.booleans(), st.integers(1, 40)),
        min_size=1, max_size=3,
    ), min_size=1, max_size=4))  # fmt: skip

    async def go():
        async with Boards(tmp_path, len(cuts) - 1, make_manifest(rope_switch_len=switch)) as boards:
            plan = await boards.form(cuts, context=128, slots=3)
            said = [list(PROMPT)]
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                async def ask(which, cut, sampling, cancelled, count):
                    prompt = (said[which % len(said)][: 60 - cut] or [1]) + [which]
                    stream, got = cluster.generate(prompt, sampling=sampling, max_tokens=count, eos=()), []
                    async for chosen in stream:
                        got.append(chosen.token)
                        if cancelled and len(got) > count // 2:
                            break
                    await stream.aclose()
                    assert got == parrot(prompt, count, sampling, switch)[: len(got)]
                    assert cancelled or len(got) == count
                    said.append(prompt + got)

                for questions in rounds:
                    await asyncio.gather(*(ask(*q) for q in questions))

    run(go())
