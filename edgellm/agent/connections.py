"""Incoming connections of this board, with limits on their number, on what they hold, and on their silence.

Every identity has its share, so that nobody keeps the others out: who has the most gives way first.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable

from edgellm.agent import journal
from edgellm.config import BOARD_SILENCE_S, HELLO_TIMEOUT_S, MANAGER_SILENCE_S
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer
from edgellm.wire.protocol import Protocol

log = logging.getLogger(__name__)
_MAX_STRANGERS = 64  # connections without a hello, or with nothing after it; one more, and one of them is closed
_MAX_PEERS = 256
_SHARE = 64  # connections of one manager
_MAX_HALF_BYTES = 16 << 20  # of frames that have begun, on all connections together
_HALF_SHARE_BYTES = 8 << 20  # of these, of one identity
_STEPS = (m.Hidden, m.Tokens)
_SMALL_BYTES = 16 << 10  # a beginning that isn't counted


class Connections:
    """All connections of `board`: `strangers` haven't said hello, or nothing after it; `peers` have.

    Messages of peers go to `on_message(peer, message)`, ends of connections to `on_lost(peer)`. `limit` is the
    protocol's. `busy(peer)` says whether something would be lost with a peer, and `place_of(board)` on which host the
    plan has a board, None if it isn't known.
    """

    def __init__(
        self,
        board: str,
        on_message: Callable[[Peer, m.Message], None],
        on_lost: Callable[[Peer], None],
        limit: Callable[[m.Hello, type[m.Message]], int],
        busy: Callable[[Peer], bool] = lambda peer: False,
        place_of: Callable[[str], str | None] = lambda board: None,
    ):
        self.strangers: dict[Peer, int] = {}  # the oldest first; the values count all connections
        self.peers: dict[Peer, int] = {}
        self._count = 0
        self._board, self._on_message, self._on_lost = board, on_message, on_lost
        self._limit, self._busy, self._place_of = limit, busy, place_of

    def make_peer(self) -> Peer:
        """Return the peer for a connection that has just come in; a stranger goes if there are too many, the oldest of
        those of whom there are the most."""
        protocol = Protocol(m.Hello("board", self._board), dials=False, limit=self._limit)
        peer = Peer(protocol, self._message, self._lost, on_buffered=self._buffered)
        while len(self.strangers) >= _MAX_STRANGERS:
            _crowd(self.strangers)[0].refuse("too many connections without a hello or anything after it")
        self._count += 1
        self.strangers[peer] = self._count
        return peer

    def sweep(self) -> None:
        """Drop peers that fell silent (asleep, unplugged), and boards' second connections that say nothing."""
        now_s = asyncio.get_running_loop().time()
        linked = {peer.name for peer in self.peers if not _is_manager(peer)}
        for peer in [*self.peers, *self.strangers]:
            if peer.protocol.peer is None:
                continue  # its hello has a time of its own
            silent_s = now_s - peer.last_heard_s
            patience_s = MANAGER_SILENCE_S if _is_manager(peer) else BOARD_SILENCE_S
            if silent_s > patience_s:
                peer.refuse(f"silent for {patience_s:g} s")
            elif peer in self.strangers and not _is_manager(peer) and peer.name in linked:
                if silent_s > HELLO_TIMEOUT_S:
                    peer.refuse(f"board {peer.name} has another connection, and says nothing on this one")

    def refuse_revoked(self, serials: frozenset[int]) -> None:
        """End connections whose certificate has been revoked since their handshake."""
        for peer in [p for p in (*self.strangers, *self.peers) if p.serial in serials]:
            peer.refuse(f"the certificate of {peer.identity or peer.name} has been revoked")

    def close(self) -> None:
        """End all connections."""
        for peer in [*self.strangers, *self.peers]:
            peer.close()

    def _message(self, peer: Peer, message: m.Message) -> None:
        if type(message) in _STEPS and peer in self.peers:
            self._on_message(peer, message)  # by the thousand; what they lead to is limited by what it says
            return
        token = journal.speaking(_who(peer))
        try:
            if peer in self.peers or self._admit(peer):
                self._on_message(peer, message)
        finally:
            journal.done_speaking(token)

    def _admit(self, peer: Peer) -> bool:
        """Make a stranger a peer; or refuse it, and return False."""
        number = self.strangers.pop(peer)
        reason = self._make_room(peer) if _is_manager(peer) else self._replace(peer, number)
        if reason is not None:
            self.strangers[peer] = number  # it is told as one that never got in
            peer.refuse(reason)
            return False
        self.peers[peer] = number
        return True

    def _make_room(self, peer: Peer) -> str | None:
        """End another connection if there is no place for `peer`; return why it can't have one."""
        own = [p for p in self.peers if _who(p) == _who(peer)]
        if len(own) >= _SHARE:
            return self._end_one(own, f"{_SHARE} connections of {_who(peer)} are open already")
        if len(self.peers) >= _MAX_PEERS:
            crowd = _crowd(self.peers)
            reason = f"{_MAX_PEERS} connections are open already"
            return self._end_one(crowd, reason, even_busy=len(crowd) > len(own) + 1)
        return None

    def _end_one(self, crowd: list[Peer], reason: str, even_busy: bool = False) -> str | None:
        """End the oldest of these connections that is idle; return `reason` if none may be ended."""
        for oldest in [*(p for p in crowd if not self._busy(p)), *(crowd if even_busy else ())]:
            oldest.refuse(f"{reason}, and this was the oldest" + ("" if self._busy(oldest) else " idle one"))
            return None
        return reason

    def _replace(self, peer: Peer, number: int) -> str | None:
        """End older connections of the same board, because it keeps one; return why `peer` itself isn't that one.

        The newest counts: a board that lost its power never ends the one before. But from where the plan has the board
        no connection is replaced by one from elsewhere, so that nobody with a copy of its certificate can end it again
        and again.
        """
        rival = next((p for p in self.peers if not _is_manager(p) and p.name == peer.name), None)
        if rival is not None:
            place = self._place_of(peer.name)
            here, there = _host(peer), _host(rival)
            if self.peers[rival] > number:
                return f"board {peer.name} has a newer connection"
            elsewhere = (
                f"another machine seems to use its certificate: if {peer.name} hasn't moved, revoke it and deploy again"
            )
            if there == place != here:
                log.warning("board %s is connected from %s; refused one from %s: %s", peer.name, there, here, elsewhere)
                return f"board {peer.name} is connected from {there}, where the plan has it"
            log.warning(
                "board %s has connected anew, from %s; its connection from %s is closed%s",
                peer.name, here, there, "" if here == there else f": {elsewhere}",
            )  # fmt: skip
        elif len(self.peers) >= _MAX_PEERS and (reason := self._make_room(peer)) is not None:
            return reason
        older = [p for p, n in self.strangers.items() if n < number and not _is_manager(p) and p.name == peer.name]
        for one in [*([rival] if rival is not None else ()), *older]:
            one.refuse(f"board {peer.name} has connected anew")
        return None

    def _buffered(self, peer: Peer) -> None:
        """End a connection if too many bytes wait for the rest of their frame: of its identity, or of all."""
        if peer.buffered <= _SMALL_BYTES:
            return
        everyone = [*self.peers, *self.strangers]
        own = [p for p in everyone if _who(p) == _who(peer)]
        if sum(p.buffered for p in own) > _HALF_SHARE_BYTES:
            max(own, key=lambda p: p.buffered).refuse(f"{_HALF_SHARE_BYTES} bytes of {_who(peer)} are half frames")
        elif sum(p.buffered for p in everyone) > _MAX_HALF_BYTES:
            held: Counter[str] = Counter()
            for p in everyone:
                held[_who(p)] += p.buffered
            ((most, _),) = held.most_common(1)
            largest = max((p for p in everyone if _who(p) == most), key=lambda p: p.buffered)
            largest.refuse(f"{_MAX_HALF_BYTES} bytes are half frames, most of them of {most}")

    def _lost(self, peer: Peer, reason: str) -> None:
        self.strangers.pop(peer, None)
        self.peers.pop(peer, None)
        token = journal.speaking(_who(peer))
        try:
            if peer.protocol.peer is None:
                log.info("connection of %s ended: %s before a hello", peer.name, reason)
            else:
                level = logging.DEBUG if reason.startswith("closed by") else logging.WARNING
                log.log(level, "connection of %s (%s) ended: %s", peer.name, peer.address, reason)
            self._on_lost(peer)
        finally:
            journal.done_speaking(token)


def _is_manager(peer: Peer) -> bool:
    return peer.protocol.peer is not None and peer.protocol.peer.role == "manager"


def _who(peer: Peer) -> str:
    """Return whose connection this is: what shares are counted by."""
    identity = peer.identity
    return _host(peer) if identity is None else str(identity)


def _host(peer: Peer) -> str:
    return peer.address.rpartition(":")[0]


def _crowd(peers: Iterable[Peer]) -> list[Peer]:
    """Return the connections of the identity that has the most of these, the oldest first."""
    by_who: dict[str, list[Peer]] = {}
    for peer in peers:
        by_who.setdefault(_who(peer), []).append(peer)
    return max(by_who.values(), key=len)
