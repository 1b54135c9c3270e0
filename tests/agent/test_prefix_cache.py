"""Prompts outlive agents: what begins like an earlier question computes only what is new, with the same answer."""

import asyncio
import threading
from concurrent.futures import Future
from random import Random

import numpy as np
import pytest

from edgellm.agent import measure, page_restore
from edgellm.agent.engine import Engine
from edgellm.agent.pages import head_bytes
from edgellm.agent.slots import ids_of
from edgellm.agent.steps import Step
from edgellm.manager.client import ClusterClient
from edgellm.manager.connections import Connections
from edgellm.plan import usable_bytes
from tests.fakes import Boards, FakeSection, ask, generate, make_manifest, run, until

PROMPT = [(7 * i) % 89 + 1 for i in range(200)]
MB = 1 << 20


class Kept:
    """Two boards with a cache, and how they answer."""

    def __init__(self, boards: Boards):
        self.boards, self.epoch = boards, 0

    async def form(self, cuts=(0, 3, 6)):
        self.epoch += 1
        self.plan = await self.boards.form(cuts, epoch=self.epoch, context=512, chunk=32)

    async def ask(self, prompt, count=10, **options):
        """Ask, check the answer, and return how many tokens each board reused."""
        stats = {}
        async with ClusterClient.dial(self.plan, self.boards.addresses) as cluster:
            answer = await ask(cluster, prompt, count, stats=stats, **options)
            assert [chosen.token for chosen in answer] == generate(prompt, count)
        return [stats[board].reused_tokens for board in self.plan.boards]

    async def quiet(self):
        """Wait until all that is to be kept is."""
        await until(lambda: all(agent.cache.is_quiet and agent.stage.engine.idle for agent in self.boards.agents))

    async def restart(self, *which):
        await self.quiet()
        for i in which or range(self.boards.count):
            await self.boards.stop(i)
        for i in which or range(self.boards.count):
            await self.boards.start(i)
        await self.form()

    async def status(self, i=0):
        async with Connections() as connections:
            boards = await connections.to_all(self.boards.addresses)
            return (await boards[i].status()).cache


@pytest.fixture
def kept(tmp_path):
    """Run `go(a Kept)` with two boards."""

    def on_boards(go, cache_bytes=MB, cache_ram_bytes=0):
        async def between():
            async with Boards(tmp_path, 2, cache_bytes=cache_bytes, cache_ram_bytes=cache_ram_bytes) as boards:
                made = Kept(boards)
                await made.form()
                return await go(made)

        return run(between())

    return on_boards


def test_after_a_restart_of_all_boards_only_what_is_new_is_computed(kept):
    async def go(cluster):
        assert await cluster.ask(PROMPT) == [0, 0]
        await cluster.restart()
        assert await cluster.ask(PROMPT) == [192, 192]  # three pages of 64; the answer's end is no whole page
        assert cluster.boards.sections["b0"].calls[0][:2] == (192, 8)
        await cluster.restart()
        assert await cluster.ask(PROMPT + generate(PROMPT, 10) + [5] * 60) == [192, 192]
        await cluster.restart()
        assert await cluster.ask(PROMPT + generate(PROMPT, 10) + [5] * 60) == [256, 256]
        assert await cluster.ask(PROMPT[:100] + [3] * 30) == [100, 100]  # of a slot, which has more than the page
        await cluster.restart()
        assert await cluster.ask(PROMPT[:128]) == [64, 64]  # a token is left to compute
        status = await cluster.status()
        page = 3 * 64 * 16 + head_bytes(3)
        assert (status.pages, status.bytes, status.hits, status.restored_tokens) == (5, 5 * page, 1, 64)
        assert status.written_today_bytes == 5 * page and status.budget_bytes == MB

    kept(go)


def test_each_page_is_written_once(kept):
    async def go(cluster):
        await cluster.ask(PROMPT)
        await cluster.quiet()
        written = (await cluster.status()).written_today_bytes
        for _ in range(3):
            await cluster.ask(PROMPT)
        await cluster.ask([9] * 50)
        await cluster.quiet()
        assert (await cluster.status()).written_today_bytes == written > 0

    kept(go)


def test_only_questions_with_the_same_cache_share_slots_and_pages(kept):
    async def go(cluster):
        assert await cluster.ask(PROMPT, cache="anna") == [0, 0]
        assert await cluster.ask(PROMPT, cache="bert") == [0, 0]
        assert await cluster.ask(PROMPT, cache="anna") == [199, 199]
        await cluster.restart()
        assert await cluster.ask(PROMPT) == [0, 0]
        assert await cluster.ask(PROMPT, cache="carl") == [0, 0]
        assert await cluster.ask(PROMPT, cache="bert") == [192, 192]
        assert await cluster.ask(PROMPT, cache="anna") == [192, 192]

    kept(go)


def test_a_board_without_the_pages_has_all_compute(kept):
    async def go(cluster):
        await cluster.ask(PROMPT)
        await cluster.quiet()
        cluster.boards.cache_bytes = 0
        await cluster.restart(1)
        cluster.boards.agents[1].cache = cluster.boards.agents[0].cache
        assert await cluster.ask(PROMPT) == [0, 0]

    kept(go)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign", "gone"])
def test_a_damaged_page_is_computed_again_and_replaced(kept, damage, tmp_path):
    async def go(cluster):
        await cluster.ask(PROMPT)
        await cluster.restart()
        files = {path.name: path.read_bytes() for path in (tmp_path / "cache/b1").iterdir()}
        assert len(files) == 3
        first, second, _ = sorted((tmp_path / "cache/b1").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        content = first.read_bytes()
        bad = {"cut": content[:-1], "bit": content[:500] + bytes([content[500] ^ 1]) + content[501:], "empty": b"",
               "foreign": second.read_bytes()}  # fmt: skip
        first.write_bytes(bad[damage]) if damage in bad else first.unlink()
        assert await cluster.ask(PROMPT) == [0, 0]
        await cluster.quiet()
        assert {path.name: path.read_bytes() for path in (tmp_path / "cache/b1").iterdir()} == files
        await cluster.restart()
        assert await cluster.ask(PROMPT) == [192, 192]

    kept(go)


def test_without_reuse_nothing_is_kept_or_taken(kept):
    async def go(cluster):
        await cluster.ask(PROMPT, reuse=False)
        await cluster.quiet()
        assert (await cluster.status()).pages == 0
        await cluster.ask(PROMPT)
        await cluster.restart()
        assert await cluster.ask(PROMPT, reuse=False) == [0, 0]

    kept(go)


def test_after_a_change_of_plan_boards_find_the_layers_that_they_had(kept, tmp_path):
    """A board that has fewer layers than before finds them; one that has more computes, and keeps what it lacked."""

    async def go(cluster):
        def files(i):
            return sorted(path.name.split(".")[1] for path in (tmp_path / f"cache/b{i}").iterdir())

        await cluster.ask(PROMPT)
        await cluster.quiet()
        await cluster.form((0, 2, 6))
        wanted = [agent.stage._opening.prefixes for agent in cluster.boards.agents]
        assert [len(prefixes.find(ids_of(PROMPT), 199, 0, "", False, None)) for prefixes in wanted] == [3, 0]
        assert await cluster.ask(PROMPT) == [0, 0]
        await cluster.quiet()
        assert (files(0), files(1)) == (["1-0-3"] * 3, ["1-2-3"] * 3 + ["1-3-6"] * 3)
        for cuts in ((0, 3, 6), (0, 2, 6)):  # from now on, both boards have what either plan needs
            await cluster.restart()
            await cluster.form(cuts)
            assert await cluster.ask(PROMPT) == [192, 192]
        await cluster.form((0, 4, 6))
        assert await cluster.ask(PROMPT) == [0, 0]
        await cluster.quiet()
        assert (files(0), files(1)) == (["1-0-3"] * 3 + ["1-3-4"] * 3, ["1-2-3"] * 3 + ["1-3-6"] * 3)
        await cluster.form((0, 4, 6))
        assert await cluster.ask(PROMPT) == [192, 192]

    kept(go)


def test_a_question_that_is_given_up_while_its_pages_are_read_frees_its_slot(kept, monkeypatch):
    async def go(cluster):
        await cluster.ask(PROMPT)
        await cluster.restart()
        gate, reading = threading.Event(), threading.Event()
        store = cluster.boards.agents[0].cache.store
        read = store.read

        def slowly(key):
            reading.set()
            assert gate.wait(20)
            return read(key)

        monkeypatch.setattr(store, "read", slowly)
        asked = asyncio.ensure_future(cluster.ask(PROMPT))
        await until(reading.is_set)
        engine = cluster.boards.agents[0].stage.engine
        assert engine.free_slots == 1
        asked.cancel()
        await until(lambda: engine.idle)
        assert engine.free_slots == 1  # somebody still writes there
        assert await cluster.ask([4] * 70) == [0, 0]  # others don't wait
        gate.set()
        await until(lambda: engine.free_slots == 2)
        assert await cluster.ask(PROMPT) == [192, 192]

    kept(go)


@pytest.mark.parametrize("i", [0, 1])
def test_pages_that_turn_out_to_be_gone_are_computed(kept, monkeypatch, i):
    async def go(cluster):
        await cluster.ask(PROMPT)
        await cluster.restart()
        started, store = threading.Event(), cluster.boards.agents[i].cache.store
        stage = cluster.boards.agents[0].stage
        start = stage.start
        monkeypatch.setattr(stage, "start", lambda *args: (start(*args), started.set()))
        # The first board says at once what it will have, and waits with the start; the other one must have it first.
        monkeypatch.setattr(store, "read", lambda key: started.wait(20) and None if i == 0 else None)
        assert await cluster.ask(PROMPT) == [0, 0]
        assert started.is_set()

    kept(go)


def test_a_step_before_the_pages_are_there_is_refused():
    section = FakeSection(make_manifest(), 0, 6)
    freed = []
    engine = Engine(section, [section.new_slot(64)], lambda outcomes: None, freed=lambda: freed.append(1))
    try:
        engine.open(1)
        slot, done = engine.lend(1, False)
        with pytest.raises(ValueError, match="before the sequence was opened"):
            engine.submit(Step(1, np.zeros(1, np.int64), 0, 1, 1, [0]))
        engine.close(1)
        assert engine.free_slots == 0 and not freed and engine.idle
        assert done() is False and engine.free_slots == 1 and freed
        slot.kv.filled = 2
        slot.computed(0, [5, 6])
        assert engine.open(2, [5, 6, 7], reuse=3) == (0, 2)
        _, done = engine.lend(2, True)  # of another regime: nothing counts
        assert done() is True and engine.submit(Step(2, np.zeros(1, np.int64), 0, 1, 1, [0]))
    finally:
        engine.stop()
        engine.join()


def test_slots_that_are_taken_while_their_pages_are_written_never_make_a_wrong_page(kept):
    """More questions than slots, of two caches and one family of prompts, on a disk that forgets most of them."""

    async def go(cluster):
        random = Random(3)
        prompts = [PROMPT[: random.randrange(70, 200)] + [random.randrange(1, 90)] * 80 for _ in range(6)]
        for _ in range(3):
            await asyncio.gather(*(cluster.ask(p, cache=random.choice(("", "anna"))) for p in prompts * 2))
            await cluster.restart()
        reused = [(await cluster.ask(prompt, cache=cache))[0] for prompt in prompts for cache in ("", "anna")]
        assert max(reused) >= 64 and min(reused) < 192
        status = await cluster.status()
        assert 0 < status.bytes <= status.budget_bytes and status.hits > 0

    kept(go, cache_bytes=16 * (3 * 64 * 16 + head_bytes(3)))


def test_a_disk_that_hangs_holds_up_one_question_and_no_more(kept, monkeypatch):
    async def go(cluster):
        await cluster.ask(PROMPT)
        await cluster.restart()
        monkeypatch.setattr(page_restore, "_LONGEST_S", 0.0)
        for agent in cluster.boards.agents:
            agent.cache._restoring._reading_since_s = 0.0
        assert await cluster.ask(PROMPT) == [0, 0]

    kept(go)


def test_what_can_not_be_read_in_time_is_computed(kept, monkeypatch):
    async def go(cluster):
        await cluster.ask(PROMPT)
        await cluster.restart()
        monkeypatch.setattr(page_restore, "_LONGEST_S", -1.0)
        assert await cluster.ask(PROMPT) == [0, 0]

    kept(go)


OTHERS = [[i] * 150 for i in (4, 5)]  # as many as there are slots


def test_a_prompt_that_no_slot_holds_any_more_comes_from_ram(kept, monkeypatch):
    async def go(cluster):
        await cluster.ask(PROMPT)
        await cluster.quiet()
        for agent in cluster.boards.agents:
            monkeypatch.setattr(agent.cache.store, "read", None)  # the disk isn't asked
        for other in OTHERS:
            assert await cluster.ask(other) == [0, 0]
        assert await cluster.ask(PROMPT) == [192, 192]
        await cluster.form((0, 3, 6))  # slots are new then
        assert await cluster.ask(PROMPT) == [192, 192]
        await cluster.quiet()
        status = await cluster.status()
        assert (status.hits, status.restored_tokens, status.ram_restored_tokens) == (2, 384, 384)
        assert status.ram_pages == status.pages == 3 + 2 + 2 and status.ram_budget_bytes == MB

    kept(go, cache_ram_bytes=MB)


def test_ram_alone_keeps_prompts_where_the_disk_is_not_to(kept, tmp_path):
    async def go(cluster):
        for prompt in (PROMPT, *OTHERS):
            await cluster.ask(prompt)
            await cluster.quiet()
        assert await cluster.ask(PROMPT) == [192, 192]
        status = await cluster.status()
        assert (status.budget_bytes, status.pages, status.written_today_bytes) == (0, 0, 0) and status.ram_pages == 7
        assert not (tmp_path / "cache").exists()
        await cluster.restart()
        assert await cluster.ask(PROMPT) == [0, 0]

    kept(go, cache_bytes=0, cache_ram_bytes=MB)


def test_what_ram_has_is_written_though_its_slot_has_gone_to_another(kept, monkeypatch):
    async def go(cluster):
        gate = threading.Event()
        for agent in cluster.boards.agents:
            write = agent.cache.store.write
            monkeypatch.setattr(agent.cache.store, "write", lambda *args, write=write: gate.wait(20) and write(*args))
        for prompt, pages in ((PROMPT, 3), (OTHERS[0], 5), (OTHERS[1], 7)):
            await cluster.ask(prompt)
            await until(lambda pages=pages: all(a.cache.memory.pages == pages for a in cluster.boards.agents))
        gate.set()
        await cluster.restart()
        assert await cluster.ask(PROMPT) == [192, 192]
        assert (await cluster.status()).ram_restored_tokens == 0

    kept(go, cache_ram_bytes=MB)


def test_pages_in_ram_give_way_first(kept, monkeypatch):
    """They take half of what no plan needs, count as free in what a board offers, and go when others take the RAM."""

    async def go(cluster):
        agent = cluster.boards.agents[0]
        memory, room = agent.cache.memory, agent.holding.room
        free = 1 << 28
        monkeypatch.setattr(measure, "free_ram_bytes", lambda: free - memory.size_bytes)
        offer, need = agent.holding.offer_bytes(), room.need(cluster.plan)
        agent.holding.share_ram()
        spare = usable_bytes(free + need.kv) - need.total
        assert agent.holding._spare_bytes() == spare and memory.budget_bytes == spare // 2
        await cluster.ask(PROMPT)
        await cluster.quiet()
        assert memory.size_bytes == 3 * 3 * 64 * 16
        assert agent.holding.offer_bytes() == offer and agent.holding._spare_bytes() == spare
        page = memory.size_bytes // 3
        grammars = Future()
        agent.holding.models.default.grammars._reading = grammars  # a process grows to what it needs
        growing = agent.holding.models.default.grammars.need_bytes
        agent.holding.share_ram()
        assert memory.budget_bytes == (spare - growing) // 2
        grammars.set_result(None)
        free -= spare - 3 * page  # somebody else's
        await until(lambda: memory.pages == 1)  # half of it
        assert memory.size_bytes == page and (await cluster.status()).ram_budget_bytes == memory.budget_bytes < 2 * page
        for other in OTHERS:
            await cluster.ask(other)
        assert await cluster.ask(PROMPT) == [0, 0]

    kept(go, cache_bytes=0, cache_ram_bytes=1 << 29)
