"""Decides between the plan that the boards hold and the next one, which they are then given."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edgellm.errors import BoardError, ClaimError, PlanError
from edgellm.manager.survey import Fleet, Report, newest_plan, standing_plan
from edgellm.manager.take import take
from edgellm.plan import Move, Plan, Settings, next_plan


@dataclass(frozen=True)
class Outcome:
    """A plan that stands. `move` is why (None: nothing was looked for); `changed` whether boards took a new plan;
    `loaded_bytes` of shards that each board loaded for it."""

    plan: Plan
    move: Move | None
    changed: bool
    loaded_bytes: dict[str, int]


async def propose(
    fleet: Fleet, settings: Settings, fallback: Plan | None = None, *, any_shard: bool = False
) -> Move:
    """Return the next plan for the boards that the last survey found; `fallback` counts as current if no board holds a
    plan.

    `any_shard`: shards may still be pushed, so what lies on the boards' disks doesn't bind. Raises PlanError with what
    is missing if the model doesn't fit on these boards.
    """
    reports = fleet.reports
    if not reports:
        raise BoardError("no board answers: " + "; ".join(fleet.missing.values()))
    current = newest_plan(reports) or fallback
    if current is not None and current.manifest_sha256 != fleet.manifest.sha256:
        current = None
    epoch = _next_epoch(reports, current, fallback)
    shards = None if any_shard else {b: r.shards for b, r in reports.items()}
    held = {b: r.held for b, r in reports.items()}
    capacities = [reports[b].capacity for b in sorted(reports)]
    return await asyncio.to_thread(
        next_plan, fleet.manifest, current, capacities, settings, epoch, shards=shards, held=held
    )


async def settle(
    fleet: Fleet, settings: Settings | None = None, fallback: Plan | None = None, *, grow: bool,
    tell: Callable[[str], None] = lambda text: None,
) -> Outcome:  # fmt: skip
    """Return a plan that all its boards hold, after a survey: the one that stands, or the next one, which is then
    taken.

    With `grow` a standing plan is weighed against a better one; without, it is good enough. `settings` default to those
    of the current plan. Raises PlanError if the boards can't hold the model, ClaimError if another manager is at it,
    BoardError if one fails meanwhile: survey again, then.
    """
    reports = fleet.reports
    standing = standing_plan(reports)
    if standing is not None and settings is not None:
        places = {b: fleet.addresses[b] for b in standing.boards}
        if standing.settings != settings or any(reports[b].addresses != places for b in standing.boards):
            standing = None  # not what was requested; or a board has a new address, which its neighbours must learn
    if standing is not None and (not grow or any(r.claimed for r in reports.values())):
        return Outcome(standing, None, False, {})
    if not reports:
        raise BoardError("no board answers: " + "; ".join(fleet.missing.values()))
    if claimed := sorted(r.board for r in reports.values() if r.claimed):
        raise ClaimError(f"another manager is giving board {claimed[0]} a plan")
    current = standing or newest_plan(reports) or fallback
    if settings is None:
        if current is None:
            raise PlanError("no board holds a plan. Deploy again.")
        settings = current.settings
    move = await propose(fleet, settings, fallback)
    if standing is not None and not move.changed:
        return Outcome(standing, move, False, {})
    plan = move.plan
    if not move.changed:
        plan = replace(plan, epoch=_next_epoch(reports, plan, fallback))
        reason = "the same sections again, because a board has come back without its own"
        move = replace(move, plan=plan, changed=True, reason=reason)
    tell(f"epoch {plan.epoch}: {_sections(plan)}")
    loaded = await take(fleet, plan)
    return Outcome(plan, move, True, loaded)


def _next_epoch(reports: Mapping[str, Report], *known: Plan | None) -> int:
    """Return one above all that is known, also of boards that have forgotten since."""
    return 1 + max([0, *(r.epoch or 0 for r in reports.values()), *(p.epoch for p in known if p is not None)])


def _sections(plan: Plan) -> str:
    return ", ".join(f"{s.board} {s}" for s in plan.sections)
