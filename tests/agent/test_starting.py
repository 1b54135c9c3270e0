"""Starts of answers on boards, and what those are told who wait, leave, or have an answer when a board can't go on."""

import asyncio

import pytest

from edgellm.errors import BoardError
from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from tests.agent.managers_by_hand import PROMPT, anext_failure, managers
from tests.fakes import Boards, ask, generate, run, until

# Start


def test_a_start_counts_once_and_only_for_who_has_opened(tmp_path):
    async def go():
        async with managers(tmp_path, 2) as (boards, manager, stranger):
            manager.subscribe(1)
            manager.open("b0", 1)
            manager.open("b1", 1, slot=(await manager.next(m.Opened, 1, "b0")).slot)
            await manager.next(m.Opened, 1, "b1")
            stranger.start(1)
            stranger.start(99)
            await stranger.clients["b0"].status()  # it has been there and changed nothing
            assert boards.agents[0].stage.engine.steps == 0
            manager.start(1)
            manager.start(1)
            ids = []
            while len(ids) < 5:
                ids += (await manager.next(m.Tokens, 1)).ids
            return ids, boards.sections["b0"].calls

    ids, calls = run(go())
    assert ids == generate(PROMPT, 5) and calls == [(0, 5, 7), (5, 2, 7), (7, 1, 8), (8, 1, 9), (9, 1, 10), (10, 1, 11)]


def test_a_start_behind_what_the_slot_holds_fails(tmp_path):
    async def go():
        async with managers(tmp_path, 1) as (_, manager):
            manager.subscribe(1)
            manager.open("b0", 1, reuse=7)
            await manager.next(m.Opened, 1)
            manager.start(1, reuse=3)
            return (await anext_failure(manager, 1)).reason

    assert run(go()) == "a start at position 3; the slot holds 0 tokens"


def test_only_the_first_board_is_started(tmp_path):
    async def go():
        async with managers(tmp_path, 1) as (_, manager):
            client = manager.clients["b1"]
            client.send(m.Start(manager.plan.epoch, 1))
            async with asyncio.timeout(5):
                return str(await client.lost)

    assert "refused: a start; board b1 isn't the first, b0 is" in run(go())


def test_a_slot_that_nobody_uses_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.stage._SWEEP_S", 0.01)
    monkeypatch.setattr("edgellm.agent.watch.START_TIMEOUT_S", 0.05)

    async def go():
        async with managers(tmp_path, 1, slots=1) as (boards, manager):
            manager.subscribe(1)
            manager.open("b0", 1)
            failed = await anext_failure(manager, 1)
            async with ClusterClient.dial(manager.plan, boards.addresses) as cluster:
                return failed.reason, [c.token for c in await ask(cluster, PROMPT)]

    reason, tokens = run(go())
    assert "held for 0.05 s without a start" in reason and tokens == generate(PROMPT, 10)


# Who waits isn't forgotten


def test_who_waits_is_told_when_the_board_stops_or_the_plan_changes(tmp_path):
    async def go():
        async with managers(tmp_path, 1, slots=1) as (boards, manager):
            manager.subscribe(1, 2)
            manager.open("b0", 1)
            manager.open("b0", 2, wait_s=30)
            await manager.next(m.Queued, 2)
            boards.agents[0].stop()
            first = await anext_failure(manager, 2)
            return m.FAILURES[first.code], first.reason, boards.agents[0].stage.running

    assert run(go()) == ("draining", "board b0 is stopping and takes no new prompts", 1)

    async def moved():
        async with managers(tmp_path, 1, slots=1) as (boards, manager):
            manager.subscribe(1, 2)
            manager.open("b0", 1)
            manager.open("b0", 2, wait_s=30)
            await manager.next(m.Queued, 2)
            await boards.form((0, 2, 6), epoch=2)
            return m.FAILURES[(await anext_failure(manager, 2)).code]

    assert run(moved()) == "epoch"


def test_a_manager_that_is_gone_leaves_the_line(tmp_path):
    async def go():
        async with managers(tmp_path, 2, slots=1) as (boards, gone, manager):
            manager.subscribe(1, 3)
            gone.subscribe(2)
            manager.open("b0", 1)
            await manager.next(m.Opened, 1)
            gone.open("b0", 2, wait_s=30)
            await gone.next(m.Queued, 2)
            manager.open("b0", 3, wait_s=30)
            assert (await manager.next(m.Queued, 3)).position == 2
            gone.clients["b0"].close()
            assert (await manager.next(m.Queued, 3)).position == 1

    run(go())


def test_leaving_waits_for_no_board(tmp_path):
    """Not for one that doesn't answer a close, and the slot is free at once."""

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=4096, slots=1)
            boards.agents[1].stage.close = lambda peer, message: None
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stats = {}
                stream = cluster.generate([1, 2, 3], sampling=Sampling(), max_tokens=2000, eos=(), stats=stats)
                await anext(stream)
                leaving = asyncio.ensure_future(stream.aclose())
                for _ in range(5):  # a few turns of the loop, and no answer of any board
                    await asyncio.sleep(0)
                assert leaving.done()
                await until(lambda: boards.agents[0].stage.engine.free_slots == 1)
                assert stats == {}

    run(go())


def test_an_answer_that_has_ended_for_who_asked_has_its_stats(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=4096, slots=1)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stats = {}
                stream = cluster.generate(
                    [1, 2, 3], sampling=Sampling(), max_tokens=2000, eos=(), stats=stats, ended=lambda: True
                )  # fmt: skip
                await anext(stream)
                await stream.aclose()
                return {board: told.prefill_tokens for board, told in stats.items()}

    assert run(go()) == {"b0": 3, "b1": 3}


def test_a_board_that_cannot_compute_says_so_and_systemd_is_left_to_restart_it(tmp_path, monkeypatch):
    fed = []
    monkeypatch.setattr("edgellm.agent.systemd.watchdog", lambda: fed.append(1))
    monkeypatch.setattr("edgellm.agent.serve._SWEEP_S", 0.01)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            engine, swept = boards.agents[1].stage.engine, []
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=40, eos=())
                await anext(stream)

                def broken(now_s, congested):
                    raise IndexError("a mistake of ours")

                engine._scheduler.next = broken
                with pytest.raises(BoardError, match="board b1 .*can't compute any more .*a mistake of ours") as ended:
                    async for _ in stream:
                        pass
                with pytest.raises(BoardError, match="board b1 can't compute any more and has to be restarted"):
                    await ask(cluster, PROMPT)
            await until(lambda: not engine.alive)
            boards.agents[0].stop()  # feeds too, and is none of our business
            await until(lambda: boards._tasks[0].done())
            monkeypatch.setattr(boards.agents[1].connections, "sweep", lambda: swept.append(1))
            await until(lambda: swept)
            fed.clear()
            await until(lambda: len(swept) > 3)
            assert not fed and boards.agents[1].holding.step_s == 0
            return ended.value.board

    assert run(go()) == "b1"
