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
VERSION = 3

# The most tokens that one step may choose: one, and one after each draft that it carries.
MAX_CHOICES = 16
# Finish reasons, as numbered in TOKENS.
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

    `ids` are the prompt's token ids. `options`: `plan` (its digest), `sampling`, `max_tokens`, `eos` (token ids that
    end the answer), `logits` (true: the last board also sends its logits), `reuse` (at most so many tokens of the
    prompt need not be computed where a slot holds them), `speculate` (true: steps may carry drafts).
    """

    TYPE: ClassVar[int] = 10
    LIMIT: ClassVar[int] = 8 * _MB
    OPTIONS_LIMIT: ClassVar[int] = 64 * _KB
    epoch: int
    seq_id: int
    options: dict
    ids: tuple[int, ...]

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


_OPENED = struct.Struct(">IQIB")


@dataclass(frozen=True)
class Opened:
    """A slot is reserved. It holds the prompt's first `reused` tokens already: computing may start there. `batches`:
    here a step gives the same bits whatever is computed with it, so drafts may be verified."""

    TYPE: ClassVar[int] = 11
    LIMIT: ClassVar[int] = _OPENED.size
    epoch: int
    seq_id: int
    reused: int = 0
    batches: bool = False

    def encode(self) -> bytes:
        return _OPENED.pack(self.epoch, self.seq_id, self.reused, int(self.batches))

    @classmethod
    def decode(cls, body: bytes) -> "Opened":
        _exact("opened", body, _OPENED.size)
        epoch, seq_id, reused, batches = _OPENED.unpack(body)
        if batches > 1:
            raise RemoteProtocolError(f"opened: batches {batches}, expected 0 or 1")
        return cls(epoch, seq_id, reused, bool(batches))


_SEQUENCE = struct.Struct(">IQ")


@dataclass(frozen=True)
class Close:
    """The manager wants no more of this sequence: ended, cancelled, or failed elsewhere."""

    TYPE: ClassVar[int] = 14
    LIMIT: ClassVar[int] = _SEQUENCE.size
    epoch: int
    seq_id: int

    def encode(self) -> bytes:
        return _SEQUENCE.pack(self.epoch, self.seq_id)

    @classmethod
    def decode(cls, body: bytes) -> "Close":
        _exact("close", body, _SEQUENCE.size)
        return cls(*_SEQUENCE.unpack(body))


_HIDDEN = struct.Struct(">IQIIIB3x")


@dataclass(frozen=True)
class Hidden:
    """One step's activations for the tokens `ids` at positions [position, position + len(ids)), from a board to the
    next.

    `pass_len` is the sequence's length at the end of the pass that this chunk belongs to. After each of the chunk's
    last `logits` tokens the last board is to choose one; all `ids` behind the first of these are drafts, which count
    as long as they are what is chosen.
    """

    TYPE: ClassVar[int] = 12
    OVERHEAD: ClassVar[int] = _HIDDEN.size  # bytes beside ids and tensor, without the frame's prefix
    LIMIT: ClassVar[int] = MAX_FRAME_BYTES
    epoch: int
    seq_id: int
    position: int
    pass_len: int
    logits: int
    ids: tuple[int, ...]
    data: bytes = field(repr=False)  # float32 [len(ids), hidden_size]

    def encode(self) -> bytes:
        count = len(self.ids)
        head = _HIDDEN.pack(self.epoch, self.seq_id, self.position, count, self.pass_len, self.logits)
        return b"".join((head, struct.pack(f"<{count}I", *self.ids), self.data))

    @classmethod
    def decode(cls, body: bytes) -> "Hidden":
        epoch, seq_id, position, count, pass_len, logits = _unpack("hidden", _HIDDEN, body)
        size = len(body) - _HIDDEN.size - 4 * count
        if count < 1 or size < 1 or size % (4 * count):
            raise RemoteProtocolError(f"hidden: {len(body) - _HIDDEN.size} bytes of ids and tensor for {count} tokens")
        if logits > min(count, MAX_CHOICES):
            raise RemoteProtocolError(f"hidden: {logits} choices in a step of {count}, at most {MAX_CHOICES}")
        if position + count > pass_len:
            raise RemoteProtocolError(f"hidden: positions up to {position + count} in a pass of length {pass_len}")
        ids = struct.unpack_from(f"<{count}I", body, _HIDDEN.size)
        return cls(epoch, seq_id, position, pass_len, logits, ids, body[_HIDDEN.size + 4 * count :])


_TOKENS = struct.Struct(">IQIB")


@dataclass(frozen=True)
class Tokens:
    """Tokens from `position` on, as one step chose them, from the last board to the first and to the manager.
    `finish` indexes FINISH and is the last one's."""

    TYPE: ClassVar[int] = 13
    LIMIT: ClassVar[int] = _TOKENS.size + 4 * MAX_CHOICES
    epoch: int
    seq_id: int
    position: int
    finish: int
    ids: tuple[int, ...]

    def encode(self) -> bytes:
        head = _TOKENS.pack(self.epoch, self.seq_id, self.position, self.finish)
        return head + struct.pack(f"<{len(self.ids)}I", *self.ids)

    @classmethod
    def decode(cls, body: bytes) -> "Tokens":
        epoch, seq_id, position, finish = _unpack("tokens", _TOKENS, body)
        size = len(body) - _TOKENS.size
        if size < 4 or size % 4 or size > 4 * MAX_CHOICES:
            raise RemoteProtocolError(f"tokens: {size} bytes of ids, expected those of 1 to {MAX_CHOICES}")
        if finish >= len(FINISH):
            raise RemoteProtocolError(f"tokens: finish {finish}, the highest is {len(FINISH) - 1}")
        return cls(epoch, seq_id, position, finish, struct.unpack_from(f"<{size // 4}I", body, _TOKENS.size))


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
    Hello, Refuse, Ping, Pong, AskStatus, Status, Assign, Assigned, Open, Opened, Hidden, Tokens, Close, Closed,
    Failed, Logits, Trace, Traced, Claim, Claimed, Commit, Committed,
)  # fmt: skip
BY_TYPE = {m.TYPE: m for m in MESSAGES}


def encode(message) -> bytes:
    """A message as one frame."""
    return encode_frame(message.TYPE, message.encode())
