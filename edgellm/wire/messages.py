"""Messages: what frames mean. One frozen dataclass a message, each with its bytes both ways (docs/wire.md).

Header fields are big-endian, tensors little-endian float32, token ids little-endian uint32. `decode` raises
RemoteProtocolError for every body that isn't exactly what the message allows.
"""

import json
import struct
from dataclasses import dataclass, field
from typing import ClassVar

from edgellm.config import MAX_FRAME_BYTES
from edgellm.errors import RemoteProtocolError
from edgellm.wire.frames import encode_frame

MAGIC = b"EDGE"
VERSION = 2

# Finish reasons, as numbered in TOKEN.
FINISH = ("", "eos", "length", "context")
# Why a sequence failed, as numbered in FAILED.
FAILURES = ("error", "busy", "epoch", "draining", "link", "unknown")

_KB, _MB = 1 << 10, 1 << 20


def _unpack(message: str, form: struct.Struct, body: bytes) -> tuple:
    if len(body) < form.size:
        raise RemoteProtocolError(f"{message}: {len(body)} bytes, expected at least {form.size}")
    return form.unpack_from(body)


def _exact(message: str, body: bytes, size: int) -> None:
    if len(body) != size:
        raise RemoteProtocolError(f"{message}: {len(body)} bytes, expected {size}")


def _text(message: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"{message}: text is no UTF-8") from None


def _cut(text: str, limit: int) -> bytes:
    """UTF-8 of at most `limit` bytes, whole characters only."""
    return text.encode(errors="backslashreplace")[:limit].decode(errors="ignore").encode()


def _object(message: str, raw: bytes) -> dict:
    try:
        content = json.loads(raw.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RemoteProtocolError(f"{message}: no JSON") from None
    if not isinstance(content, dict):
        raise RemoteProtocolError(f"{message}: JSON is no object")
    return content


def _no_constant(text: str):
    raise ValueError(f"{text} is no JSON")


def _json(content: dict) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Hello:
    """First on every connection, from both sides; the one who dials speaks first. `role` is what the sender is."""

    TYPE: ClassVar[int] = 1
    LIMIT: ClassVar[int] = 4 * _KB
    role: str  # "manager" or "board"
    name: str
    version: int = VERSION

    def encode(self) -> bytes:
        return MAGIC + struct.pack(">H", self.version) + _json({"role": self.role, "name": self.name})

    @classmethod
    def decode(cls, body: bytes) -> "Hello":
        if body[:4] != MAGIC:
            raise RemoteProtocolError(f"hello starts with {body[:4]!r}, expected {MAGIC!r}")
        (version,) = _unpack("hello", struct.Struct(">4xH"), body)
        if version != VERSION:
            raise RemoteProtocolError(
                f"peer speaks wire version {version}, this edgellm speaks {VERSION}. Run the same edgellm on both."
            )
        content = _object("hello", body[6:])
        role, name = content.get("role"), content.get("name")
        if role not in ("manager", "board"):
            raise RemoteProtocolError("hello: role must be manager or board")
        if not isinstance(name, str) or len(name) > 256 or not name.isprintable():  # it goes into logs
            raise RemoteProtocolError("hello: name must be at most 256 printable characters")
        return cls(role, name, version)


@dataclass(frozen=True)
class Refuse:
    """Why the sender closes this connection, in a sentence."""

    TYPE: ClassVar[int] = 2
    LIMIT: ClassVar[int] = 4 * _KB
    reason: str

    def encode(self) -> bytes:
        return _cut(self.reason, self.LIMIT)

    @classmethod
    def decode(cls, body: bytes) -> "Refuse":
        return cls(body.decode(errors="replace"))


@dataclass(frozen=True)
class Ping:
    TYPE: ClassVar[int] = 3
    LIMIT: ClassVar[int] = 8
    number: int

    def encode(self) -> bytes:
        return struct.pack(">Q", self.number)

    @classmethod
    def decode(cls, body: bytes) -> "Ping":
        _exact("ping", body, 8)
        return cls(*struct.unpack(">Q", body))


@dataclass(frozen=True)
class Pong:
    """Answer to a ping: `steps` counts what the board has computed, `waiting` what is queued or being computed."""

    TYPE: ClassVar[int] = 4
    LIMIT: ClassVar[int] = 20
    number: int
    steps: int
    waiting: int

    def encode(self) -> bytes:
        return struct.pack(">QQI", self.number, self.steps, self.waiting)

    @classmethod
    def decode(cls, body: bytes) -> "Pong":
        _exact("pong", body, 20)
        return cls(*struct.unpack(">QQI", body))


@dataclass(frozen=True)
class AskStatus:
    """What do you offer, and what do you hold?"""

    TYPE: ClassVar[int] = 5
    LIMIT: ClassVar[int] = 0

    def encode(self) -> bytes:
        return b""

    @classmethod
    def decode(cls, body: bytes) -> "AskStatus":
        _exact("ask-status", body, 0)
        return cls()


@dataclass(frozen=True)
class _JsonMessage:
    """A message whose body is one JSON object."""

    TYPE: ClassVar[int] = 0
    LIMIT: ClassVar[int] = _MB
    content: dict

    def encode(self) -> bytes:
        return _json(self.content)

    @classmethod
    def decode(cls, body: bytes):
        return cls(_object(cls.__name__.lower(), body))


@dataclass(frozen=True)
class Status(_JsonMessage):
    """A board's capacity and state (docs/wire.md has the fields)."""

    TYPE: ClassVar[int] = 6


@dataclass(frozen=True)
class Assign(_JsonMessage):
    """Prepare your section of this plan: `plan`, `addresses` (board → [host, port]), `board` (who you are). Only for
    who holds the claim."""

    TYPE: ClassVar[int] = 7


@dataclass(frozen=True)
class Assigned(_JsonMessage):
    """Answer to assign: `error` is null, or the sentence that says why not; `loaded_bytes` of shards."""

    TYPE: ClassVar[int] = 8


@dataclass(frozen=True)
class Claim(_JsonMessage):
    """I am about to give you a plan of `epoch`, which `replaces` the epoch that you hold (null: none). Nobody else may
    until my connection ends, I commit, or I claim epoch null, which gives the claim back."""

    TYPE: ClassVar[int] = 20


@dataclass(frozen=True)
class Claimed(_JsonMessage):
    """Answer to claim: `error` is null, or the sentence that says why not; `epoch` that is held."""

    TYPE: ClassVar[int] = 21


@dataclass(frozen=True)
class Commit(_JsonMessage):
    """Switch to the prepared section of `epoch`; running sequences of the old one end."""

    TYPE: ClassVar[int] = 22


@dataclass(frozen=True)
class Committed(_JsonMessage):
    """Answer to commit, as to assign."""

    TYPE: ClassVar[int] = 23


_OPEN = struct.Struct(">IQII")


@dataclass(frozen=True)
class Open:
    """Reserve a slot for a sequence. The first board starts to work on it at once, so it is opened last.

    `ids` are the prompt's token ids (first and last board; empty for others). `options`: `plan` (its digest),
    `sampling`, `max_tokens`, `eos` (token ids that end the answer), `logits` (true: the last board also sends its
    logits).
    """

    TYPE: ClassVar[int] = 10
    LIMIT: ClassVar[int] = 8 * _MB
    OPTIONS_LIMIT: ClassVar[int] = 64 * _KB
    epoch: int
    seq_id: int
    options: dict
    ids: tuple[int, ...] = ()

    def encode(self) -> bytes:
        options = _json(self.options)
        head = _OPEN.pack(self.epoch, self.seq_id, len(options), len(self.ids))
        return head + options + struct.pack(f"<{len(self.ids)}I", *self.ids)

    @classmethod
    def decode(cls, body: bytes) -> "Open":
        epoch, seq_id, options_bytes, count = _unpack("open", _OPEN, body)
        _exact("open", body, _OPEN.size + options_bytes + 4 * count)
        if options_bytes > cls.OPTIONS_LIMIT:
            raise RemoteProtocolError(f"open: {options_bytes} bytes of options, at most {cls.OPTIONS_LIMIT}")
        at = _OPEN.size + options_bytes
        return cls(
            epoch, seq_id, _object("open", body[_OPEN.size : at]), struct.unpack_from(f"<{count}I", body, at)
        )


_SEQUENCE = struct.Struct(">IQ")


@dataclass(frozen=True)
class Opened:
    TYPE: ClassVar[int] = 11
    LIMIT: ClassVar[int] = _SEQUENCE.size
    epoch: int
    seq_id: int

    def encode(self) -> bytes:
        return _SEQUENCE.pack(self.epoch, self.seq_id)

    @classmethod
    def decode(cls, body: bytes):
        _exact("opened or close", body, _SEQUENCE.size)
        return cls(*_SEQUENCE.unpack(body))


@dataclass(frozen=True)
class Close(Opened):
    """The manager wants no more of this sequence: ended, cancelled, or failed elsewhere."""

    TYPE: ClassVar[int] = 14


_HIDDEN = struct.Struct(">IQIIIB3x")


@dataclass(frozen=True)
class Hidden:
    """One step's activations for positions [position, position + count), from a board to the next.

    `pass_len` is the sequence's length at the end of the pass that this chunk belongs to. `want_logits` tells the
    last board to sample after the chunk's last token.
    """

    TYPE: ClassVar[int] = 12
    OVERHEAD: ClassVar[int] = _HIDDEN.size  # bytes beside the tensor, without the frame's prefix
    LIMIT: ClassVar[int] = MAX_FRAME_BYTES
    epoch: int
    seq_id: int
    position: int
    count: int
    pass_len: int
    want_logits: bool
    data: bytes = field(repr=False)  # float32 [count, hidden_size]

    def encode(self) -> bytes:
        head = _HIDDEN.pack(
            self.epoch, self.seq_id, self.position, self.count, self.pass_len, int(self.want_logits)
        )
        return b"".join((head, self.data))

    @classmethod
    def decode(cls, body: bytes) -> "Hidden":
        epoch, seq_id, position, count, pass_len, flags = _unpack("hidden", _HIDDEN, body)
        data = body[_HIDDEN.size :]
        if flags > 1:
            raise RemoteProtocolError(f"hidden: flags {flags}, expected 0 or 1")
        if count < 1 or len(data) % (4 * count) or not data:
            raise RemoteProtocolError(f"hidden: {len(data)} bytes of tensor for {count} tokens")
        if position + count > pass_len:
            raise RemoteProtocolError(f"hidden: positions up to {position + count} in a pass of length {pass_len}")
        return cls(epoch, seq_id, position, count, pass_len, bool(flags), data)


_TOKEN = struct.Struct(">IQIIB")


@dataclass(frozen=True)
class Token:
    """The token at `position`, from the last board to the first and to the manager. `finish` indexes FINISH."""

    TYPE: ClassVar[int] = 13
    LIMIT: ClassVar[int] = _TOKEN.size
    epoch: int
    seq_id: int
    position: int
    token: int
    finish: int = 0

    def encode(self) -> bytes:
        return _TOKEN.pack(self.epoch, self.seq_id, self.position, self.token, self.finish)

    @classmethod
    def decode(cls, body: bytes) -> "Token":
        _exact("token", body, _TOKEN.size)
        message = cls(*_TOKEN.unpack(body))
        if message.finish >= len(FINISH):
            raise RemoteProtocolError(f"token: finish {message.finish}, the highest is {len(FINISH) - 1}")
        return message


@dataclass(frozen=True)
class Closed:
    """Answer to close: the slot is free. `stats`: what this board did for the sequence (docs/wire.md)."""

    TYPE: ClassVar[int] = 15
    LIMIT: ClassVar[int] = 64 * _KB
    epoch: int
    seq_id: int
    stats: dict

    def encode(self) -> bytes:
        return _SEQUENCE.pack(self.epoch, self.seq_id) + _json(self.stats)

    @classmethod
    def decode(cls, body: bytes) -> "Closed":
        epoch, seq_id = _unpack("closed", _SEQUENCE, body)
        return cls(epoch, seq_id, _object("closed", body[_SEQUENCE.size :]))


_FAILED = struct.Struct(">IQB")


@dataclass(frozen=True)
class Failed:
    """This sequence can't go on at this board. `code` indexes FAILURES."""

    TYPE: ClassVar[int] = 16
    LIMIT: ClassVar[int] = 4 * _KB
    epoch: int
    seq_id: int
    code: int
    reason: str

    def encode(self) -> bytes:
        return _FAILED.pack(self.epoch, self.seq_id, self.code) + _cut(self.reason, self.LIMIT - _FAILED.size)

    @classmethod
    def decode(cls, body: bytes) -> "Failed":
        epoch, seq_id, code = _unpack("failed", _FAILED, body)
        if code >= len(FAILURES):
            raise RemoteProtocolError(f"failed: code {code}, the highest is {len(FAILURES) - 1}")
        return cls(epoch, seq_id, code, _text("failed", body[_FAILED.size :]))


_LOGITS = struct.Struct(">IQI")


@dataclass(frozen=True)
class Logits:
    """What the token at `position` was chosen from: float32 [vocab_size]. Sent before the token, when asked for."""

    TYPE: ClassVar[int] = 17
    LIMIT: ClassVar[int] = 8 * _MB
    epoch: int
    seq_id: int
    position: int
    data: bytes = field(repr=False)

    def encode(self) -> bytes:
        return _LOGITS.pack(self.epoch, self.seq_id, self.position) + self.data

    @classmethod
    def decode(cls, body: bytes) -> "Logits":
        epoch, seq_id, position = _unpack("logits", _LOGITS, body)
        data = body[_LOGITS.size :]
        if not data or len(data) % 4:
            raise RemoteProtocolError(f"logits: {len(data)} bytes, expected a multiple of 4")
        return cls(epoch, seq_id, position, data)


_TRACE = struct.Struct(">III")


@dataclass(frozen=True)
class Trace:
    """Run your section over a whole sequence and send what each layer gives (for `edgellm verify`).

    `data` is token ids (uint32 [count]) for the first board, hidden states (float32 [count, hidden_size]) for others.
    Answered by one `traced` a layer, in order.
    """

    TYPE: ClassVar[int] = 18
    LIMIT: ClassVar[int] = MAX_FRAME_BYTES
    epoch: int
    layer: int  # the section's first layer in the question; the layer that `data` came out of in the answer
    count: int
    data: bytes = field(repr=False)

    def encode(self) -> bytes:
        return b"".join((_TRACE.pack(self.epoch, self.layer, self.count), self.data))

    @classmethod
    def decode(cls, body: bytes):
        epoch, layer, count = _unpack("trace", _TRACE, body)
        data = body[_TRACE.size :]
        if count < 1 or not data or len(data) % (4 * count):
            raise RemoteProtocolError(f"trace: {len(data)} bytes of tensor for {count} tokens")
        return cls(epoch, layer, count, data)


@dataclass(frozen=True)
class Traced(Trace):
    """A layer's output, float32 [count, hidden_size]."""

    TYPE: ClassVar[int] = 19


MESSAGES = (
    Hello, Refuse, Ping, Pong, AskStatus, Status, Assign, Assigned, Open, Opened, Hidden, Token, Close, Closed,
    Failed, Logits, Trace, Traced, Claim, Claimed, Commit, Committed,
)  # fmt: skip
BY_TYPE = {m.TYPE: m for m in MESSAGES}


def encode(message) -> bytes:
    """A message as one frame."""
    return encode_frame(message.TYPE, message.encode())
