"""Changing the plan: boards are claimed in one fixed order, load their sections beside the old ones, and switch."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgellm.config import BOARD_SILENCE_S
from edgellm.errors import BoardError, ClaimError, PlanError
from edgellm.manager.board import BoardClient
from edgellm.manager.client import all_of
from edgellm.manager.survey import Fleet, newest_plan, standing_plan
from edgellm.plan import Move, Plan, Settings, next_plan
from edgellm.wire import messages as m

_CLAIM_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = max(900.0, BOARD_SILENCE_S)  # reading and hashing a section from a slow card


@dataclass(frozen=True)
class Outcome:
    """A plan that stands. `move` is why (None: nothing was looked for); `changed` whether boards took a new plan;
    `loaded_bytes` of shards that each board loaded for it."""

    plan: Plan
    move: Move | None
    changed: bool
    loaded_bytes: dict[str, int]


async def propose(fleet: Fleet, settings: Settings, fallback: Plan | None = None, *, any_shard=False) -> Move:
    """The next plan for the boards that the last survey found; `fallback` counts as current if no board holds a plan.

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
    """A plan that all its boards hold, after a survey: the one that stands, or the next one, which is then taken.

    With `grow` a standing plan is weighed against a better one; without, it is good enough. `settings` default to those
    of the current plan. Raises PlanError if the boards can't hold the model, ClaimError if another manager is at it,
    BoardError if one fails meanwhile: survey again, then.
    """
    reports = fleet.reports
    standing = standing_plan(reports)
    if standing is not None and settings is not None:
        places = {b: fleet.addresses[b] for b in standing.boards}
        if standing.settings != settings or any(reports[b].addresses != places for b in standing.boards):
            standing = None  # not what is asked for; or a board has moved, and its neighbours must be told
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
        reason = "the same sections, taken again: a board has come back without its own"
        move = replace(move, plan=plan, changed=True, reason=reason)
    tell(f"epoch {plan.epoch}: {_sections(plan)}")
    loaded = await take(fleet, plan)
    return Outcome(plan, move, True, loaded)


async def take(fleet: Fleet, plan: Plan) -> dict[str, int]:
    """Have the surveyed boards take `plan`; those without a section in it give up what they hold. Returns the bytes of
    shards that each loaded."""
    epochs = {b: r.epoch for b, r in fleet.reports.items() if b in plan.boards or r.plan is not None}
    return await _take(plan, {b: fleet.addresses[b] for b in plan.boards}, fleet.clients(epochs), epochs)


async def assign(plan: Plan, addresses: dict[str, tuple[str, int]], boards: list[BoardClient]) -> dict[str, int]:
    """As `take`, for boards that are connected and may hold anything. Raises BoardError with the first one's reason."""
    epochs = {b.name: (await b.status()).get("epoch") for b in boards}
    return await _take(plan, addresses, boards, epochs)


async def _take(plan: Plan, addresses: dict, boards: list[BoardClient], epochs: dict[str, int | None]) -> dict:
    boards = sorted(boards, key=lambda b: b.name)
    claimed: list[BoardClient] = []
    try:
        for board in boards:  # one after the other, always in this order: two managers can't block each other
            claimed.append(board)
            claim = m.Claim({"replaces": epochs[board.name], "epoch": plan.epoch})
            answer = await board.ask(claim, m.Claimed, _CLAIM_TIMEOUT_S)
            if error := answer.content.get("error"):
                raise ClaimError(str(error), board.name)
    except BaseException:
        for board in claimed:
            if not board.lost.done():
                board.send(m.Claim({"replaces": None, "epoch": None}))
        raise
    try:
        prepared = await all_of(_prepare(b, plan, addresses) for b in boards)
        committed = await all_of(_ask(b, m.Commit({"epoch": plan.epoch}), m.Committed) for b in boards)
    except BaseException:
        for board in boards:  # frees the claims; and no late answer is taken for the next one
            board.close()
        raise
    return {b.name: _bytes(c) or _bytes(p) for b, p, c in zip(boards, prepared, committed, strict=True)}


async def _prepare(board: BoardClient, plan: Plan, addresses: dict) -> dict:
    content = {"plan": plan.to_dict(), "addresses": addresses, "board": board.name}
    return await _ask(board, m.Assign(content), m.Assigned)


async def _ask(board: BoardClient, message, answer: type) -> dict:
    content = (await board.ask(message, answer, LOAD_TIMEOUT_S)).content
    if content.get("error"):
        raise board.error(str(content["error"]))
    return content


def _next_epoch(reports, *known: Plan | None) -> int:
    """One above all that is known, also of boards that have forgotten since."""
    return 1 + max([0, *(r.epoch or 0 for r in reports.values()), *(p.epoch for p in known if p is not None)])


def _bytes(content: dict) -> int:
    value = content.get("loaded_bytes")
    return value if type(value) is int else 0


def _sections(plan: Plan) -> str:
    return ", ".join(f"{s.board} {s}" for s in plan.sections)
