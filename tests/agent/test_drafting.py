"""Drafts of a small model on the last board: the same answers, in fewer passes if it is good, and soon none if not."""

from dataclasses import replace

import pytest

from edgellm.agent import payoff
from edgellm.agent.drafting import LOOKUP, Tally
from edgellm.errors import BoardError
from edgellm.manager.client import ClusterClient
from edgellm.plan import Settings, draft_of
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from tests.fakes import Boards, run
from tests.tiny import split_tiny

PROMPT = [(7 * i) % 251 + 1 for i in range(28)]  # as short as a draft model computes at once


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders of a model, and of another one with the same tokens."""
    return {name: split_tiny(tmp_path_factory.mktemp(name), name, name) for name in ("smollm", "qwen3")}


@pytest.fixture(autouse=True)
def costs(monkeypatch):
    """As on slow boards: a pass takes long, a further token in it, or a draft, hardly anything."""
    monkeypatch.setattr(payoff.Passes, "now", lambda passes: payoff.Pass(0.1, 0.001) if passes._weight else None)
    monkeypatch.setattr(payoff.DraftTime, "add", lambda time, drafts, seconds: None)


async def answers(boards, plan, sampling, prompts=(PROMPT,), count=60):
    """What is said with drafts and without, the last board's stats with drafts, and its tallies."""
    said, stats = [], {}
    async with ClusterClient.dial(plan, boards.addresses) as cluster:
        for speculate in (True, False):
            for prompt in prompts:
                told = dict(sampling=sampling, max_tokens=count, eos=(), logits=True, speculate=speculate)
                stream = cluster.generate(prompt, stats=stats.setdefault(speculate, {}), **told)
                said.append([(c.token, c.logits) async for c in stream])
    half, last = len(prompts), boards.agents[len(plan.boards) - 1].stage
    return said[:half], said[half:], stats[True][plan.boards[-1]], last.drafting.tallies


def formed(boards, models, draft, cuts, **settings):
    wanted = Settings(200, 2, 16, "float32")
    chosen = draft_of(Manifest.read(models[draft]), wanted)
    return boards.form(cuts, context=200, slots=2, chunk=16, draft=chosen, **settings)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, seed=5, repeat_penalty=1.1)])
@pytest.mark.parametrize("cuts", [(0, 2, 5), (0, 5)])
def test_a_perfect_draft_model_saves_passes_and_changes_nothing(models, cuts, sampling):
    async def go():
        async with Boards(models["smollm"], len(cuts) - 1, real=True) as boards:
            return await answers(boards, await formed(boards, models, "smollm", cuts), sampling)

    drafted, plain, stats, tallies = run(go(), 120)
    assert drafted == plain
    assert tallies["model"].accepted == tallies["model"].drafted > 40
    assert stats.decode_steps < 15 and stats.accepted_tokens == sum(t.accepted for t in tallies.values())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, seed=5)])
def test_a_useless_draft_model_is_switched_off_and_changes_nothing(models, sampling):
    async def go():
        async with Boards(models["smollm"], 2, real=True, more={models["qwen3"]: None}) as boards:
            plan = await formed(boards, models, "qwen3", (0, 2, 5))
            return await answers(boards, plan, sampling, (PROMPT, PROMPT[5:], [9, *PROMPT]), 80)

    drafted, plain, _, tallies = run(go(), 120)
    assert drafted == plain
    assert 0 < tallies["model"].drafted < 3 * 20 * 15 and tallies["model"].accepted < tallies["model"].drafted / 10


def test_slots_of_the_draft_model_follow_what_the_answers_slots_do(models):
    """Chats that go on, and another prompt in their slot."""

    async def go():
        async with Boards(models["smollm"], 2, real=True) as boards:
            plan = await formed(boards, models, "smollm", (0, 2, 5))
            prompts = [PROMPT, [*PROMPT, 3, 4], PROMPT[10:], [*PROMPT, 3, 4, 5, 6]]
            return await answers(boards, plan, Sampling(), prompts, 30)

    drafted, plain, _, tallies = run(go(), 120)
    assert drafted == plain and tallies["model"].accepted == tallies["model"].drafted > 60


def test_a_draft_model_that_fails_costs_no_answer(models, monkeypatch):
    async def go():
        async with Boards(models["smollm"], 2, real=True) as boards:
            plan = await formed(boards, models, "smollm", (0, 2, 5))
            (drafter,) = boards.agents[1].stage.drafting._drafters
            monkeypatch.setattr(drafter, "_section", None)
            return await answers(boards, plan, Sampling())

    drafted, plain, _, tallies = run(go(), 120)
    assert drafted == plain and tallies["model"] == Tally() and tallies[LOOKUP] is not None


@pytest.mark.parametrize("wrong", ["sha256", "tokens"])
def test_a_draft_model_that_can_not_be_this_ones_is_refused(models, tmp_path, wrong):
    """One whose shards aren't there, and one with other tokens."""
    other = split_tiny(tmp_path, "other", "qwen3", words="v") if wrong == "tokens" else models["qwen3"]

    async def go():
        async with Boards(models["smollm"], 2, real=True, more={other: None} if wrong == "tokens" else None) as boards:
            draft = draft_of(Manifest.read(other), Settings(200, 2, 16, "float32"))
            await boards.form((0, 2, 5), context=200, draft=replace(draft, model="other"))

    said = "board b1 lacks the shards of other" if wrong == "sha256" else (
        "other can't draft for smollm: token 256 is 'v256' in other, and 'w256' in smollm. Choose"
    )  # fmt: skip
    with pytest.raises(BoardError, match=said):
        run(go(), 120)
