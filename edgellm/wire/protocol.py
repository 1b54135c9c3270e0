"""The protocol of one connection without I/O: bytes in, messages out; messages in, bytes out.

    protocol = Protocol(Hello("manager", "pc"), dials=True)
    sock.sendall(protocol.data_to_send())
    for message in protocol.receive_data(sock.recv(65536)):
        ...
"""

import enum
import itertools
from collections.abc import Callable, Generator

from edgellm.errors import LocalProtocolError, RemoteProtocolError
from edgellm.wire import messages as m
from edgellm.wire.frames import FrameReader

_Messages = tuple[type[m.Message], ...]

# What may be sent, by (what the sender is, what the receiver is); the side that dials is a manager or a board, the side
# that listens is always a board.
_FROM_MANAGER: _Messages = (
    m.Refuse, m.Ping, m.AskStatus, m.Claim, m.Assign, m.Commit, m.Reach, m.Open, m.Start, m.Close, m.Trace,
)  # fmt: skip
_FROM_BOARD_TO_MANAGER: _Messages = (
    m.Refuse, m.Pong, m.Status, m.Claimed, m.Assigned, m.Committed, m.Reached, m.Queued, m.Opened, m.Tokens, m.Closed,
    m.Failed, m.Logits, m.Logprobs, m.Prefilled, m.Embedded, m.Traced,
)  # fmt: skip
_FROM_DIALLING_BOARD: _Messages = (m.Refuse, m.Ping, m.Hidden, m.Tokens)
_FROM_LISTENING_BOARD: _Messages = (m.Refuse, m.Pong)


SMALL_BYTES = 64 << 10  # of a body that whoever may send such a message may always send


class State(enum.Enum):
    """How far a connection is."""

    GREETING = "waits for the peer's hello"
    OPEN = "both sides may send"
    CLOSED = "nothing more is received or sent"


def _largest(sender: m.Hello, message: type[m.Message]) -> int:
    return message.LIMIT


class Protocol:
    """One connection. `me` is this side's hello; `dials` is True on the side that opened the connection.

    `peer` is the other side's hello, once it has come; then `version` is the newest that both sides speak.
    `limit(sender's hello, message)` is the largest body in bytes that the sender may need for such a message now, if
    that may be more than SMALL_BYTES; never more than the message's own limit counts. The order of messages within a
    sequence, and of those that change a plan, is kept by asking.py, changing.py and the boards.
    """

    def __init__(self, me: m.Hello, dials: bool, limit: Callable[[m.Hello, type[m.Message]], int] = _largest):
        self.state = State.GREETING
        self.peer: m.Hello | None = None
        self.version = me.version
        self._me, self.dials, self._limit = me, dials, limit
        self._reader = FrameReader(self._limit_of)
        self._out: list[bytes] = []
        self._takes: _Messages = (m.Hello, m.Refuse) if dials else (m.Hello,)
        self._sends: frozenset[type[m.Message]] = frozenset()
        if dials:
            self._out.append(m.encode(me))

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._reader.partial

    @property
    def buffered(self) -> int:
        """Bytes received that aren't a message yet."""
        return self._reader.buffered

    @property
    def pending(self) -> bool:
        """Whether `receive_more` would get further."""
        return self.state is not State.CLOSED and self._reader.ready

    def receive_data(self, data: bytes, most: int | None = None) -> list[m.Message]:
        """Take bytes from the peer and return the messages that they complete, its hello included.

        With `most`, no more than that: the bytes of the others wait for `receive_more`, because as messages they may
        take many times the memory. Raises RemoteProtocolError for what the protocol doesn't allow; then `data_to_send`
        holds a refusal: send it and close the connection. An empty `data` means that the peer ended the stream.
        """
        if self.state is State.CLOSED:
            return []
        try:
            if not data:
                self.state = State.CLOSED
                self._reader.at_end()
                return []
            return self._messages(self._reader.feed(data), most)
        except RemoteProtocolError as e:
            self.refuse(str(e))
            raise

    def receive_more(self, most: int) -> list[m.Message]:
        """Return at most so many further messages of the bytes that wait. Raises RemoteProtocolError as `receive_data`
        does."""
        if self.state is State.CLOSED:
            return []
        try:
            return self._messages(self._reader.feed(b""), most)
        except RemoteProtocolError as e:
            self.refuse(str(e))
            raise

    def _messages(self, frames: Generator[tuple[int, bytes], None, None], most: int | None) -> list[m.Message]:
        received: list[m.Message] = []
        try:
            for type_, body in itertools.islice(frames, most):
                message = m.BY_TYPE[type_].decode(body)
                if self.state is State.GREETING:
                    self._greet(message)
                received.append(message)
        finally:
            frames.close()
        return received

    def send(self, message: m.Message) -> None:
        """Queue a message. Raises LocalProtocolError for one that this side may not send now."""
        name = type(message).__name__
        if self.state is State.CLOSED:
            raise LocalProtocolError(f"{name} on a closed connection")
        if self.peer is None:
            raise LocalProtocolError(f"{name} before the peer's hello")
        if type(message) not in self._sends:
            raise LocalProtocolError(f"a {self._me.role} does not send {name} to a {self.peer.role}")
        self._out.append(m.encode(message))

    def refuse(self, reason: str) -> None:
        """Queue a refusal; nothing more is received or sent on this connection."""
        if self.state is not State.CLOSED:
            self._out.append(m.encode(m.Refuse(reason)))
            self.state = State.CLOSED

    def data_to_send(self) -> bytes:
        """Return the bytes to write now."""
        out, self._out = b"".join(self._out), []
        return out

    def _greet(self, message: m.Message) -> None:
        if not isinstance(message, m.Hello):
            return  # a refusal by the side that listens, instead of its hello
        if self.dials and message.role != "board":
            raise RemoteProtocolError(f"hello from a {message.role} where a board is to listen")
        self.peer, self.state = message, State.OPEN
        self.version = min(self._me.version, message.version)
        self._takes = _allowed(message.role, self._me.role, self.dials)
        self._sends = frozenset(_allowed(self._me.role, message.role, not self.dials))
        if not self.dials:
            self._out.append(m.encode(self._me))

    def _limit_of(self, type_: int, size: int) -> int:
        message = m.BY_TYPE.get(type_)
        if message is None or message not in self._takes:
            state = "before a hello" if self.peer is None else f"from a {self.peer.role}"
            raise RemoteProtocolError(f"a frame of type {type_} {state} is not part of this protocol")
        if self.peer is None or size <= SMALL_BYTES:  # most are, and steps come by the thousand
            return message.LIMIT
        return min(message.LIMIT, self._limit(self.peer, message))


def _allowed(sender: str, receiver: str, sender_listens: bool) -> _Messages:
    if sender == "manager":
        return _FROM_MANAGER
    if receiver == "manager":
        return _FROM_BOARD_TO_MANAGER
    return _FROM_LISTENING_BOARD if sender_listens else _FROM_DIALLING_BOARD
