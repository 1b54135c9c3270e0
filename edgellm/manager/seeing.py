"""What boards see of each other, asked before a plan is changed."""

from collections.abc import Set

from edgellm.errors import BoardError
from edgellm.manager.connections import all_of
from edgellm.manager.failures import Failures
from edgellm.manager.survey import Fleet, newest_plan
from edgellm.plan import Plan
from edgellm.plan.around import links


async def check_it_sees_enough(fleet: Fleet, plan: Plan, met: Set[str]) -> None:
    """Raise BoardError if `plan`, or a newer one, stands for others: boards that this manager has never `met` are
    reached by boards of that plan. One that sees less than the others changes nothing."""
    newest = newest_plan(fleet.reports)
    if newest is None or newest.epoch < plan.epoch:
        return
    unseen = [b for b in newest.boards if b not in fleet.reports]
    askers = [b for b in newest.boards if b in fleet.reports and fleet.reports[b].plan == newest]
    never_met = unseen and not met & set(unseen) and fleet.unreached.issuperset(unseen)
    if not never_met or not askers or len(unseen) + len(askers) < len(newest.boards):
        return
    asker = next((a for a, b in links(newest) if a in askers and b in unseen), askers[0])
    places = fleet.reports[asker].addresses
    reached = await fleet.reached_by(asker, {b: places[b] for b in unseen if b in places})
    if reached == set(unseen):
        board = unseen[0]
        raise BoardError(
            f"{fleet.missing.get(board, f'board {board} does not answer')}, but board {asker} reaches it. The plan "
            "stays as it is, because other managers may use it. Check the network between this machine and "
            f"{board}.", board,
        )  # fmt: skip


async def try_ways(fleet: Fleet, failures: Failures, now_s: float) -> None:
    """Have boards dial those that they say they couldn't reach, or that an answer couldn't get to, and tell `failures`
    which they can't reach now."""
    reports = fleet.reports
    said = {(a, b) for a, r in reports.items() for b, link in r.links.items() if link.broken}
    pairs = {(a, b) for a, b in said | failures.suspected(now_s) if a in reports and b in reports}
    pairs -= failures.broken(now_s).keys()
    tries = {a: {b: fleet.addresses[b] for x, b in pairs if x == a} for a, _ in pairs}
    if not tries:
        return
    reached = dict(zip(tries, await all_of(fleet.reached_by(a, tries[a]) for a in tries), strict=True))
    for a, b in pairs:
        if b not in reached[a]:
            link = reports[a].links.get(b)
            why = link.reason if link is not None and link.broken else "it can't reach it now"
            failures.way_failed((a, b), f"board {a} can't reach board {b}: {why}", now_s, certain=True)
