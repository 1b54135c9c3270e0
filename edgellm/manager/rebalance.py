"""Decides between the plan that the boards hold and the next one, which they are then given."""

import asyncio
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace

from edgellm.errors import BoardError, ClaimError, OtherModelError, PlanError
from edgellm.manager.survey import Fleet, Report, newest_plan, standing_plan
from edgellm.manager.take import MayCommit, take
from edgellm.plan import Move, Plan, Settings
from edgellm.plan.around import Pair, links, plan_around


@dataclass(frozen=True)
class Outcome:
    """A plan that stands. `move` is why (None: nothing was looked for); `changed` whether boards took a new plan;
    `loaded_bytes` of shards that each board loaded for it."""

    plan: Plan
    move: Move | None
    changed: bool
    loaded_bytes: dict[str, int]


@dataclass(frozen=True)
class Avoid:
    """What the next plan does without, and why: `loads` of boards, which get nothing that they don't hold already;
    `pairs` (who dials, whom); `boards` altogether. `keep` has the digests of other models' plans that go on beside it,
    and whose RAM it does without."""

    loads: Mapping[str, str] = field(default_factory=dict)
    pairs: Mapping[Pair, str] = field(default_factory=dict)
    boards: Mapping[str, str] = field(default_factory=dict)
    keep: Set[str] = frozenset()

    def disturbs(self, reports: Mapping[str, Report]) -> bool:
        """Return whether boards may have to give up another model's section for the next plan."""
        return any(
            other.plan.digest not in self.keep
            for b, r in reports.items() if b not in self.boards for other in r.others
        )  # fmt: skip


NOTHING = Avoid()


def serving_plan(reports: Mapping[str, Report], known: Plan | None, broken: Set[Pair] = frozenset()) -> Plan | None:
    """Return the plan that stands and needs none of the `broken` pairs; None if there is none."""
    standing = standing_plan(reports, known)
    return standing if standing is not None and not links(standing) & broken else None


async def propose(
    fleet: Fleet, settings: Settings, fallback: Plan | None = None, *, any_shard: bool = False, avoid: Avoid = NOTHING
) -> Move:
    """Return the next plan for the boards that the last survey found; `fallback` counts as current if no board holds a
    plan.

    `any_shard`: shards may still be pushed, so what lies on the boards' disks doesn't bind. Raises PlanError with what
    is missing if the model doesn't fit on these boards.
    """
    if not fleet.reports:
        raise BoardError("no board answers: " + "; ".join(fleet.missing.values()))
    reports = {b: r for b, r in fleet.reports.items() if b not in avoid.boards}
    current = newest_plan(fleet.reports) or fallback
    if current is not None and current.manifest_sha256 != fleet.manifest.sha256:
        current = None
    epoch = next_epoch(fleet.reports, current, fallback)
    # Slots of generic sections are larger, and a plan must fit wherever its layers go.
    generic = any(r.is_generic for r in reports.values())
    manifest = fleet.manifest.as_generic() if generic else fleet.manifest
    shards = {b: r.shards for b, r in reports.items()}
    for board in avoid.loads.keys() & reports.keys():
        held = reports[board].held
        shards[board] &= {s.name for s in manifest.section_shards(*held)} if held else frozenset()
    capacities = [reports[b].beside(avoid.keep) for b in sorted(reports)]
    try:
        return await asyncio.to_thread(
            plan_around, manifest, current, capacities, settings, epoch, avoid.pairs.keys(),
            shards=None if any_shard else shards, held={b: r.held for b, r in reports.items()},
        )  # fmt: skip
    except PlanError as e:
        reasons = [*(avoid.loads[b] for b in sorted(avoid.loads.keys() & reports.keys())), *avoid.boards.values()]
        if not reasons:
            raise
        without = "; ".join(reason.rstrip(".") for reason in reasons)
        raise PlanError(f"{without}. Without: {e}", f"{without}. Without: {e.brief}") from None


async def settle(
    fleet: Fleet, settings: Settings | None = None, fallback: Plan | None = None, *, grow: bool,
    tell: Callable[[str], None] = lambda text: None, avoid: Avoid = NOTHING, may_commit: MayCommit | None = None,
) -> Outcome:  # fmt: skip
    """Return a plan that all its boards hold, after a survey: the one that stands, or the next one, which is then
    taken.

    With `grow` a standing plan is weighed against a better one; without, it is good enough. `settings` default to those
    of the current plan, and a plan older than `fallback` doesn't stand. `may_commit` is `give`'s, for a plan without
    which the model can't answer.

    Raises PlanError if the boards can't hold the model, ClaimError if another manager is at it, OtherModelError if
    `may_commit` says no, LoadError or another BoardError if one fails meanwhile: survey again, then.
    """
    reports = fleet.reports
    standing = serving_plan(reports, fallback, avoid.pairs.keys())
    if standing is not None and settings is not None:
        places = {b: fleet.addresses[b] for b in standing.boards}
        if standing.settings != settings or any(reports[b].addresses != places for b in standing.boards):
            standing = None  # not what was requested; or a board has a new address, which its neighbours must learn
    claimed = sorted(b for b, r in reports.items() if r.claimed and b not in avoid.boards)
    if standing is not None and (not grow or claimed):
        return Outcome(standing, None, False, {})
    if not reports:
        raise BoardError("no board answers: " + "; ".join(fleet.missing.values()))
    if claimed:
        raise ClaimError(f"another manager is giving board {claimed[0]} a plan")
    current = standing or newest_plan(reports) or fallback
    if settings is None:
        if current is None:
            raise PlanError("no board holds a plan. Deploy again.")
        settings = current.settings
    move = await propose(fleet, settings, fallback, avoid=avoid)
    if standing is not None and not move.changed:
        return Outcome(standing, move, False, {})
    if not move.changed:
        plan = replace(move.plan, epoch=next_epoch(reports, move.plan, fallback))
        reason = "the same sections again, because a board has come back without its own"
        move = replace(move, plan=plan, changed=True, reason=reason)
    if may_commit is None:
        tell(describe(move.plan))
    may_commit = may_commit if standing is None else _in_any_case
    loaded = await take(fleet, move.plan, may_commit, avoid.boards, avoid.keep)
    if loaded is None:
        raise OtherModelError(still_answer(reports))
    return Outcome(move.plan, move, True, loaded)


def still_answer(reports: Mapping[str, Report]) -> str:
    """Return the sentence for boards that have answers of another model to finish."""
    models = sorted({other.plan.model for r in reports.values() for other in r.others})
    return f"the boards still answer with {' and '.join(models) or 'another model'}; they change over once that is done"


async def _in_any_case(in_place: Set[str]) -> bool:
    """Let a change that could be done without go on, also where answers must begin again for it."""
    return True


def describe(plan: Plan) -> str:
    """Return a plan in a few words."""
    return f"epoch {plan.epoch}: {', '.join(f'{s.board} {s}' for s in plan.sections)}"


def next_epoch(reports: Mapping[str, Report], *known: Plan | None) -> int:
    """Return one above all that is known, also of boards that have forgotten since."""
    return 1 + max([0, *(r.epoch or 0 for r in reports.values()), *(p.epoch for p in known if p is not None)])
