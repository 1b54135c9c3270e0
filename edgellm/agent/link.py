"""Connections to other boards: one each, dialled when it is first needed, which keeps messages in order, and shared by
the stages of this board, because the other side takes one connection from a board.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgellm.agent.echo import Echo
from edgellm.errors import BoardError, DialError
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.dial import connect
from edgellm.wire.messages import Hello, Message, Ping, Pong
from edgellm.wire.peer import Peer
from edgellm.wire.status import LinkStatus

log = logging.getLogger(__name__)
_REMEMBERED_S = 600.0  # for which a board that could not be dialled is reported
_MOST_REMEMBERED = 64  # boards


class Links:
    """The links of `board` to others, dialled with the credentials `tls`."""

    def __init__(self, board: str, tls: Credentials | None = None):
        self._me, self._tls = Hello("board", board), tls
        self._lines: dict[tuple[str, Address], _Line] = {}
        self._states: dict[str, tuple[str, str, float]] = {}  # code, reason, since when
        self.measures = True  # how long hops take

    def to(self, board: str, address: Address, on_failed: Callable[[str, str], None]) -> "Link":
        """Return a link to `board`. When its connection fails, `on_failed(board, reason)` is called, because recent
        messages may be lost; the next one dials again."""
        line = self._lines.get((board, address))
        if line is None:
            line = self._lines[board, address] = _Line(self, board, address, self._me, self._tls)
        link = Link(line, on_failed)
        line.links.append(link)
        return link

    def status(self) -> dict[str, LinkStatus]:
        """Return by board how the last connection to it was made, or how it ended; as long as some stage may use it,
        and for a while if it could not be made."""
        used, now_s = {board for board, _ in self._lines}, time.monotonic()
        for board, (code, _, since_s) in list(self._states.items()):
            if board not in used and (code in ("ok", "lost") or now_s - since_s > _REMEMBERED_S):
                del self._states[board]
        return {
            board: LinkStatus(code, reason, self.hop_s(board), round(now_s - since_s, 1))
            for board, (code, reason, since_s) in self._states.items()
        }

    def hop_s(self, board: str | None = None) -> float | None:
        """Return the seconds of a hop to a board, or the longest to those that this one dials; None: not known yet."""
        hops = [line.echo.hop_s for (name, _), line in self._lines.items() if board in (None, name)]
        known = [hop_s for hop_s in hops if hop_s is not None]
        return max(known, default=None)

    def happened(self, board: str, code: str, reason: str = "") -> None:
        """Remember what came of dialling a board, or of its connection."""
        self._states.pop(board, None)
        self._states[board] = code, reason, time.monotonic()
        for oldest in list(self._states)[:-_MOST_REMEMBERED]:
            del self._states[oldest]

    def forget(self, line: "_Line") -> None:
        """Hang up on a line that no link uses any more."""
        self._lines.pop((line.board, line.address), None)
        line.close()


class Link:
    """A stage's end of a line to another board."""

    def __init__(self, line: "_Line", on_failed: Callable[[str, str], None]):
        self.sent_bytes = 0
        self.on_failed = on_failed
        self._line = line

    @property
    def board(self) -> str:
        """The board at the other end."""
        return self._line.board

    @property
    def peer(self) -> Peer | None:
        """The connection, None while there is none."""
        return self._line.peer

    @property
    def congested(self) -> bool:
        """True while the board reads more slowly than we write, or isn't connected yet."""
        peer = self._line.peer  # read once: the engine's thread asks too
        return peer.congested if peer else bool(self._line.waiting)

    def ensure(self) -> None:
        """Start to dial if there is no connection."""
        if self in self._line.links:
            self._line.ensure()

    def send(self, *messages: Message) -> None:
        """Send in one piece: now, or as soon as the connection is up."""
        if self in self._line.links:
            self._line.send(self, messages)

    def close(self) -> None:
        """Send no more; hang up if no other stage uses the connection. Nothing is reported."""
        self._line.leave(self)


@dataclass
class _Line:
    """The connection to one board at one address."""

    owner: Links
    board: str
    address: Address
    me: Hello
    tls: Credentials | None
    peer: Peer | None = None
    links: list[Link] = field(default_factory=list)
    echo: Echo = field(default_factory=Echo)
    waiting: list[tuple[Link, tuple[Message, ...]]] = field(default_factory=list)
    _dialling: asyncio.Task[None] | None = None
    _closed: bool = False

    def ensure(self) -> None:
        if self.peer is None and self._dialling is None and not self._closed:
            self._dialling = asyncio.create_task(self._dial())

    def send(self, link: Link, messages: tuple[Message, ...]) -> None:
        if self.peer is not None:
            self._ping(self.peer)
            before = self.peer.sent_bytes
            self.peer.send(*messages)
            link.sent_bytes += (self.peer.sent_bytes if self.peer is not None else before) - before
        elif messages:
            self.waiting.append((link, messages))
            self.ensure()

    def leave(self, link: Link) -> None:
        if link in self.links:
            self.links.remove(link)
            self.waiting = [(whose, messages) for whose, messages in self.waiting if whose is not link]
            if not self.links:
                self.owner.forget(self)

    def close(self) -> None:
        self._closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self.peer is not None:
            self.peer.close()

    async def _dial(self) -> None:
        try:
            peer = await connect(
                *self.address, self.me, self._heard, self._lost, board=self.board, tls=self.tls
            )
        except BoardError as e:
            self._dialling = None
            if not self._closed:
                code, reason = (e.code, e.reason) if isinstance(e, DialError) else ("rejected", str(e))
                self.owner.happened(self.board, code, reason)
                self._fail(str(e))
            return
        self._dialling = None
        self.peer = peer
        self.owner.happened(self.board, "ok")
        self.echo.restart()
        self._ping(peer)
        waiting, self.waiting = self.waiting, []
        for link, messages in waiting:
            self.send(link, messages)

    def _ping(self, peer: Peer) -> None:
        """Measure the way now and then: before what is sent, which the pong would wait for."""
        number = self.echo.next(time.perf_counter()) if self.owner.measures else None
        if number is not None:
            peer.send(Ping(number))

    def _heard(self, peer: Peer, message: Message) -> None:
        """Take a pong: a listening board sends nothing else on this connection."""
        if isinstance(message, Pong):
            self.echo.came(message.number, time.perf_counter())
            self._ping(peer)

    def _lost(self, peer: Peer, reason: str) -> None:
        if peer is self.peer:
            self.peer = None
            if not self._closed:
                self.owner.happened(self.board, "lost", reason)
                host, port = self.address
                self._fail(f"board {self.board} ({host}:{port}): {reason}")

    def _fail(self, reason: str) -> None:
        self.waiting.clear()
        log.warning("link lost: %s", reason)
        for link in list(self.links):
            link.on_failed(self.board, reason)
