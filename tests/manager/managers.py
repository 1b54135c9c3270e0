"""Managers as the tests have them: each comes, looks, changes the plan or asks, and goes."""

from edgellm.manager.rebalance import Outcome, settle
from edgellm.manager.session import Session
from edgellm.manager.survey import Fleet, standing_plan
from edgellm.plan import Plan, Settings
from edgellm.sampling import Sampling
from tests.fakes import Boards

PROMPT = [5, 17, 3, 42, 8, 1, 90]
SETTINGS = Settings(64, 2, 5, "float32", "throughput")


def fleet_of(boards: Boards) -> Fleet:
    return Fleet(boards.manifest, boards.addresses)


async def changed(boards: Boards, settings: Settings = SETTINGS, grow: bool = True) -> Outcome:
    """A manager that comes, looks, gives the boards what suits them, and goes."""
    async with fleet_of(boards) as fleet:
        await fleet.survey()
        return await settle(fleet, settings, grow=grow)


async def answer(boards: Boards, plan: Plan, count: int = 20, **kwargs) -> list[int]:
    """What another manager is told, that knows `plan` only."""
    async with Session(boards.manifest, plan, boards.addresses, patience_s=10, **kwargs) as session:
        stream = session.generate(PROMPT, sampling=Sampling(), max_tokens=count, eos=())
        return [chosen.token async for chosen in stream]


async def held(boards: Boards) -> tuple[Plan | None, list[str]]:
    """The plan that stands, and the boards that are claimed."""
    async with fleet_of(boards) as fleet:
        await fleet.survey()
        return standing_plan(fleet.reports), [b for b, r in fleet.reports.items() if r.claimed]


def sections(plan: Plan) -> list[tuple[str, int, int]]:
    return [(s.board, s.start, s.end) for s in plan.sections]
