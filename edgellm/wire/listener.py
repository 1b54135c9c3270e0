"""Incoming connections: accepts a few at a time and, with TLS, keeps them small until they have shown a certificate.

A connection that says nothing costs a socket and a few hundred bytes; one that has begun a handshake a TLS object, and
there is a limit on both. Only a connection that has finished the handshake becomes a peer.
"""

import asyncio
import errno
import functools
import logging
import socket
from collections import Counter
from collections.abc import Callable

from edgellm.config import HELLO_TIMEOUT_S
from edgellm.errors import RemoteProtocolError
from edgellm.wire.credentials import Credentials
from edgellm.wire.peer import Peer
from edgellm.wire.tls import Channel

log = logging.getLogger(__name__)
_TURN = 16  # connections accepted before those that are there have their turn
_BACKLOG = 128
_MAX_SILENT = 64  # connections without a byte yet; one more, and one of the address with the most is closed
_MAX_SHAKING = 32  # connections in handshake, likewise
_PAUSE_S = 1.0  # for the system to find sockets again
_NOTES, _NOTES_EVERY_S = 20, 10.0  # lines in the log: a scan must not wear out an SD card
_SHORT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_NO_TLS_ALERT = bytes.fromhex("15 03 03 0002 02 46")  # fatal, protocol version


async def listen(
    host: str, port: int, make_peer: Callable[[], Peer], *, tls: Credentials | None = None
) -> "Listener":
    """Bind HOST:PORT for `start_serving()` to listen on. Raises OSError if the address can't be had.

    `make_peer` returns the Peer of a connection: as soon as it is accepted, or with TLS after the handshake.
    """
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets = []
    try:
        for family, kind, proto, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, proto)
            sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return Listener(sockets, make_peer, tls)


class Listener:
    """Listens on `sockets` from `start_serving()` to `close()`."""

    def __init__(self, sockets: list[socket.socket], make_peer: Callable[[], Peer], tls: Credentials | None):
        self.sockets, self.make_peer, self.tls = sockets, make_peer, tls
        self._loop = asyncio.get_running_loop()
        self._silent: dict[_Pending, None] = {}
        self._shaking: dict[_Pending, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = self._short = False
        self._notes_since_s, self._notes, self._unsaid = -_NOTES_EVERY_S, 0, 0

    async def start_serving(self) -> None:
        """Accept connections from now on."""
        for sock in self.sockets:
            sock.listen(_BACKLOG)
            self._resume(sock)

    def close(self) -> None:
        """Accept no more connections, and end those that haven't become peers."""
        if self._closed:
            return
        self._closed = True
        for sock in self.sockets:
            self._loop.remove_reader(sock)
            sock.close()
        for task in self._tasks:
            task.cancel()
        for pending in [*self._silent, *self._shaking]:
            pending.end(None)
        self._sum_up()

    def _resume(self, sock: socket.socket) -> None:
        if not self._closed:
            self._loop.add_reader(sock, self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(_TURN):
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:
                if e.errno not in _SHORT_OF:
                    raise
                # It would be reported as readable again and again.
                self._loop.remove_reader(sock)
                self._loop.call_later(_PAUSE_S, self._resume, sock)
                self._make_room(self._silent, 0)
                if not self._short:
                    reason = (e.strerror or str(e)).lower()
                    log.warning("accepts no connections for now: %s; tries again every %g s", reason, _PAUSE_S)
                self._short = True
                return
            self._short = False
            connection.setblocking(False)
            task = self._loop.create_task(self._begin(connection))
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._begun, connection))

    async def _begin(self, connection: socket.socket) -> None:
        tls = self.tls
        try:
            if tls is None:
                await self._loop.connect_accepted_socket(self.make_peer, connection)
            else:
                await self._loop.connect_accepted_socket(lambda: _Pending(self, tls), connection)
        except OSError:  # gone already
            connection.close()
        except Exception:
            connection.close()
            raise

    def _begun(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before it had begun
            connection.close()

    # What pending connections call

    def arrived(self, pending: "_Pending") -> None:
        self._make_room(self._silent, _MAX_SILENT - 1)
        self._silent[pending] = None

    def began(self, pending: "_Pending") -> None:
        self._silent.pop(pending, None)
        self._make_room(self._shaking, _MAX_SHAKING - 1)
        self._shaking[pending] = None

    def left(self, pending: "_Pending") -> None:
        self._silent.pop(pending, None)
        self._shaking.pop(pending, None)

    def note(self, address: str, reason: str) -> None:
        """Log why a connection ended, unless the log has had many such lines lately."""
        now_s = self._loop.time()
        if now_s - self._notes_since_s > _NOTES_EVERY_S:
            self._sum_up()
            self._notes_since_s, self._notes = now_s, 0
        self._notes += 1
        if self._notes <= _NOTES:
            log.info("connection of %s ended: %s", address, reason)
        else:
            self._unsaid += 1

    def _sum_up(self) -> None:
        if self._unsaid:
            log.info("%d more connections ended before they had shown a certificate", self._unsaid)
        self._unsaid = 0

    @staticmethod
    def _make_room(room: dict["_Pending", None], most: int) -> None:
        """End the oldest of the address that has the most, so that one crowd can't keep the others out."""
        while len(room) > most:
            counts = Counter(p.host for p in room)
            crowd = max(counts.values())
            next(p for p in room if counts[p.host] == crowd).end("too many connections without a certificate")


class _Pending(asyncio.Protocol):
    """A connection that hasn't shown a certificate yet. It has HELLO_TIMEOUT_S for that."""

    _transport: asyncio.Transport

    def __init__(self, listener: Listener, tls: Credentials):
        self.host = "?"
        self._listener, self._tls = listener, tls
        self._address = "?"
        self._timer: asyncio.TimerHandle | None = None
        self._channel: Channel | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.host, self._address = name[0], f"{name[0]}:{name[1]}"
        reason = f"no certificate within {HELLO_TIMEOUT_S:g} s"
        self._timer = asyncio.get_running_loop().call_later(HELLO_TIMEOUT_S, self.end, reason)
        self._listener.arrived(self)

    def data_received(self, data: bytes) -> None:
        if self._channel is None:
            if data[0] != 0x16:  # no handshake record: not worth a TLS object
                self._transport.write(_NO_TLS_ALERT)
                self.end("it doesn't speak TLS")
                return
            self._channel = Channel(self._tls.context, server_side=True)
            self._listener.began(self)
        try:
            plain = self._channel.receive(data)
        except RemoteProtocolError as e:
            self._transport.write(self._channel.data_to_send())  # the alert says why
            self.end(str(e))
            return
        if out := self._channel.data_to_send():
            self._transport.write(out)
        if self._channel.done:
            self._hand_over(self._channel, plain)

    def eof_received(self) -> None:
        self.end("closed by the peer before it had shown a certificate")

    def connection_lost(self, exc: Exception | None) -> None:
        self.end("lost before it had shown a certificate")

    def end(self, reason: str | None) -> None:
        """Close, and log the reason if there is one."""
        if not self._leave():
            return
        if reason is not None:
            self._listener.note(self._address, reason)
        transport = self._transport
        # Whoever doesn't even read an alert gets none.
        transport.abort() if transport.get_write_buffer_size() else transport.close()

    def _leave(self) -> bool:
        """Return whether this was still pending."""
        if self._timer is None:
            return False
        self._timer.cancel()
        self._timer = None
        self._listener.left(self)
        return True

    def _hand_over(self, channel: Channel, plain: bytes) -> None:
        self._leave()
        peer = self._listener.make_peer()
        self._transport.set_protocol(peer)
        peer.secured(channel, self._transport, plain)
