"""Slots with recurrent layers: whatever is reused, taken back or restored, answers are the same to the bit."""

import pytest

from edgellm.agent import engine
from edgellm.agent.pages import KINDS
from edgellm.manager.client import ClusterClient
from edgellm.model.native import states
from edgellm.sampling import Sampling
from tests.fakes import GREEDY, Boards, run, until
from tests.model.recurrent_models import recurrent_model, split

PROMPT = [(7 * i) % 89 + 1 for i in range(290)]
CUTS = {"qwen3_5": (0, 1, 4), "lfm2": (0, 2, 4), "granite4": (0, 2, 4), "nemotron_h": (0, 3, 5)}


async def ask(boards, plan, ids, count=12, sampling=GREEDY, **options):
    """Return the answer's tokens and logits, and from where on all boards have computed."""
    stats = {}
    told = dict(sampling=sampling, max_tokens=count, eos=(), logits=True, stats=stats, **options)
    async with ClusterClient.dial(plan, boards.addresses) as cluster:
        answer = [(c.token, c.logits) async for c in cluster.generate(ids, **told)]
    (reused,) = {stat.reused_tokens for stat in stats.values()}
    return answer, reused


async def same(boards, plan, ids, reused, **options):
    """Check that an answer is what it would be without anything held, and what was reused; return its tokens."""
    answer, held = await ask(boards, plan, ids, **options)
    again, none = await ask(boards, plan, ids, reuse=False, **options)
    assert answer == again and (held, none) == (reused, 0)
    return [token for token, _ in answer]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)])
@pytest.mark.parametrize("family", CUTS)
def test_a_chat_goes_on_where_states_allow_it(tmp_path, family, sampling):
    split(recurrent_model(family), tmp_path / "split")

    async def go():
        async with Boards(tmp_path / "split", 2, real=True) as boards:
            plan = await boards.form(CUTS[family], epoch=1, context=400, chunk=32, slots=2)
            text, options = PROMPT[:150], dict(sampling=sampling)
            answer, reused = await ask(boards, plan, text, **options)
            assert reused == 0
            text = text + [token for token, _ in answer]
            longer = await same(boards, plan, [*text, 5, 6, 7], len(text) - 1, **options)  # the last wasn't computed
            text += [5, 6, 7, *longer]
            await same(boards, plan, [*text[:40], 1], 0, **options)  # no state is there

    run(go(), 60)


@pytest.mark.parametrize("family", CUTS)
def test_a_prompt_that_goes_on_otherwise_begins_at_a_checkpoint(tmp_path, family):
    split(recurrent_model(family), tmp_path / "split")

    async def go():
        async with Boards(tmp_path / "split", 2, real=True) as boards:
            plan = await boards.form(CUTS[family], epoch=1, context=400, chunk=32, slots=2)
            await ask(boards, plan, PROMPT)
            await same(boards, plan, [*PROMPT[:270], 5, 6, 7], 256)
            await same(boards, plan, [*PROMPT[:258], 8], 258)  # as far as the log of the last chunk reaches
            await same(boards, plan, [*PROMPT[:250], 8], 0)

    run(go(), 60)


@pytest.mark.parametrize("family", CUTS)
def test_drafts_that_are_not_chosen_are_taken_back(tmp_path, family):
    split(recurrent_model(family), tmp_path / "split")

    async def go():
        async with Boards(tmp_path / "split", 2, real=True) as boards:
            plan = await boards.form(CUTS[family], epoch=1, context=400, chunk=32)
            ids = [*PROMPT[:70]] * 2  # so that there is something to draft from
            drafted, _ = await ask(boards, plan, ids, count=60, reuse=False)
            plain, _ = await ask(boards, plan, ids, count=60, reuse=False, speculate=False)
            assert drafted == plain

    run(go(), 60)


@pytest.mark.parametrize("family", CUTS)
def test_pages_bring_back_a_state_after_a_restart(tmp_path, family):
    split(recurrent_model(family), tmp_path / "split")
    first, middle, last = CUTS[family]

    async def go():
        async with Boards(tmp_path / "split", 2, real=True, cache_bytes=10**8) as boards:
            # With another cut, one board lacks a layer's pages; when they have their layers back, they are still there.
            cuts = [(middle, 0), (middle, 256), (middle + 1, 0), (middle, 256)]
            for epoch, (cut, expected) in enumerate(cuts, 1):
                plan = await boards.form((first, cut, last), epoch=epoch, context=400, chunk=32)
                text = [*PROMPT, epoch]  # it goes on in another way each time
                answer, reused = await ask(boards, plan, text)
                assert reused == expected
                assert answer == (await ask(boards, plan, text, reuse=False))[0]
                await until(lambda: all(a.cache is None or a.cache.is_quiet for a in boards.agents))
                await until(lambda: all(a.stage.engine.idle for a in boards.agents))
                for i in range(2):
                    await boards.stop(i)
                    await boards.start(i)
        pages = list(tmp_path.rglob(f"*.{KINDS['state']}-*.page"))
        assert pages, "a state is on the disk"

    run(go(), 60)


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2", "nemotron_h"])
def test_another_question_behind_the_same_beginning_goes_on_at_a_checkpoint(tmp_path, monkeypatch, family):
    monkeypatch.setattr(engine, "CHECKPOINT_TOKENS", 64)
    monkeypatch.setattr(states, "CHECKPOINT_TOKENS", 64)
    split(recurrent_model(family), tmp_path / "split")
    first, second = ([*PROMPT[:100], *(i % 89 + 1 for i in range(start, start + 130))] for start in (5, 40))

    async def go():
        async with Boards(tmp_path / "split", 2, real=True, cache_bytes=10**8, cache_ram_bytes=10**8) as boards:
            for epoch, text, expected in ((1, first, 0), (2, second, 64), (3, [*PROMPT[:90], 9], 64)):
                plan = await boards.form(CUTS[family], epoch=epoch, context=256, chunk=32)
                answer, reused = await ask(boards, plan, text)
                assert reused == expected
                await until(lambda: all(a.cache.is_quiet for a in boards.agents))
                assert answer == (await ask(boards, plan, text, reuse=False))[0]
                if epoch == 2:  # from RAM before this, and now from the disk
                    for i in range(2):
                        await boards.stop(i)
                        await boards.start(i)

    run(go(), 60)
