"""Gives boards a plan: claims each, has it load its section beside the old one, and has all switch.

The order of the messages, Claim → Assign → Commit on every board, is decided here and nowhere else.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from typing import Any

from edgellm.config import BOARD_SILENCE_S
from edgellm.errors import ClaimError, LoadError
from edgellm.manager.board import BoardClient
from edgellm.manager.connections import all_of
from edgellm.manager.survey import Fleet, other_models
from edgellm.plan import Plan
from edgellm.wire import messages as m

_CLAIM_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = max(900.0, BOARD_SILENCE_S)  # reading and hashing a section from a slow card


MayCommit = Callable[[Set[str]], Awaitable[bool]]


async def take(
    fleet: Fleet, plan: Plan, may_commit: MayCommit | None = None, without: Collection[str] = (),
    keep: Set[str] = frozenset(),
) -> dict[str, int] | None:  # fmt: skip
    """Give the surveyed boards `plan` as `give` does; those without a section in it give up what they hold, except for
    boards that are to be done `without`. Other models' plans with the digests in `keep` go on beside it, and so do
    those that stand and share no board with it."""
    apart = {d for d, p in other_models(fleet.reports).items() if not {*p.boards} & {*plan.boards}}
    keep = keep | apart

    def gives_up(board: str) -> bool:
        report = fleet.reports[board]
        return report.plan is not None or any(other.plan.digest not in keep for other in report.others)

    there = {b: r for b, r in fleet.reports.items() if b in plan.boards or (gives_up(b) and b not in without)}
    epochs = {b: r.epoch for b, r in there.items()}
    kept = {b: sorted(o.plan.digest for o in r.others if o.plan.digest in keep) for b, r in there.items()}
    boards = fleet.clients(epochs)
    return await give(plan, await fleet.sign(plan), boards, epochs, may_commit, kept)


async def give(
    plan: Plan, signed: Mapping[str, Any], boards: list[BoardClient], epochs: Mapping[str, int | None],
    may_commit: MayCommit | None = None, kept: Mapping[str, list[str]] | None = None,
) -> dict[str, int] | None:  # fmt: skip
    """Give `plan`, as it was `signed` with the addresses of its boards, to connected boards, which hold `epochs`.
    Return the bytes of shards that each board loaded. `kept` has, by board, the digests of other models' plans that go
    on there beside it.

    `may_commit(boards)` is asked once all are prepared, with the boards that have no room for the new section beside
    the old one. If it says no, the claims are returned, and so is None; if yes, and there are no such boards, answers
    that run end where they are. Without it, the change is needed, and running answers begin again on the new sections.

    Raises ClaimError if another manager is changing a board's plan, or has changed it; BoardError with the reason of
    the first board that can't load its section.
    """
    boards = await _claim(boards, epochs, plan.epoch)
    try:
        drain = may_commit is not None
        prepared = await all_of(_prepare(b, plan, signed, drain, (kept or {}).get(b.name, [])) for b in boards)
        in_place = {b.name for b, (_, beside) in zip(boards, prepared, strict=True) if not beside}
        if may_commit is not None and not await may_commit(in_place):
            _return_claims(boards)
            return None
        committed = await all_of(_commit(b, plan, drain and not in_place) for b in boards)
    except BaseException:
        for board in boards:  # frees the claims; and no late answer is taken for the next one
            board.close()
        raise
    return {b.name: c or p for b, (p, _), c in zip(boards, prepared, committed, strict=True)}


async def unload(fleet: Fleet, plan: Plan) -> bool:
    """Have the surveyed boards that serve `plan`, of the fleet's model, give it up, and nothing else; return whether
    any did. Raises ClaimError while answers of it run, or another manager is at work."""
    there = {b: r for b, r in fleet.reports.items() if r.plan == plan and r.shares}
    if not there:
        return False
    epochs = {b: r.epoch for b, r in there.items()}
    epoch = 1 + max(e or 0 for e in epochs.values())  # of the claim only: no plan takes it
    boards = await _claim(fleet.clients(there), epochs, epoch)
    try:
        question = m.Commit({"epoch": epoch, "unload": [plan.digest]})
        for answer in await all_of(b.ask(question, m.Committed, LOAD_TIMEOUT_S) for b in boards):
            if error := answer.content.get("error"):
                raise ClaimError(str(error))
    finally:
        _return_claims(boards)
    return True


async def _claim(boards: list[BoardClient], epochs: Mapping[str, int | None], epoch: int) -> list[BoardClient]:
    """Claim boards, which hold `epochs`, for an epoch; return them in the order of their names."""
    boards = sorted(boards, key=lambda b: b.name)
    claimed: list[BoardClient] = []
    try:
        for board in boards:  # one after the other, always in this order: two managers can't block each other
            claimed.append(board)
            claim = m.Claim({"replaces": epochs[board.name], "epoch": epoch})
            answer = await board.ask(claim, m.Claimed, _CLAIM_TIMEOUT_S)
            if error := answer.content.get("error"):
                raise ClaimError(str(error), board.name)
    except BaseException:
        _return_claims(claimed)
        raise
    return boards


def _return_claims(boards: list[BoardClient]) -> None:
    for board in boards:
        if not board.lost.done():
            board.send(m.Claim({"replaces": None, "epoch": None}))


async def _prepare(
    board: BoardClient, plan: Plan, signed: Mapping[str, Any], drain: bool, keep: list[str]
) -> tuple[int, bool]:
    """Return the bytes that the board has loaded or will load, and whether it has done so beside the old section."""
    content = {**signed, "board": board.name, "drain": drain, "keep": keep}
    answer = await board.ask(m.Assign(content), m.Assigned, LOAD_TIMEOUT_S)
    return _loaded_bytes(board, answer, plan), answer.content.get("beside") is True


async def _commit(board: BoardClient, plan: Plan, drain: bool) -> int:
    answer = await board.ask(m.Commit({"epoch": plan.epoch, "drain": drain}), m.Committed, LOAD_TIMEOUT_S)
    return _loaded_bytes(board, answer, plan)


def _loaded_bytes(board: BoardClient, answer: m.Assigned | m.Committed, plan: Plan) -> int:
    if error := answer.content.get("error"):
        own = plan.section_of(board.name) if board.name in plan.boards else None
        raise LoadError(str(board.error(str(error))), board.name, (own.start, own.end) if own else (0, 0))
    value = answer.content.get("loaded_bytes")
    return value if type(value) is int else 0
