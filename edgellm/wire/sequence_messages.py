"""Messages of one sequence: its slot, its hidden states, its tokens and its end; and traces (docs/wire.md)."""

import struct
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from edgellm.errors import RemoteProtocolError
from edgellm.limits import MAX_CHOICES, MAX_FRAME_BYTES
from edgellm.wire.body import KB, MB, check_size, cut, json_of, object_of, text_of, unpack

# Finish reasons, as numbered in TOKENS.
FINISH = ("", "eos", "length", "context")
# Why a sequence failed, as numbered in FAILED.
FAILURES = ("error", "busy", "epoch", "draining", "link", "unknown")

_SEQUENCE = struct.Struct(">IQ")  # of the messages that say no more
_OPEN = struct.Struct(">IQII")


@dataclass(frozen=True)
class Open:
    """Reserve a slot for a sequence. The first board starts to work on it at once, so it is opened last.

    `ids` are the prompt's token ids. `options`: `plan` (its digest), `sampling`, `max_tokens`, `eos` (token ids that
    end the answer), `logits` (true: the last board also sends its logits), `reuse` (at most so many tokens of the
    prompt need not be computed where a slot holds them), `speculate` (true: steps may carry drafts).
    """

    TYPE: ClassVar[int] = 10
    LIMIT: ClassVar[int] = 8 * MB
    OPTIONS_LIMIT: ClassVar[int] = 64 * KB
    epoch: int
    seq_id: int
    options: dict[str, Any]
    ids: tuple[int, ...]

    def encode(self) -> bytes:
        options = json_of(self.options)
        head = _OPEN.pack(self.epoch, self.seq_id, len(options), len(self.ids))
        return head + options + struct.pack(f"<{len(self.ids)}I", *self.ids)

    @classmethod
    def decode(cls, body: bytes) -> "Open":
        epoch, seq_id, options_bytes, count = unpack("open", _OPEN, body)
        check_size("open", body, _OPEN.size + options_bytes + 4 * count)
        if options_bytes > cls.OPTIONS_LIMIT:
            raise RemoteProtocolError(f"open: {options_bytes} bytes of options, at most {cls.OPTIONS_LIMIT}")
        at = _OPEN.size + options_bytes
        return cls(
            epoch, seq_id, object_of("open", body[_OPEN.size : at]), struct.unpack_from(f"<{count}I", body, at)
        )


_OPENED = struct.Struct(">IQIB")


@dataclass(frozen=True)
class Opened:
    """A slot is reserved. It holds the prompt's first `reused` tokens already: computing may start there. `batches`:
    a step here gives the same bits no matter what is computed with it, so drafts may be verified."""

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
        check_size("opened", body, _OPENED.size)
        epoch, seq_id, reused, batches = _OPENED.unpack(body)
        if batches > 1:
            raise RemoteProtocolError(f"opened: batches {batches}, expected 0 or 1")
        return cls(epoch, seq_id, reused, bool(batches))


@dataclass(frozen=True)
class Close:
    """The manager is done with this sequence: it ended, was cancelled, or failed elsewhere."""

    TYPE: ClassVar[int] = 14
    LIMIT: ClassVar[int] = _SEQUENCE.size
    epoch: int
    seq_id: int

    def encode(self) -> bytes:
        return _SEQUENCE.pack(self.epoch, self.seq_id)

    @classmethod
    def decode(cls, body: bytes) -> "Close":
        check_size("close", body, _SEQUENCE.size)
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
        epoch, seq_id, position, count, pass_len, logits = unpack("hidden", _HIDDEN, body)
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
        epoch, seq_id, position, finish = unpack("tokens", _TOKENS, body)
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
    LIMIT: ClassVar[int] = 64 * KB
    epoch: int
    seq_id: int
    stats: dict[str, Any]

    def encode(self) -> bytes:
        return _SEQUENCE.pack(self.epoch, self.seq_id) + json_of(self.stats)

    @classmethod
    def decode(cls, body: bytes) -> "Closed":
        epoch, seq_id = unpack("closed", _SEQUENCE, body)
        return cls(epoch, seq_id, object_of("closed", body[_SEQUENCE.size :]))


_FAILED = struct.Struct(">IQB")


@dataclass(frozen=True)
class Failed:
    """This sequence can't continue on this board. `code` indexes FAILURES."""

    TYPE: ClassVar[int] = 16
    LIMIT: ClassVar[int] = 4 * KB
    epoch: int
    seq_id: int
    code: int
    reason: str

    def encode(self) -> bytes:
        return _FAILED.pack(self.epoch, self.seq_id, self.code) + cut(self.reason, self.LIMIT - _FAILED.size)

    @classmethod
    def decode(cls, body: bytes) -> "Failed":
        epoch, seq_id, code = unpack("failed", _FAILED, body)
        if code >= len(FAILURES):
            raise RemoteProtocolError(f"failed: code {code}, the highest is {len(FAILURES) - 1}")
        return cls(epoch, seq_id, code, text_of("failed", body[_FAILED.size :]))


_LOGITS = struct.Struct(">IQI")


@dataclass(frozen=True)
class Logits:
    """The logits from which the token at `position` was chosen: float32 [vocab_size]. Sent before the token, when asked
    for.
    """

    TYPE: ClassVar[int] = 17
    LIMIT: ClassVar[int] = 8 * MB
    epoch: int
    seq_id: int
    position: int
    data: bytes = field(repr=False)

    def encode(self) -> bytes:
        return _LOGITS.pack(self.epoch, self.seq_id, self.position) + self.data

    @classmethod
    def decode(cls, body: bytes) -> "Logits":
        epoch, seq_id, position = unpack("logits", _LOGITS, body)
        data = body[_LOGITS.size :]
        if not data or len(data) % 4:
            raise RemoteProtocolError(f"logits: {len(data)} bytes, expected a multiple of 4")
        return cls(epoch, seq_id, position, data)


_TRACE = struct.Struct(">III")


@dataclass(frozen=True)
class Trace:
    """Run your section over a whole sequence and send what each layer gives (for `edgellm verify`).

    `data` is token ids (uint32 [count]) for the first board, hidden states (float32 [count, hidden_size]) for others.
    Answered by one `traced` per layer, in order.
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
    def decode(cls, body: bytes) -> Self:
        epoch, layer, count = unpack("trace", _TRACE, body)
        data = body[_TRACE.size :]
        if count < 1 or not data or len(data) % (4 * count):
            raise RemoteProtocolError(f"trace: {len(data)} bytes of tensor for {count} tokens")
        return cls(epoch, layer, count, data)


@dataclass(frozen=True)
class Traced(Trace):
    """A layer's output, float32 [count, hidden_size]."""

    TYPE: ClassVar[int] = 19
