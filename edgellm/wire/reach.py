"""Whether one board reaches another: what a manager asks a board to try, and what came of it, parsed.

Both sides are hostile until parsed: `tries_of` refuses what no manager would ask, `outcomes_of` takes nonsense for an
unknown outcome.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.errors import DIAL_CODES, RemoteProtocolError
from edgellm.plan.types import BOARD_NAME
from edgellm.wire.addresses import Address, parse_address
from edgellm.wire.printable import printable

MAX_TRIES = 64  # boards that one Reach may name
MAX_DIALS = 8  # boards that a board dials at once
REACH_TIMEOUT_S = 2.0  # for TCP, TLS and both hellos: long enough for a SYN that is lost once
_MAX_REASON = 300  # characters


@dataclass(frozen=True)
class Outcome:
    """What came of dialling a board: `code` is "ok", or one of DIAL_CODES with a `reason` in a sentence's part."""

    code: str
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the board was reached, its certificate accepted, and its hello received."""
        return self.code == "ok"


def reach_content(addresses: Mapping[str, Address]) -> dict[str, Any]:
    """Return the JSON object of a Reach: dial each of these boards."""
    return {"boards": {board: list(address) for board, address in addresses.items()}}


def tries_of(content: Mapping[str, Any]) -> dict[str, Address]:
    """Return the boards to dial that a Reach names. Raises RemoteProtocolError for anything else."""
    boards = content.get("boards")
    if not isinstance(boards, dict) or not 1 <= len(boards) <= MAX_TRIES:
        raise RemoteProtocolError(f"reach: boards must be an object with 1 to {MAX_TRIES} boards")
    tries: dict[str, Address] = {}
    for board, place in boards.items():
        address = parse_address(place)
        if not BOARD_NAME.match(board) or address is None:
            raise RemoteProtocolError("reach: each board must have a board's name and its address [host, port]")
        tries[board] = address
    return tries


def reached_content(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return the JSON object of a Reached."""
    # A board that was dialled may have said anything, of any length.
    return {"boards": {board: {"code": o.code, "reason": o.reason[:_MAX_REASON]} for board, o in outcomes.items()}}


def outcomes_of(content: Mapping[str, Any], boards: Iterable[str]) -> dict[str, Outcome | None]:
    """Return what a board says came of dialling `boards`; None for one of which it says nothing well-formed."""
    said = content.get("boards")
    return {board: _outcome(said.get(board) if isinstance(said, dict) else None) for board in boards}


def _outcome(said: object) -> Outcome | None:
    if not isinstance(said, dict):
        return None
    code, reason = said.get("code"), said.get("reason")
    if code == "ok":
        return Outcome("ok")
    if not isinstance(code, str) or not isinstance(reason, str):
        return None
    # A newer board may know more codes; its reason is still a reason.
    shown = printable(reason[:_MAX_REASON]).strip()
    return Outcome(code if code in DIAL_CODES else "rejected", shown or "no reason given")
