"""Incoming connections of this board, with limits on their number and their silence."""

import asyncio
import logging
from collections.abc import Callable

from edgellm.config import BOARD_SILENCE_S, MANAGER_SILENCE_S
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer
from edgellm.wire.protocol import Protocol

log = logging.getLogger(__name__)
_MAX_STRANGERS = 64  # connections that haven't said hello; one more, and the oldest is closed
_MAX_PEERS = 256


class Connections:
    """All connections of `board`: `strangers` haven't said hello, or nothing after it; `peers` have.

    Messages of peers go to `on_message(peer, message)`, ends of connections to `on_lost(peer)`. `step_bytes()` is the
    largest step that a peer may send now.
    """

    def __init__(
        self,
        board: str,
        on_message: Callable[[Peer, object], None],
        on_lost: Callable[[Peer], None],
        step_bytes: Callable[[], int],
    ):
        self.strangers: dict[Peer, None] = {}  # the oldest first
        self.peers: set[Peer] = set()
        self._board, self._on_message, self._on_lost, self._step_bytes = board, on_message, on_lost, step_bytes

    def make_peer(self) -> Peer:
        """Return the peer for a connection that has just come in; the oldest stranger goes if there are too many."""
        protocol = Protocol(m.Hello("board", self._board), dials=False, max_step_bytes=self._step_bytes())
        peer = Peer(protocol, self._message, self._lost)
        self.strangers[peer] = None
        if len(self.strangers) > _MAX_STRANGERS:
            self._know_greeted()
        for oldest in list(self.strangers)[:-_MAX_STRANGERS]:
            oldest.refuse("too many connections without a hello")
        return peer

    def sweep(self) -> None:
        """Drop peers that fell silent (asleep, unplugged); strangers that have said hello become peers."""
        now_s = asyncio.get_running_loop().time()
        for peer in list(self.peers):
            hello = peer.protocol.peer
            patience_s = MANAGER_SILENCE_S if hello is not None and hello.role == "manager" else BOARD_SILENCE_S
            if now_s - peer.last_heard_s > patience_s:
                peer.refuse(f"silent for {patience_s:g} s")
        self._know_greeted()

    def section_changed(self) -> None:
        """Let all connections accept steps as large as the new plan's."""
        for peer in (*self.peers, *self.strangers):
            peer.protocol.max_step_bytes = self._step_bytes()

    def refuse_revoked(self, serials: frozenset[int]) -> None:
        """End connections whose certificate has been revoked since their handshake."""
        for peer in [p for p in (*self.strangers, *self.peers) if p.serial in serials]:
            peer.refuse(f"the certificate of {peer.identity or peer.name} has been revoked")

    def close(self) -> None:
        """End all connections."""
        for peer in [*self.strangers, *self.peers]:
            peer.close()

    def _message(self, peer: Peer, message: object) -> None:
        if self._greet(peer):
            self._on_message(peer, message)

    def _know_greeted(self) -> None:
        for peer in [p for p in self.strangers if p.protocol.peer is not None]:
            self._greet(peer)

    def _greet(self, peer: Peer) -> bool:
        """Make a stranger a peer; refuse it, and return False, if there are too many."""
        if peer in self.strangers:
            del self.strangers[peer]
            if len(self.peers) >= _MAX_PEERS:
                peer.refuse(f"{_MAX_PEERS} connections are open already")
                return False
            self.peers.add(peer)
        return True

    def _lost(self, peer: Peer, reason: str) -> None:
        self.strangers.pop(peer, None)
        self.peers.discard(peer)
        if peer.protocol.peer is None:
            log.info("connection of %s ended: %s before a hello", peer.name, reason)
        else:
            level = logging.DEBUG if reason.startswith("closed by") else logging.WARNING
            log.log(level, "connection of %s (%s) ended: %s", peer.name, peer.address, reason)
        self._on_lost(peer)
