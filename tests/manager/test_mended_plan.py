"""A plan that a disturbed start made: noticed by the boards' own steps, mended once, and then left alone."""

import random

import pytest

from edgellm.manager.rebalance import propose, settle
from edgellm.manager.session import Session
from edgellm.manager.survey import Fleet
from edgellm.plan import Settings
from tests.fakes import GREEDY, Boards, make_manifest, run, until

pytestmark = pytest.mark.usefixtures("quick")

PROMPT = [5, 17, 3]
SETTINGS = Settings(64, 2, 8, objective="throughput")


async def answered(session: Session, count: int) -> list[int]:
    stream = session.generate(list(PROMPT), sampling=GREEDY, max_tokens=count, eos=(), speculate=False)
    return [chosen.token async for chosen in stream]


def cuts(plan) -> list[tuple[str, int]]:
    return sorted((s.board, s.num_layers) for s in plan.sections)


@pytest.fixture
def at_once(monkeypatch):
    """A board's times count as soon as they differ."""
    monkeypatch.setattr("edgellm.agent.settled.HOLD_S", 0.0)


def test_a_plan_of_a_disturbed_start_is_mended_once_and_then_stays(tmp_path, at_once):
    """b0 was busy when it measured itself: three times as slow as it is."""
    noise = random.Random(1)

    async def go():
        async with Boards(tmp_path, 2, make_manifest(32), start_s={"b0": 0.003}, head_s=0.0) as boards:
            async with Fleet(boards.manifest, boards.addresses) as fleet:
                await fleet.survey()
                plan = (await settle(fleet, SETTINGS, grow=True)).plan
                disturbed = cuts(plan)
                for pace in boards.paces.values():
                    pace.layer_s = 0.001
                told: list[str] = []
                async with Session(boards.manifest, plan, boards.addresses, tell=told.append) as session:
                    whole = [len(await answered(session, 40)) == 40]
                    await fleet.survey()
                    off = {b: r.is_off for b, r in fleet.reports.items()}
                    keeper = session.keeper
                    keeper.look()
                    await keeper.finish(20, told.append)
                    mended, moves = keeper.plan, []
                    for _ in range(20):
                        for pace in boards.paces.values():
                            pace.layer_s = 0.001 * noise.uniform(0.92, 1.08)
                        whole.append(len(await answered(session, 40)) == 40)
                        await fleet.survey()
                        moves.append((await propose(fleet, SETTINGS, mended)).changed)
                        keeper.look()
                        await keeper.finish(20, told.append)
                    return disturbed, off, mended, moves, keeper.plan, whole

    disturbed, off, mended, moves, at_the_end, whole = run(go(), 60)
    assert disturbed == [("b0", 8), ("b1", 24)]
    assert off == {"b0": True, "b1": False}
    assert cuts(mended) == [("b0", 16), ("b1", 16)] and mended.epoch == 2
    assert moves == [False] * 20 and at_the_end == mended
    assert all(whole)


def test_a_spare_board_that_was_busy_at_its_start_is_measured_again(tmp_path, monkeypatch, at_once):
    """It computes no steps that could tell, and no plan would ever have it."""
    monkeypatch.setattr("edgellm.agent.serve._TIME_AGAIN_S", 0.01)
    monkeypatch.setattr("edgellm.agent.serve._TIMES_AGAIN", 10**6)

    async def go():
        async with Boards(tmp_path, 2, make_manifest(32), start_s={"b1": 9.0}, head_s=0.0) as boards:
            async with Fleet(boards.manifest, boards.addresses) as fleet:
                await fleet.survey()
                plan = (await settle(fleet, SETTINGS, grow=True)).plan
                boards.start_s["b1"] = 0.001
                await until(lambda: boards.paces["b1"].start.layer_s == 0.001)
                boards.start_s["b1"] = 2.0  # the next disturbance changes nothing
                await fleet.survey()
                return plan, (await propose(fleet, SETTINGS, plan)).plan, fleet.reports["b1"].capacity.layer_s

    before, after, layer_s = run(go())
    assert (cuts(before), cuts(after)) == ([("b0", 32)], [("b0", 16), ("b1", 16)])
    assert layer_s == 0.001
