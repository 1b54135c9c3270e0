"""One connection: a protocol on an asyncio transport, in TLS if there are credentials, with a timeout per phase."""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable

from edgellm.config import FRAME_TIMEOUT_S, HELLO_TIMEOUT_S, WRITE_TIMEOUT_S
from edgellm.errors import LocalProtocolError, RemoteProtocolError
from edgellm.wire.credentials import Identity
from edgellm.wire.messages import Hello, Message, Refuse
from edgellm.wire.protocol import Protocol
from edgellm.wire.reasons import connection_reason
from edgellm.wire.tls import Channel

_TURN = 16  # messages that a peer who dialled us gets answered before others have their turn
_UNREAD_BYTES = 1 << 20  # that may wait for the side that listens; beyond it doesn't keep up
_UNREAD_ANSWER_BYTES = 256 << 10  # that may wait for the side that dialled: a pong isn't to stand behind much more
_UNSENT_BYTES = 128 << 10  # of these, in the system's buffer


class Peer(asyncio.Protocol):
    """One connection. Calls `on_message(peer, message)` for each message and, once, `on_lost(peer, reason)`. While a
    message's bytes come in, `on_buffered(peer)` is called: `buffered` are those that are held.

    Closes by itself on a bad frame, a missing hello, half a frame that isn't completed, and a peer that doesn't read;
    with a TLS `channel`, also on a hello that isn't by whom the peer's certificate names.
    """

    def __init__(
        self,
        protocol: Protocol,
        on_message: Callable[["Peer", Message], None],
        on_lost: Callable[["Peer", str], None],
        channel: Channel | None = None,
        on_buffered: Callable[["Peer"], None] | None = None,
    ):
        self.protocol = protocol
        self.ready: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
        self.address = "?"
        self.lost: str | None = None  # why the connection ended
        self.sent_bytes = 0
        self.last_heard_s = asyncio.get_running_loop().time()
        self._on_message, self._on_lost, self._on_buffered = on_message, on_lost, on_buffered
        self._channel = channel
        self._transport: asyncio.Transport | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._received: deque[Message] = deque()
        self._holds: set[str] = set()  # why nothing is read just now
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.lost is not None:  # given up before it stood
            self._hang_up(transport)
            return
        transport.set_write_buffer_limits(high=_UNREAD_BYTES if self.protocol.dials else _UNREAD_ANSWER_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # a cut cable: unacknowledged bytes end the connection
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_TIMEOUT_S * 1000))
            if hasattr(socket, "TCP_NOTSENT_LOWAT") and not self.protocol.dials:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        name = transport.get_extra_info("peername")
        self.address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "?"
        self._arm("hello", HELLO_TIMEOUT_S, f"no hello within {HELLO_TIMEOUT_S:g} s")
        self._flush()

    def secured(self, channel: Channel, transport: asyncio.BaseTransport, plain: bytes) -> None:
        """Take over a `transport` on which `channel` has done its handshake and has received `plain` besides."""
        self._channel = channel
        self.connection_made(transport)
        self._take(plain)

    def data_received(self, data: bytes) -> None:
        self.last_heard_s = asyncio.get_running_loop().time()
        if self._channel is not None:
            try:
                data = self._channel.receive(data)
            except RemoteProtocolError as e:
                self._end(str(e))
                return
            self._flush()  # what TLS has to say
        self._take(data)

    def _take(self, data: bytes) -> None:
        if data:
            self._read(data)
        if self._channel is not None and self._channel.ended and self.lost is None:
            self.eof_received()

    def _read(self, data: bytes) -> None:
        try:
            messages = self.protocol.receive_data(data, None if self.protocol.dials else _TURN)
        except RemoteProtocolError as e:
            encrypted = self._channel is None and self.protocol.peer is None and data.startswith(b"\x15\x03")
            self._end("it speaks TLS, and this side has no certificate" if encrypted else str(e))
            return
        if self.protocol.peer is not None and not self.ready.done():
            self._disarm("hello")
            if imposture := self._imposture():
                self.protocol.data_to_send()  # no hello for this one
                self.refuse(imposture)
                return
            self._flush()
            self.ready.set_result(self)
        if messages:
            self._disarm("frame")  # the time is a frame's own
        self._time_frame()
        self._received.extend(messages)
        if self._on_buffered is not None and self.lost is None:
            self._on_buffered(self)
        self._hand_over()

    def eof_received(self) -> None:
        try:
            while self.lost is None:  # messages sent before the peer hung up still count
                if self._received:
                    self._give(self._received.popleft())
                elif self.protocol.pending:
                    self._received.extend(self.protocol.receive_more(_TURN))
                else:
                    break
            self.protocol.receive_data(b"")
            self._end(self._closed())
        except RemoteProtocolError as e:
            self._end(str(e))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(self._closed(exc))

    def pause_writing(self) -> None:
        self._can_write.clear()
        if not self.protocol.dials:
            self._hold("write")  # it gets no more answers before it has read these
        self._arm("write", WRITE_TIMEOUT_S, f"reads nothing for {WRITE_TIMEOUT_S:g} s")

    def resume_writing(self) -> None:
        self._can_write.set()
        self._disarm("write")
        self._release("write")
        if self._received or self.protocol.pending:
            asyncio.get_running_loop().call_soon(self._hand_over)

    # ours

    @property
    def buffered(self) -> int:
        """Bytes received that aren't a message yet."""
        return self.protocol.buffered

    @property
    def congested(self) -> bool:
        """Whether the peer reads more slowly than we write."""
        return not self._can_write.is_set()

    @property
    def name(self) -> str:
        """What the peer calls itself, or its address before its hello."""
        return self.protocol.peer.name if self.protocol.peer else self.address

    @property
    def identity(self) -> Identity | None:
        """Whom the peer's certificate names, or its hello where there is no TLS; None before its hello, or if it names
        neither a manager nor a board. Without TLS, which is on loopback only, every manager is an admin."""
        hello = self.protocol.peer
        if hello is None:
            return None
        if self._channel is None:
            return Identity(hello.role, hello.name, admin=hello.role == "manager")
        return self._channel.identity and self._channel.identity.called(hello.name)

    @property
    def serial(self) -> int | None:
        """The serial number of the peer's certificate; None without TLS or before the handshake's end."""
        return self._channel.serial if self._channel else None

    def send(self, *messages: Message) -> None:
        """Write messages in one piece. On a lost connection nothing happens: its owner has been told."""
        if self.lost is None:
            for message in messages:
                self.protocol.send(message)
            self._flush()

    async def drain(self) -> None:
        """Wait until the peer has read enough to write more."""
        await self._can_write.wait()

    def pause_reading(self) -> None:
        """Read nothing from the peer until `resume_reading`."""
        self._hold("owner")

    def resume_reading(self) -> None:
        """Read again, unless something else holds reading back."""
        self._release("owner")

    def refuse(self, reason: str) -> None:
        """Tell the peer why, in a sentence, and close."""
        self.protocol.refuse(reason)
        self._end(reason)

    def close(self) -> None:
        """Hang up. `on_lost` is called with "closed by us"."""
        self._end("closed by us")

    def _imposture(self) -> str | None:
        """Return how the hello contradicts the certificate; None if it doesn't."""
        hello = self.protocol.peer
        if self._channel is None or hello is None:
            return None
        shown = self._channel.identity
        if shown is None:
            return "the certificate names neither a manager nor a board"
        if hello.role != shown.role or shown.name not in (None, hello.name):
            theirs = "the manager" if shown.name is None else str(shown)
            return f"a hello from {hello.role} {hello.name} with the certificate of {theirs}"
        return None

    def _closed(self, exc: Exception | None = None) -> str:
        if self._channel is not None and self.protocol.dials and self.protocol.peer is None:
            # The alert that says why may be lost where the connection is reset.
            return "closed the connection before its hello; its log says why. Does it belong to this cluster?"
        return connection_reason(exc) if exc else "closed by the peer"

    def _hand_over(self) -> None:
        """Hand messages to the owner. A peer that dialled us gets a few answered at a time, so that others have their
        turn, and none while our answers to it lie unread."""
        if not self._received and self.protocol.pending and "write" not in self._holds:
            try:
                self._received.extend(self.protocol.receive_more(_TURN))
            except RemoteProtocolError as e:
                self._end(str(e))
        for _ in range(len(self._received) if self.protocol.dials else _TURN):
            if self.lost is not None:  # by what the last message led to, so those behind it are dropped
                self._received.clear()
            if not self._received or "write" in self._holds:
                break
            self._give(self._received.popleft())
        if self.lost is None and (self._received or self.protocol.pending) and "write" not in self._holds:
            self._hold("turn")
            asyncio.get_running_loop().call_soon(self._hand_over)
        else:
            self._release("turn")

    def _give(self, message: Message) -> None:
        if isinstance(message, Refuse):
            self._end(f"refused: {message.reason}")
        elif not isinstance(message, Hello):
            self._on_message(self, message)

    def _hold(self, why: str) -> None:
        if self.lost is None and self._transport is not None:
            self._holds.add(why)
            self._transport.pause_reading()
            self._disarm("frame")

    def _release(self, why: str) -> None:
        if why in self._holds:
            self._holds.remove(why)
            if not self._holds and self.lost is None and self._transport is not None:
                self._transport.resume_reading()
                self._time_frame()

    def _time_frame(self) -> None:
        if self.protocol.partial:
            self._arm("frame", FRAME_TIMEOUT_S, f"half a frame, and no more within {FRAME_TIMEOUT_S:g} s")
        else:
            self._disarm("frame")

    def _flush(self) -> None:
        if self._transport is None:
            return
        data = self.protocol.data_to_send()
        for piece in self._channel.send(data) if self._channel else (data,):
            if piece:
                self.sent_bytes += len(piece)
                self._transport.write(piece)

    def _end(self, reason: str) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        for name in list(self._timers):
            self._disarm(name)
        if self._transport is not None:
            self._hang_up(self._transport)
        self._can_write.set()
        if not self.ready.done():
            self.ready.set_exception(RemoteProtocolError(reason))
            self.ready.exception()  # seen: whoever awaits `ready` still gets it
        self._on_lost(self, reason)

    def _hang_up(self, transport: asyncio.Transport) -> None:
        if transport.is_closing():
            return
        self._flush()
        if self.congested:
            transport.abort()
            return
        if self._channel is not None:
            self._channel.close()
            transport.write(self._channel.data_to_send())
        transport.close()

    def _arm(self, name: str, seconds: float, reason: str) -> None:
        if name not in self._timers:
            self._timers[name] = asyncio.get_running_loop().call_later(seconds, self._refuse_late, name, reason)

    def _disarm(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _refuse_late(self, name: str, reason: str) -> None:
        self._timers.pop(name, None)
        with contextlib.suppress(LocalProtocolError):
            self.refuse(reason)
