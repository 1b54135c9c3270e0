"""Several managers at once, and managers and boards that die while the plan changes: one plan stands at the end, and no
answer is ever wrong."""

import asyncio
import contextlib
import random
import threading
from dataclasses import replace

import pytest

from edgellm.errors import BoardError, ClaimError
from edgellm.manager.board import BoardClient
from edgellm.manager.rebalance import settle, take
from edgellm.wire import messages as m
from tests.fakes import generate, make_plan, run, until
from tests.manager.managers import PROMPT, SETTINGS, answer, changed, fleet_of, held

pytestmark = pytest.mark.usefixtures("quick")


# Several managers


def test_of_two_managers_one_is_told_that_the_other_is_at_it(boards_of):
    async def go():
        async with boards_of(3) as boards:
            await changed(boards)
            async with fleet_of(boards) as first, fleet_of(boards) as second:
                await asyncio.gather(first.survey(), second.survey())
                (claimed,) = first.clients(["b1"])
                claim = m.Claim({"replaces": 1, "epoch": 7})
                assert (await claimed.ask(claim, m.Claimed)).content["error"] is None
                with pytest.raises(ClaimError, match="another manager is giving board b1 the plan of epoch 7"):
                    await take(second, make_plan(boards.manifest, (0, 1, 3, 6), epoch=2))
                await second.survey()
                assert not second.reports["b0"].claimed  # given back
                # What stands is good enough; what must change has to wait.
                assert not (await settle(second, grow=True)).changed
                with pytest.raises(ClaimError, match="another manager is giving board b1 a plan"):
                    await settle(second, replace(SETTINGS, context=80), grow=False)
                first.drop("b1")
                await until(lambda: not boards.agents[1].holding.claimed)
                await second.survey()
                assert (await settle(second, replace(SETTINGS, context=80), grow=False)).changed
                # The first one's survey is out of date by now.
                await first.survey(needed=["b1"])
                first.reports = {b: replace(r, epoch=1) for b, r in first.reports.items()}
                with pytest.raises(ClaimError, match="board b0 holds epoch 2; it was claimed for epoch 3 in place of"):
                    await take(first, make_plan(boards.manifest, (0, 1, 3, 6), epoch=3))

    run(go())


@pytest.mark.parametrize("seed", range(3))
def test_managers_that_all_change_the_plan_at_once_leave_one_that_stands_and_no_wrong_answer(boards_of, seed):
    rng = random.Random(seed)

    async def go():
        async with boards_of(4) as boards:
            first = (await changed(boards)).plan
            changes, answers = 0, []

            async def manager(context: int):
                nonlocal changes
                async with fleet_of(boards) as fleet:
                    for i in range(12):
                        with contextlib.suppress(BoardError):
                            await fleet.survey()
                            await asyncio.sleep(rng.random() * 0.01)
                            settings = replace(SETTINGS, context=context, slots=3 + i % 2)
                            changes += (await settle(fleet, settings, grow=True)).changed
                        await asyncio.sleep(rng.random() * 0.01)

            async def asker():
                while not all(task.done() for task in managers):
                    answers.append(await answer(boards, first, 40))

            managers = [asyncio.create_task(manager(context)) for context in (64, 80)]
            await asyncio.gather(*managers, asker(), asker())
            assert {b.holding.claimed for b in boards.agents} == {False}
            final = await changed(boards, grow=False)
            return changes, answers, final, await held(boards)

    changes, answers, final, (standing, claimed) = run(go())
    assert changes >= 4 and answers and all(tokens == generate(PROMPT, 40) for tokens in answers)
    assert standing == final.plan and not claimed


# Managers and boards that die on the way


class Died(Exception):
    """Stands for the end of a manager's process."""


def dying(monkeypatch, at: int, after_sending: bool):
    """The first manager to ask so many claims, assigns and commits dies at number `at`: all its connections end."""
    ask, clients, count = BoardClient.ask, [], 0

    async def counted(board, message, answer, *args):
        nonlocal count
        if isinstance(message, m.Claim | m.Assign | m.Commit):
            clients.append(board)
            count += 1
            if count == at:
                if after_sending:
                    await ask(board, message, answer, *args)
                for client in clients:
                    client.peer._transport.abort()
                raise Died
            if count > at:
                await asyncio.Event().wait()  # it dies before it sends any more
        return await ask(board, message, answer, *args)

    monkeypatch.setattr(BoardClient, "ask", counted)


@pytest.mark.parametrize("after_sending", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 13))
def test_a_manager_that_dies_anywhere_between_claim_and_commit_is_healed_by_the_next(
    boards_of, monkeypatch, at, after_sending
):
    async def go():
        async with boards_of(3) as boards:
            await changed(boards)
            await boards.start(3)
            with monkeypatch.context() as patch:
                dying(patch, at, after_sending)
                with pytest.raises(Died):
                    await changed(boards)
                await until(lambda: not any(agent.holding.claimed for agent in boards.agents))
            told = []
            plan = make_plan(boards.manifest, (0, 2, 4, 6))
            assert await answer(boards, plan, tell=told.append) == generate(PROMPT, 20)
            standing, claimed = await held(boards)
            assert standing is not None and not claimed
            return standing.epoch, told

    # Claims, assigns and commits of four boards; what isn't committed leaves the plan before.
    epoch, told = run(go())
    if at <= 8 or (at == 9 and not after_sending):
        assert (epoch, told) == (1, [])
    else:
        assert epoch in (2, 3)


@pytest.mark.parametrize("when", ["claim", "prepare", "commit"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_board_that_is_lost_while_the_plan_changes_is_left_out_by_the_next_plan(boards_of, when, lost):
    async def go():
        async with boards_of(3) as boards:
            first = (await changed(boards)).plan
            holding = boards.agents[lost].holding
            if when == "claim":

                def claim(peer, content):
                    boards._tasks[lost].cancel()

                holding.claim = claim
            else:

                async def end(*args):
                    boards._tasks[lost].cancel()
                    await asyncio.Event().wait()

                setattr(holding, when, end)
            with pytest.raises(BoardError, match=f"b{lost}"):
                await changed(boards, replace(SETTINGS, context=80))
            assert await answer(boards, first) == generate(PROMPT, 20)
            standing, claimed = await held(boards)
            assert f"b{lost}" not in standing.boards and not claimed
            return standing

    standing = run(go())
    assert len(standing.boards) == 2


def test_a_board_that_can_not_load_keeps_all_on_the_plan_before(boards_of):
    async def go():
        async with boards_of(3) as boards:
            first = (await changed(boards)).plan
            boards.broken.add("b1")
            with pytest.raises(BoardError, match=r"board b1 .*SHA-256 differs"):
                await changed(boards, replace(SETTINGS, context=80))
            assert (await held(boards)) == (first, [])
            assert await answer(boards, first) == generate(PROMPT, 20)

    run(go())


def test_an_answer_that_comes_late_is_not_taken_for_the_next_plan_s(boards_of):
    """b0 fails at once while b1 still loads; the same manager comes again before b1 has answered, and now b1 fails."""

    async def go():
        async with boards_of(2) as boards:
            first = (await changed(boards)).plan
            go_on, load = threading.Event(), boards.agents[1].holding._load

            def first_slow_then_broken(*args):
                assert go_on.wait(10)
                section = load(*args)
                boards.broken.add("b1")
                return section

            async with fleet_of(boards) as fleet:
                await fleet.survey()
                boards.broken.add("b0")
                boards.agents[1].holding._load = first_slow_then_broken
                with pytest.raises(BoardError, match="b0 .*SHA-256 differs"):
                    await settle(fleet, replace(SETTINGS, context=80), grow=False)
                boards.broken.clear()
                await until(lambda: not any(agent.holding.claimed for agent in boards.agents))
                await fleet.survey()
                again = asyncio.create_task(settle(fleet, replace(SETTINGS, context=96), grow=False))
                await until(lambda: boards.agents[1].dispatcher._changes == 2)
                assert not again.done()
                go_on.set()
                with pytest.raises(BoardError, match="b1 .*SHA-256 differs"):
                    await again
            assert await held(boards) == (first, [])  # nobody was told to commit

    run(go())
