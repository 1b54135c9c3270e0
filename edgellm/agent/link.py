"""A connection to another board, dialled when it is first needed, which keeps messages in order."""

import asyncio
import logging
from collections.abc import Callable

from edgellm.errors import BoardError
from edgellm.wire.dial import connect
from edgellm.wire.messages import Hello
from edgellm.wire.peer import Peer

log = logging.getLogger(__name__)


class Link:
    """Sends to `board` at HOST:PORT. When the connection fails, `on_failed(reason)` is called, because recent
    messages may be lost. The next `send` dials again."""

    def __init__(self, board: str, host: str, port: int, me: Hello, on_failed: Callable[[str], None], *, tls=None):
        self.board = board
        self.sent_bytes = 0
        self._host, self._port, self._me, self._on_failed, self._tls = host, port, me, on_failed, tls
        self._peer: Peer | None = None
        self._waiting: list = []
        self._dialling: asyncio.Task | None = None
        self._closed = False

    @property
    def congested(self) -> bool:
        """True while the board reads more slowly than we write, or isn't connected yet."""
        peer = self._peer  # read once: the engine's thread asks too
        return peer.congested if peer else bool(self._waiting)

    def ensure(self) -> None:
        """Start to dial if there is no connection."""
        if self._peer is None and self._dialling is None and not self._closed:
            self._dialling = asyncio.create_task(self._dial())

    def send(self, *messages) -> None:
        """Send in one piece: now, or as soon as the connection is up."""
        if self._peer is not None:
            before = self._peer.sent_bytes
            self._peer.send(*messages)
            self.sent_bytes += self._peer.sent_bytes - before
        else:
            self._waiting += messages
            self.ensure()

    def close(self) -> None:
        """Hang up; nothing is reported."""
        self._closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._peer is not None:
            self._peer.close()

    async def _dial(self) -> None:
        try:
            peer = await connect(
                self._host, self._port, self._me, self._ignore, self._lost, board=self.board, tls=self._tls
            )
        except BoardError as e:
            self._dialling = None
            self._fail(str(e))
            return
        self._dialling = None
        self._peer = peer
        waiting, self._waiting = self._waiting, []
        self.send(*waiting)

    def _ignore(self, peer: Peer, message) -> None:
        """Ignore a message, because a listening board sends nothing on this connection."""

    def _lost(self, peer: Peer, reason: str) -> None:
        if peer is self._peer:
            self._peer = None
            self._fail(f"board {self.board} ({self._host}:{self._port}): {reason}")

    def _fail(self, reason: str) -> None:
        self._waiting.clear()
        if not self._closed:
            log.warning("link lost: %s", reason)
            self._on_failed(reason)
