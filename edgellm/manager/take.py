"""Gives boards a plan: claims each, has it load its section beside the old one, and has all switch.

The order of the messages, Claim → Assign → Commit on every board, is decided here and nowhere else.
"""

from collections.abc import Mapping

from edgellm.config import BOARD_SILENCE_S
from edgellm.errors import ClaimError
from edgellm.manager.board import BoardClient
from edgellm.manager.connections import all_of
from edgellm.manager.survey import Fleet
from edgellm.plan import Plan
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address

_CLAIM_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = max(900.0, BOARD_SILENCE_S)  # reading and hashing a section from a slow card


async def take(fleet: Fleet, plan: Plan) -> dict[str, int]:
    """Give the surveyed boards `plan`; those without a section in it give up what they hold. Return the bytes of
    shards that each board loaded."""
    epochs = {b: r.epoch for b, r in fleet.reports.items() if b in plan.boards or r.plan is not None}
    return await give(plan, {b: fleet.addresses[b] for b in plan.boards}, fleet.clients(epochs), epochs)


async def give(
    plan: Plan, addresses: Mapping[str, Address], boards: list[BoardClient], epochs: Mapping[str, int | None]
) -> dict[str, int]:
    """Give `plan` to connected boards, which hold `epochs`. Return the bytes of shards that each board loaded.

    Raises ClaimError if another manager is changing a board's plan, or has changed it; BoardError with the reason of
    the first board that can't load its section.
    """
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
        committed = await all_of(_commit(b, plan) for b in boards)
    except BaseException:
        for board in boards:  # frees the claims; and no late answer is taken for the next one
            board.close()
        raise
    return {b.name: c or p for b, p, c in zip(boards, prepared, committed, strict=True)}


async def _prepare(board: BoardClient, plan: Plan, addresses: Mapping[str, Address]) -> int:
    content = {"plan": plan.to_dict(), "addresses": dict(addresses), "board": board.name}
    return _loaded_bytes(board, await board.ask(m.Assign(content), m.Assigned, LOAD_TIMEOUT_S))


async def _commit(board: BoardClient, plan: Plan) -> int:
    return _loaded_bytes(board, await board.ask(m.Commit({"epoch": plan.epoch}), m.Committed, LOAD_TIMEOUT_S))


def _loaded_bytes(board: BoardClient, answer: m.Assigned | m.Committed) -> int:
    if error := answer.content.get("error"):
        raise board.error(str(error))
    value = answer.content.get("loaded_bytes")
    return value if type(value) is int else 0
