"""Who may change a board's plan: one manager at a time, and only who knows what the board holds."""

import asyncio
import threading

import pytest

from edgellm.errors import BoardError
from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from tests.agent.changing import Manager, plan_of
from tests.agent.hostile import until
from tests.fakes import ask, generate

PROMPT = [5, 17, 3, 42, 8, 1, 90]



@pytest.mark.parametrize(
    ("held", "replaces", "epoch", "error"),
    [
        (None, None, 1, None),
        (None, None, 0, None),
        (None, None, 1 << 31, None),
        (None, 1, 2, "holds no plan; it was claimed for epoch 2 in place of epoch 1"),
        (5, 5, 6, None),
        (5, 5, 900, None),
        (5, 5, 5, "holds epoch 5; it was claimed for epoch 5 in place of epoch 5"),
        (5, 5, 4, "holds epoch 5; it was claimed for epoch 4"),
        (5, 4, 6, "holds epoch 5; it was claimed for epoch 6 in place of epoch 4"),
        (5, 6, 7, "holds epoch 5; it was claimed for epoch 7 in place of epoch 6"),
        (5, None, 6, "holds epoch 5; it was claimed for epoch 6 in place of no plan"),
        (5, 5, "6", "claim of epoch '6', replacing 5"),
        (5, 5.0, 6, "claim of epoch 6, replacing 5.0"),
        (5, True, 6, "claim of epoch 6, replacing True"),
        (5, 5, True, "claim of epoch True"),
        (5, [5], {}, "claim of epoch {}, replacing [5]"),
        (5, 5, 5 + (1 << 20), None),
        (5, 5, 6 + (1 << 20), "holds epoch 5 and takes epochs up to 1048581; it was claimed for epoch 1048582"),
        (5, 5, (1 << 32) - 1, "takes epochs up to 1048581; it was claimed for epoch 4294967295. Somebody has told"),
        (None, None, (1 << 32) - 1, None),  # a restart may follow any number of changes
        (None, None, 1 << 32, "holds no plan and takes epochs up to 4294967295"),
        ((1 << 32) - 2, (1 << 32) - 2, (1 << 32) - 1, None),
        ((1 << 32) - 1, (1 << 32) - 1, 1 << 32, "takes epochs up to 4294967295"),
    ],
)
def test_a_claim_counts_only_if_it_knows_what_is_held_and_is_above(on_board, held, replaces, epoch, error):
    async def go(boards, holding, manager):
        if held is not None:
            await manager.take(plan_of(boards, epoch=held))
        before = holding.epoch
        said = await manager.claim(replaces, epoch)
        assert holding.claimed is (said is None) and holding.epoch == before == held
        return said

    said = on_board(go)
    assert said is None if error is None else error in said


def test_a_second_claimer_is_refused_until_the_first_gives_it_back(on_board):
    async def go(boards, holding, manager):
        async with Manager.of(boards) as other:
            first = [await manager.claim(None, 1), await other.claim(None, 2), await other.claim(None, None)]
            assert holding.claimed  # giving back what isn't one's own changes nothing
            return [*first, await manager.claim(None, None), await other.claim(None, 2), await manager.claim(None, 1)]

    said = on_board(go)
    assert said == [
        None, "another manager is giving board b0 the plan of epoch 1", None,
        None, None, "another manager is giving board b0 the plan of epoch 2",
    ]  # fmt: skip


def test_a_manager_may_claim_again_and_what_it_had_prepared_is_gone(on_board):
    async def go(boards, holding, manager):
        await manager.claim(None, 1)
        await manager.prepare(plan_of(boards))
        assert await manager.claim(None, 2) is None
        return [(await manager.commit(epoch))["error"] for epoch in (1, 2)]

    said = on_board(go)
    assert said == [
        "board b0 was not claimed for epoch 1 on this connection", "board b0 has not prepared epoch 2"
    ]  # fmt: skip


def test_a_claim_is_free_again_when_its_manager_is_gone(on_board):
    async def go(boards, holding, manager):
        async with Manager.of(boards) as other:
            await other.claim(None, 1)
            await other.prepare(plan_of(boards))
            other.board.peer._transport.abort()
            await until(lambda: not holding.claimed)
        assert holding._next is None and not (await manager.board.status()).claimed
        await manager.take(plan_of(boards))

    on_board(go)


def test_a_claim_is_free_again_when_its_manager_falls_silent(on_board, monkeypatch):
    monkeypatch.setattr("edgellm.agent.serve._SWEEP_S", 0.02)

    async def go(boards, holding, manager):
        async with Manager.of(boards) as other:
            await other.claim(None, 1)
            other.board._watcher.cancel()  # as a manager whose machine lost its power
            monkeypatch.setattr("edgellm.agent.connections.MANAGER_SILENCE_S", 0.05)
            await until(lambda: not holding.claimed)

    on_board(go)


def test_no_claim_counts_on_the_old_epoch_while_a_board_gives_up_its_section(on_board):
    gate = threading.Event()
    gate.set()

    async def go(boards, holding, manager):
        first = plan_of(boards)
        await manager.take(first)
        async with ClusterClient.dial(first, boards.addresses) as cluster:
            gate.clear()
            answer = asyncio.create_task(ask(cluster, PROMPT))
            await until(lambda: holding.step_s > 0)
            async with Manager.of(boards) as other:
                assert await other.claim(1, 2) is None
                await other.prepare(plan_of(boards, epoch=2, slots=3))
                other.board.send(m.Commit({"epoch": 2}))
                await until(lambda: holding.stage is None)  # it waits for the running step
                assert await manager.claim(1, 2) == "another manager is giving board b0 the plan of epoch 2"
            await until(lambda: not holding.claimed)  # even if its manager is gone by now
            assert "holds epoch 2" in await manager.claim(1, 2)
            assert await manager.claim(2, 3) is None
            gate.set()
            assert (await manager.prepare(plan_of(boards, epoch=3)))["error"] is None
            assert holding.stage.epoch == 2  # what was begun was done
            with pytest.raises(BoardError, match="has moved on to epoch 2"):
                await answer

    on_board(go, gate=gate)


def test_a_board_that_stops_takes_no_claims_and_commits_nothing(on_board):
    async def go(boards, holding, manager):
        plan = plan_of(boards)
        await manager.take(plan)
        async with ClusterClient.dial(plan, boards.addresses) as cluster:
            stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=30, eos=())
            tokens = [(await anext(stream)).token]
            await manager.claim(1, 2)
            await manager.prepare(plan_of(boards, epoch=2))
            boards.agents[0].stop()
            stopping = "board b0 is stopping and takes no section"
            assert (await manager.commit(2))["error"] == stopping
            assert (await manager.prepare(plan_of(boards, epoch=2)))["error"] == stopping
            async with Manager.of(boards) as other:
                assert await other.claim(1, 2) == stopping
            tokens += [c.token async for c in stream]
        assert tokens == generate(PROMPT, 30)

    on_board(go)
