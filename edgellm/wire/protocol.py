"""The protocol of one connection without I/O: bytes in, messages out; messages in, bytes out.

    protocol = Protocol(Hello("manager", "pc"), dials=True)
    sock.sendall(protocol.data_to_send())
    for message in protocol.receive_data(sock.recv(65536)):
        ...
"""

from edgellm.errors import LocalProtocolError, RemoteProtocolError
from edgellm.limits import MAX_STEP_BYTES
from edgellm.wire import messages as m
from edgellm.wire.frames import FrameReader

# What may be received, by (what I am, what the peer is); the side that dials is a manager or a board, the side that
# listens is always a board.
_FROM_MANAGER = (m.Refuse, m.Ping, m.AskStatus, m.Claim, m.Assign, m.Commit, m.Open, m.Close, m.Trace)
_FROM_BOARD_TO_MANAGER = (
    m.Refuse, m.Pong, m.Status, m.Claimed, m.Assigned, m.Committed, m.Opened, m.Tokens, m.Closed, m.Failed, m.Logits,
    m.Traced,
)  # fmt: skip
_FROM_DIALLING_BOARD = (m.Refuse, m.Ping, m.Hidden, m.Tokens)
_FROM_LISTENING_BOARD = (m.Refuse, m.Pong)


class Protocol:
    """One connection's state. `me` is this side's hello; `dials` is True on the side that opened the connection.

    `max_step_bytes` bounds ids and tensor of a hidden or trace frame; an agent sets it from its plan.
    """

    def __init__(self, me: m.Hello, dials: bool, max_step_bytes: int = MAX_STEP_BYTES):
        self.peer: m.Hello | None = None
        self.closed = False
        self.max_step_bytes = max_step_bytes
        self._me, self.dials = me, dials
        self._reader = FrameReader(self._limit_of)
        self._out: list[bytes] = []
        if dials:
            self._out.append(m.encode(me))

    @property
    def partial(self) -> bool:
        """True while half a frame has been received."""
        return self._reader.partial

    def receive_data(self, data: bytes) -> list:
        """Take bytes from the peer; give the messages they complete, its hello included.

        Raises RemoteProtocolError for what the protocol doesn't allow; then `data_to_send` holds a refusal, and the
        connection is to be closed after it is sent. An empty `data` means that the peer ended the stream.
        """
        if self.closed:
            return []
        try:
            if not data:
                self.closed = True
                self._reader.at_end()
                return []
            received = []
            for type_, body in self._reader.feed(data):
                message = m.BY_TYPE[type_].decode(body)
                if self.peer is None:
                    self._greet(message)
                received.append(message)
            return received
        except RemoteProtocolError as e:
            self.refuse(str(e))
            raise

    def send(self, message) -> None:
        """Queue a message. Raises LocalProtocolError for one that this side may not send now."""
        if self.closed:
            raise LocalProtocolError(f"{type(message).__name__} on a closed connection")
        if self.peer is None:
            raise LocalProtocolError(f"{type(message).__name__} before the peer's hello")
        if type(message) not in self._sendable():
            raise LocalProtocolError(f"a {self._me.role} does not send {type(message).__name__} to a {self.peer.role}")
        self._out.append(m.encode(message))

    def refuse(self, reason: str) -> None:
        """Queue a refusal; nothing more is received or sent on this connection."""
        if not self.closed:
            self._out.append(m.encode(m.Refuse(reason)))
            self.closed = True

    def data_to_send(self) -> bytes:
        """The bytes to write now."""
        out, self._out = b"".join(self._out), []
        return out

    def _greet(self, message) -> None:
        if isinstance(message, m.Refuse):
            return  # by whoever listens, instead of a hello
        if self.dials and message.role != "board":
            raise RemoteProtocolError(f"hello from a {message.role} where a board is to listen")
        self.peer = message
        if not self.dials:
            self._out.append(m.encode(self._me))

    def _sendable(self) -> tuple:
        return _allowed(self._me.role, self.peer.role, not self.dials)

    def _limit_of(self, type_: int) -> int:
        if self.peer is None:
            allowed = (m.Hello, m.Refuse) if self.dials else (m.Hello,)
        else:
            allowed = _allowed(self.peer.role, self._me.role, self.dials)
        message = m.BY_TYPE.get(type_)
        if message not in allowed:
            state = "before a hello" if self.peer is None else f"from a {self.peer.role}"
            raise RemoteProtocolError(f"a frame of type {type_} {state} is not part of this protocol")
        if message in (m.Hidden, m.Trace):
            return min(message.LIMIT, self.max_step_bytes + m.Hidden.OVERHEAD)
        return message.LIMIT


def _allowed(sender: str, receiver: str, sender_listens: bool) -> tuple:
    if sender == "manager":
        return _FROM_MANAGER
    if receiver == "manager":
        return _FROM_BOARD_TO_MANAGER
    return _FROM_LISTENING_BOARD if sender_listens else _FROM_DIALLING_BOARD
