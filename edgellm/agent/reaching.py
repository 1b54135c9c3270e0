"""Tries whether this board reaches others, for a manager that asks: a dial, both hellos, and good-bye."""

import asyncio

from edgellm.errors import DialError, RemoteProtocolError
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.dial import connect
from edgellm.wire.peer import Peer
from edgellm.wire.reach import MAX_DIALS, REACH_TIMEOUT_S, Outcome, reached_content, tries_of

# Only the owner's managers can ask, but one that was taken over shall not scan a network fast, nor fill this board.
_MAX_ASKED = 4  # Reaches that are being worked on


class Reaching:
    """Dials as `board` with the credentials `tls`, at most MAX_DIALS at a time, whoever asks."""

    def __init__(self, board: str, tls: Credentials | None):
        self._board, self._tls = board, tls
        self._room = asyncio.Semaphore(MAX_DIALS)
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, peer: Peer, message: m.Reach) -> None:
        """Try what a manager asks for, and answer it when all is tried; refuse what can't be."""
        if len(self._tasks) >= _MAX_ASKED:
            peer.refuse(f"{_MAX_ASKED} questions of which boards can be reached are being answered already")
            return
        try:
            tries = tries_of(message.content)
        except RemoteProtocolError as e:
            peer.refuse(str(e))
            return
        task = asyncio.create_task(self._answer(peer, tries, message.request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Give up what is being tried."""
        for task in self._tasks:
            task.cancel()

    async def _answer(self, peer: Peer, tries: dict[str, Address], request: int) -> None:
        outcomes = await asyncio.gather(*(self._try(peer, board, address) for board, address in tries.items()))
        peer.send(m.Reached(reached_content(dict(zip(tries, outcomes, strict=True))), request))

    async def _try(self, asker: Peer, board: str, address: Address) -> Outcome:
        async with self._room:
            if asker.lost is not None:
                return Outcome("rejected", "not tried")  # nobody will read it
            try:
                me = m.Hello("board", self._board)
                peer = await connect(
                    *address, me, _ignore, _ignore, board=board, tls=self._tls, timeout_s=REACH_TIMEOUT_S
                )
            except DialError as e:
                return Outcome(e.code, e.reason)
            peer.close()
            return Outcome("ok")


def _ignore(peer: Peer, what: object) -> None:
    """Ignore messages and the end, because nothing is expected on this connection."""
