"""Slots that keep windows only: whatever is reused, taken back or restored, answers are the same to the bit."""

import pytest

from edgellm.agent import engine
from edgellm.check.one_process import run_whole
from edgellm.errors import EdgellmError
from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from tests.fakes import GREEDY, Boards, run, until
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split

PROMPT = [(7 * i) % 89 + 1 for i in range(150)]  # a window of 8 keeps 128 positions


class Asked:
    """Answers of boards, of which any number may be asked in turn."""

    def __init__(self, boards, plan):
        self.boards, self.plan = boards, plan

    async def __call__(self, ids, count=12, sampling=GREEDY, **options):
        """Return the answer's tokens and logits, and from where on boards have computed."""
        stats = {}
        told = dict(sampling=sampling, max_tokens=count, eos=(), logits=True, stats=stats, **options)
        async with ClusterClient.dial(self.plan, self.boards.addresses) as cluster:
            answer = [(c.token, c.logits) async for c in cluster.generate(ids, **told)]
        (reused,) = {stat.reused_tokens for stat in stats.values()}
        return answer, reused

    async def same(self, ids, reused, **options):
        """Check that an answer is what it would be without anything held, and what was reused; return its tokens."""
        answer, held = await self(ids, **options)
        again, none = await self(ids, reuse=False, **options)
        assert answer == again and (held, none) == (reused, 0)
        return [token for token, _ in answer]


async def kept(boards):
    await until(lambda: all(a.cache is None or a.cache.is_quiet for a in boards.agents))
    await until(lambda: all(a.stage.engine.idle for a in boards.agents))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)])
@pytest.mark.parametrize(
    "family, cuts", [("qwen2_window", (0, 2, 5)), ("qwen2_window", (0, 3, 5)), ("gemma3", (0, 1, 5))]
)
def test_a_chat_goes_on_where_windows_allow_it(tmp_path, family, cuts, sampling):
    make_split(random_model(CONFIGS[family]()), tmp_path / "split")

    async def go():
        async with Boards(tmp_path / "split", 2, real=True) as boards:
            ask = Asked(boards, await boards.form(cuts, epoch=1, context=256, chunk=32, slots=2))
            options = dict(sampling=sampling)
            answer, reused = await ask(PROMPT, **options)
            assert reused == 0
            text = PROMPT + [token for token, _ in answer]
            longer = await ask.same([*text, 5, 6, 7], len(text) - 1, **options)  # the last token wasn't computed
            text += [5, 6, 7, *longer]
            assert len(text) == 177
            await ask.same(text[:-15], 161, **options)  # an answer made again: a window goes back so far
            await ask.same([*text[:40], 1], 0, **options)  # but not to there

    run(go(), 60)


@pytest.mark.parametrize("family, kv_dtype", [("qwen2_window", "float16"), ("gemma3", "int8")])
def test_drafts_that_are_not_chosen_are_taken_back(tmp_path, family, kv_dtype):
    make_split(random_model(CONFIGS[family]()), tmp_path / "split")

    async def go():
        async with Boards(tmp_path / "split", 2, real=True) as boards:
            ask = Asked(boards, await boards.form((0, 2, 5), epoch=1, context=256, chunk=32, kv_dtype=kv_dtype))
            ids = [*PROMPT[:70]] * 2  # so that there is something to draft from
            drafted, _ = await ask(ids, count=40, reuse=False)
            plain, _ = await ask(ids, count=40, reuse=False, speculate=False)
            assert drafted == plain
            sequence = [*ids, *(token for token, _ in plain)]
            expected = run_whole(boards.manifest, tmp_path / "split", sequence[:-1], len(plain), kv_dtype)
            assert [token for token, _ in plain] == [int(row.argmax()) for row in expected], "as in one process"

    run(go(), 60)


@pytest.mark.parametrize("plans", [
    [(2, 0), (2, 128), (2, 192)],
    [(1, 0), (3, 0), (1, 128)],  # what the second board has of layer 1 is from the first plan
])  # fmt: skip
def test_pages_bring_back_the_end_of_a_window_after_a_restart(tmp_path, plans):
    make_split(random_model(CONFIGS["qwen2_window"]()), tmp_path / "split")

    async def go():
        async with Boards(tmp_path / "split", 2, real=True, cache_bytes=10**8) as boards:
            text = PROMPT
            for epoch, (cut, expected) in enumerate(plans, 1):
                plan = await boards.form((0, cut, 5), epoch=epoch, context=256, chunk=32)
                ask = Asked(boards, plan)
                answer, reused = await ask(text, count=40)
                assert reused == expected
                assert answer == (await ask(text, count=40, reuse=False))[0]
                await kept(boards)
                text = [*text, *(token for token, _ in answer)][:230]
                for i in range(2):
                    await boards.stop(i)
                    await boards.start(i)

    run(go(), 60)


@pytest.mark.parametrize("family, cuts", [("qwen2_window", (0, 2, 5)), ("gemma3", (0, 1, 5))])
def test_another_question_behind_the_same_beginning_goes_on_at_a_checkpoint(tmp_path, monkeypatch, family, cuts):
    monkeypatch.setattr(engine, "CHECKPOINT_TOKENS", 64)
    make_split(random_model(CONFIGS[family]()), tmp_path / "split")
    first, second = ([*PROMPT[:100], *(i % 89 + 1 for i in range(start, start + 130))] for start in (5, 40))

    async def go():
        async with Boards(tmp_path / "split", 2, real=True, cache_bytes=10**8, cache_ram_bytes=10**8) as boards:
            for epoch, text, expected in ((1, first, 0), (2, second, 64), (3, [*PROMPT[:90], 9], 64)):
                ask = Asked(boards, await boards.form(cuts, epoch=epoch, context=256, chunk=32))
                answer, reused = await ask(text)
                assert reused == expected
                await kept(boards)
                assert answer == (await ask(text, reuse=False))[0]
                if epoch == 2:  # from RAM before this, and now from the disk
                    for i in range(2):
                        await boards.stop(i)
                        await boards.start(i)

    run(go(), 60)


def test_the_same_prompt_again_begins_at_the_last_page_that_was_kept_behind_it(tmp_path):
    make_split(random_model(CONFIGS["qwen2_window"]()), tmp_path / "split")

    async def go():
        for ram_bytes, expected in ((0, 0), (10**8, 64)):
            async with Boards(tmp_path / "split", 2, real=True, cache_ram_bytes=ram_bytes) as boards:
                ask = Asked(boards, await boards.form((0, 3, 5), epoch=1, context=256, chunk=32))
                answer, _ = await ask(PROMPT[:90], count=140)  # so long that its window is far beyond the prompt
                await kept(boards)
                assert await ask(PROMPT[:90], count=140) == (answer, expected)

    run(go(), 60)


def test_a_board_with_a_generic_section_says_that_it_has_no_keys_and_values_in_8_bits(tmp_path):
    make_split(random_model(CONFIGS["opt"]()), tmp_path / "split")

    async def go():
        async with Boards(tmp_path / "split", 1, real=True) as boards:
            with pytest.raises(EdgellmError, match="keys and values in int8 need native sections"):
                await boards.form((0, 5), epoch=1, context=64, kv_dtype="int8")

    run(go(), 60)
