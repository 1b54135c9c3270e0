"""Plans on a board: loaded beside the running section where there is room, then switched, and nothing left behind."""

import asyncio
import gc
import threading
import weakref

import pytest

from edgellm.errors import BoardError
from edgellm.manager.client import ClusterClient
from edgellm.plan import Plan
from edgellm.sampling import Sampling
from tests.agent.changing import Manager, plan_of
from tests.agent.hostile import until
from tests.fakes import ask, generate, make_manifest

PROMPT = [5, 17, 3, 42, 8, 1, 90]



def test_nothing_is_prepared_or_committed_without_a_claim(on_board):
    async def go(boards, holding, manager):
        async with Manager.of(boards) as other:
            await other.claim(None, 1)
            await other.prepare(plan_of(boards))
            said = [
                (await manager.prepare(plan_of(boards)))["error"], (await manager.commit(1))["error"],
                (await other.prepare(plan_of(boards, epoch=2)))["error"], (await other.commit(2))["error"],
                (await other.commit(None))["error"],
            ]  # fmt: skip
            assert (await other.commit(1))["error"] is None  # none of that touched it
        assert boards.loads == [("b0", 0, 6)]
        return said

    said = on_board(go)
    assert said == [
        f"board b0 was not claimed for epoch {epoch} on this connection" for epoch in (1, 1, 2, 2, None)
    ]  # fmt: skip


def test_a_commit_needs_a_prepare_and_happens_once(on_board):
    async def go(boards, holding, manager):
        await manager.claim(None, 1)
        said = [await manager.commit(1)]
        await manager.prepare(plan_of(boards))
        said += [await manager.commit(1), await manager.commit(1)]
        assert not holding.claimed
        return [(a["error"], a["epoch"]) for a in said]

    said = on_board(go)
    assert said == [
        ("board b0 has not prepared epoch 1", None), (None, 1),
        ("board b0 was not claimed for epoch 1 on this connection", 1),
    ]  # fmt: skip


def test_a_prepare_that_fails_leaves_nothing_to_commit(on_board):
    async def go(boards, holding, manager):
        await manager.claim(None, 1)
        await manager.prepare(plan_of(boards))
        assert "context of 5000" in (await manager.prepare(plan_of(boards, context=5000)))["error"]
        return (await manager.commit(1))["error"]

    said = on_board(go)
    assert said == "board b0 has not prepared epoch 1"


def test_the_running_section_serves_while_the_next_one_is_loaded_and_until_the_commit(on_board):
    async def go(boards, holding, manager):
        first = plan_of(boards)
        await manager.take(first)
        loading, go_on = threading.Event(), threading.Event()
        load = holding._load

        def slow(*args):
            loading.set()
            assert go_on.wait(20)
            return load(*args)

        holding._load = slow
        assert await manager.claim(1, 2) is None
        preparing = asyncio.create_task(manager.prepare(plan_of(boards, (0, 6), epoch=2, slots=3)))
        await asyncio.to_thread(loading.wait, 20)
        async with ClusterClient.dial(first, boards.addresses) as cluster:
            assert [c.token for c in await ask(cluster, PROMPT)] == generate(PROMPT, 10)
            status = await cluster.boards[0].status()
            assert (status.claimed, status.epoch, status.plan) == (True, 1, first)
            go_on.set()
            assert (await preparing) == {"error": None, "epoch": 1, "beside": True, "loaded_bytes": 0}
            stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=30, eos=())
            await anext(stream)
            assert (await manager.commit(2))["epoch"] == 2
            with pytest.raises(BoardError, match="board b0 has moved on to epoch 2"):
                while True:
                    await anext(stream)
        status = await manager.board.status()
        assert (status.epoch, status.section.slots, status.claimed) == (2, 3, False)

    on_board(go)


def test_a_manager_that_leaves_during_the_load_leaves_nothing_behind(on_board):
    async def go(boards, holding, manager):
        await manager.take(plan_of(boards))
        stage, load = holding.stage, holding._load
        loading, go_on, loaded = threading.Event(), threading.Event(), []

        def slow(*args):
            loading.set()
            assert go_on.wait(20)
            section = load(*args)
            loaded.append(weakref.ref(section))
            return section

        holding._load = slow
        async with Manager.of(boards) as other:
            assert await other.claim(1, 2) is None
            other.board.send(other.assign(plan_of(boards, epoch=2, slots=3)))
            await asyncio.to_thread(loading.wait, 20)
        await until(lambda: not holding.claimed)
        # The next manager needn't wait for the load to claim, only to prepare.
        holding._load = load
        assert await manager.claim(1, 3) is None
        preparing = asyncio.create_task(manager.prepare(plan_of(boards, epoch=3, slots=1)))
        await until(lambda: boards.agents[0].dispatcher._changes == 2)  # it waits for the load
        assert not preparing.done() and holding.stage is stage
        go_on.set()
        assert (await preparing)["error"] is None
        boards.sections.clear()
        gc.collect()
        assert [ref() for ref in loaded] == [None]
        assert (await manager.commit(3))["epoch"] == 3 and holding.stage.plan.slots == 1

    on_board(go)


def test_the_very_same_section_is_taken_over_without_a_load(on_board):
    async def go(boards, holding, manager):
        await manager.take(plan_of(boards, (0, 3, 6), chunk=5))
        section, slots = holding.stage.section, holding.held.served[0].loaded.slots
        again = plan_of(boards, (0, 3, 6), epoch=2, chunk=7)
        assert await manager.claim(1, 2) is None
        assert await manager.prepare(again) == {"error": None, "epoch": 1, "beside": True, "loaded_bytes": 0}
        assert (await manager.commit(2))["loaded_bytes"] == 0
        assert boards.loads == [("b0", 0, 3)]
        assert holding.stage.section is section and holding.stage.plan == again
        assert holding.held.served[0].loaded.slots is slots
        assert holding.stage.engine.free_slots == 2
        # Another KV size is no reason to hash the shards again, but the slots are made anew.
        for epoch, settings in ((3, {"context": 32}), (4, {"slots": 1}), (5, {"kv_dtype": "float16"})):
            plan = plan_of(boards, (0, 3, 6), epoch=epoch, **settings)
            assert await manager.claim(epoch - 1, epoch) is None
            assert (await manager.prepare(plan))["loaded_bytes"] == 0
            assert (await manager.commit(epoch))["error"] is None
            before, slots = slots, holding.held.served[0].loaded.slots
            assert slots is not before and len(slots) == plan.slots

    on_board(go, count=2)


def test_loaded_bytes_count_the_shards_that_were_not_there(on_board):
    async def go(boards, holding, manager):
        said = []
        for epoch, cuts in enumerate(((0, 3, 6), (0, 4, 6), (0, 2, 6), (0, 6)), 1):
            assert await manager.claim(holding.epoch, epoch) is None
            said.append((await manager.prepare(plan_of(boards, cuts, epoch=epoch)))["loaded_bytes"])
            await manager.commit(epoch)
        return said

    said = on_board(go, count=2)
    # layers have 8, 9, 10, 11, 12 and 13 bytes, the ends 8 each
    assert said == [8 + 8 + 9 + 10, 11, 0, 10 + 11 + 12 + 13 + 8]


def test_without_room_beside_the_section_is_loaded_at_the_commit_when_the_old_one_is_gone(on_board, monkeypatch):
    free = 100 << 20

    async def go(boards, holding, manager):
        monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: free)
        await manager.take(plan_of(boards, (0, 3, 6)))
        old = weakref.ref(holding.stage.section), [weakref.ref(slot) for slot in holding.held.served[0].loaded.slots]
        monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 10 << 20)
        holding.offer_bytes = lambda: free
        there, load = [], holding._load

        def look(*args):
            there.append((old[0]() is not None, any(ref() is not None for ref in old[1])))
            return load(*args)

        holding._load = look
        boards.sections.clear()
        gc.disable()  # what is given up must go at once
        try:
            assert await manager.claim(1, 2) is None
            prepared = await manager.prepare(plan_of(boards, (0, 2, 6), epoch=2))
            assert prepared["beside"] is True  # its layers are a part of what is mapped already
            await manager.claim(1, 2)
            prepared = await manager.prepare(plan_of(boards, (0, 1, 6), epoch=2, slots=20_000))
            assert (prepared["error"], prepared["beside"]) == (None, False)
            there.clear()
            boards.sections.clear()
            assert holding.stage.epoch == 1
            assert (await manager.commit(2))["error"] is None
        finally:
            gc.enable()
        assert there == [(False, False)] and (holding.stage.section.start, holding.stage.section.end) == (0, 1)

    on_board(go, manifest=make_manifest(ram_bytes=30 << 20), count=2)


def test_a_load_that_fails_beside_leaves_the_running_section(on_board):
    async def go(boards, holding, manager):
        await manager.take(plan_of(boards))
        stage = holding.stage
        boards.broken.add("b0")
        assert await manager.claim(1, 2) is None
        said = await manager.prepare(plan_of(boards, epoch=2, slots=3))
        assert "SHA-256 differs" in said["error"] and said["epoch"] == 1
        assert "has not prepared" in (await manager.commit(2))["error"]
        assert holding.stage is stage and holding.claimed
        async with ClusterClient.dial(stage.plan, boards.addresses) as cluster:
            assert [c.token for c in await ask(cluster, PROMPT)] == generate(PROMPT, 10)

    on_board(go)


def test_a_load_that_fails_at_the_commit_leaves_an_epoch_without_a_section(on_board, monkeypatch):
    async def go(boards, holding, manager):
        await manager.take(plan_of(boards))
        monkeypatch.setattr(holding.room, "is_beside", lambda *_: False)
        boards.broken.add("b0")
        assert await manager.claim(1, 2) is None
        assert (await manager.prepare(plan_of(boards, epoch=2, slots=3)))["beside"] is False
        said = await manager.commit(2)
        assert "SHA-256 differs" in said["error"] and said["epoch"] == 2
        status = await manager.board.status()
        assert (status.epoch, status.plan, status.section, status.claimed) == (2, None, None, False)
        boards.broken.clear()
        assert "holds epoch 2" in await manager.claim(1, 3)
        await manager.take(plan_of(boards, epoch=3), replaces=2)
        assert holding.stage.epoch == 3

    on_board(go)


def test_a_plan_without_this_board_frees_what_it_held(on_board):
    async def go(boards, holding, manager):
        await manager.take(plan_of(boards, (0, 3, 6)))
        old = [weakref.ref(x) for x in (holding.stage.section, *holding.held.served[0].loaded.slots)]
        boards.sections.clear()
        other = Plan.from_dict({**plan_of(boards).to_dict(), "epoch": 2, "sections": [
            {"board": "b1", "start": 0, "end": 6}]})  # fmt: skip
        gc.disable()
        try:
            assert await manager.claim(1, 2) is None
            assert await manager.prepare(other) == {"error": None, "epoch": 1, "beside": True, "loaded_bytes": 0}
            assert await manager.commit(2) == {"error": None, "epoch": 2, "loaded_bytes": 0}
            assert [ref() for ref in old] == [None] * 3
        finally:
            gc.enable()
        status = await manager.board.status()
        assert (status.epoch, status.plan, status.section) == (2, None, None)
        assert "holds epoch 2" in await manager.claim(None, 3)  # nor can it be talked into an older plan
        await manager.take(plan_of(boards, epoch=3), replaces=2)

    on_board(go, count=2)


def test_a_section_that_needs_more_than_is_offered_is_refused_with_both_numbers(on_board):
    async def go(boards, holding, manager):
        await manager.claim(None, 1)
        return (await manager.prepare(plan_of(boards)))["error"]

    said = on_board(go, manifest=make_manifest(ram_bytes=300_000_000))
    assert said == "board b0 offers 1.07 GB now; layers 0-6 need 1.80 GB. Plan again."
