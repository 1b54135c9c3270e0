"""Tries every pair of boards in both directions, over TLS and with the certificates that an answer uses."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from edgellm.errors import BoardError, DialError
from edgellm.manager.board import BoardClient
from edgellm.manager.connections import Connections
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.printable import printable
from edgellm.wire.reach import MAX_DIALS, MAX_TRIES, REACH_TIMEOUT_S, Outcome, outcomes_of, reach_content

HERE = "this machine"
_SPARE_S = 2.0  # beside the time that a board's dials may take, for a board that is busy


@dataclass(frozen=True)
class Pair:
    """Whether `dialler` (HERE, or a board's name) reaches `board` at `address`. `outcome` is None if that is unknown,
    because the dialler can't be asked or doesn't know how to try; then `unknown` says why."""

    dialler: str
    board: str
    address: Address
    outcome: Outcome | None
    unknown: str = ""

    @property
    def broken(self) -> bool:
        """Whether the dialler tried in vain."""
        return self.outcome is not None and not self.outcome.ok

    @property
    def code(self) -> str | None:
        """The outcome's code; None if it is unknown."""
        return self.outcome.code if self.outcome else None

    @property
    def reason(self) -> str:
        """Why the dialler tried in vain, or why it is unknown whether it would."""
        return self.outcome.reason if self.outcome else self.unknown


async def try_pairs(addresses: Mapping[str, Address], tls: Credentials | None = None) -> list[Pair]:
    """Return whether this machine reaches each board, and each board each other one. Raises nothing for a board.

    All are asked at once, on connections of their own, because an older agent closes one on which it is asked this. It
    takes as long as a question and its answer, or REACH_TIMEOUT_S where packets are lost.
    """
    names = list(addresses)
    async with Connections(tls) as connections:
        rows = await asyncio.gather(*(_row(name, i, names, addresses, connections) for i, name in enumerate(names)))
    return [pair for row in rows for pair in row]


async def _row(
    name: str, at: int, names: list[str], addresses: Mapping[str, Address], connections: Connections
) -> list[Pair]:
    """Return the pair of this machine and board `name`, and those of that board and each other one."""
    # Each begins with the board after it, so that no board is dialled by all the others in the same moment.
    others = names[at + 1 :] + names[:at]
    try:
        client = await connections.to(name, addresses[name], REACH_TIMEOUT_S)
    except DialError as e:
        rest = [Pair(name, o, addresses[o], None, "it can't be asked") for o in others]
        return [Pair(HERE, name, addresses[name], Outcome(e.code, e.reason)), *rest]
    pairs = [Pair(HERE, name, addresses[name], Outcome("ok"))]
    for i in range(0, len(others), MAX_TRIES):
        some = {o: addresses[o] for o in others[i : i + MAX_TRIES]}
        try:
            outcomes = await _ask(client, some)
        except BoardError as e:
            older = "not part of this protocol" in str(e)
            why = "its edgellm is too old to try" if older else f"it gave no answer: {e}"
            pairs += [Pair(name, o, addresses[o], None, why) for o in others[i:]]
            break
        pairs += [Pair(name, o, addresses[o], out, "" if out else "its answer makes no sense")
                  for o, out in outcomes.items()]  # fmt: skip
    return pairs


async def _ask(client: BoardClient, some: Mapping[str, Address]) -> dict[str, Outcome | None]:
    # A board dials a few at a time, so many boards that are lost take several times as long.
    timeout_s = REACH_TIMEOUT_S * -(-len(some) // MAX_DIALS) + _SPARE_S
    answer = await client.ask(m.Reach(reach_content(some)), m.Reached, timeout_s)
    if error := answer.content.get("error"):
        raise BoardError(printable(str(error))[:300], client.name)
    return outcomes_of(answer.content, some)
