"""Messages of an answer, from the last board: how far its prompt is, its tokens, and what was asked beside them
(docs/wire.md)."""

import struct
from dataclasses import dataclass, field
from typing import ClassVar

from edgellm.errors import RemoteProtocolError
from edgellm.limits import MAX_CHOICES, MAX_LOGPROBS
from edgellm.wire.body import MB, check_size, unpack

# Finish reasons, as numbered in TOKENS.
FINISH = ("", "eos", "length", "context")

_PREFILLED = struct.Struct(">IQI")


@dataclass(frozen=True)
class Prefilled:
    """The first `position` tokens of the prompt are computed on every board. Sent now and then, when asked for."""

    TYPE: ClassVar[int] = 29
    LIMIT: ClassVar[int] = _PREFILLED.size
    epoch: int
    seq_id: int
    position: int

    def encode(self) -> bytes:
        return _PREFILLED.pack(self.epoch, self.seq_id, self.position)

    @classmethod
    def decode(cls, body: bytes) -> "Prefilled":
        check_size("prefilled", body, _PREFILLED.size)
        return cls(*_PREFILLED.unpack(body))


_TOKENS = struct.Struct(">IQIBB")


@dataclass(frozen=True)
class Tokens:
    """Tokens from `position` on, as one step chose them, from the last board to the first and to the manager.
    `finish` indexes FINISH and is the last one's. `drafts` are guesses of what may follow, for the first board's next
    step."""

    TYPE: ClassVar[int] = 13
    LIMIT: ClassVar[int] = _TOKENS.size + 4 * (2 * MAX_CHOICES - 1)
    epoch: int
    seq_id: int
    position: int
    finish: int
    ids: tuple[int, ...]
    drafts: tuple[int, ...] = ()

    def encode(self) -> bytes:
        head = _TOKENS.pack(self.epoch, self.seq_id, self.position, self.finish, len(self.drafts))
        return head + struct.pack(f"<{len(self.ids) + len(self.drafts)}I", *self.ids, *self.drafts)

    @classmethod
    def decode(cls, body: bytes) -> "Tokens":
        epoch, seq_id, position, finish, drafts = unpack("tokens", _TOKENS, body)
        if drafts >= MAX_CHOICES:
            raise RemoteProtocolError(f"tokens: {drafts} drafts, at most {MAX_CHOICES - 1}")
        size = len(body) - _TOKENS.size - 4 * drafts
        if size < 4 or size % 4 or size > 4 * MAX_CHOICES:
            raise RemoteProtocolError(f"tokens: {size} bytes of ids, expected those of 1 to {MAX_CHOICES}")
        if finish >= len(FINISH):
            raise RemoteProtocolError(f"tokens: finish {finish}, the highest is {len(FINISH) - 1}")
        count = size // 4
        ids = struct.unpack_from(f"<{count + drafts}I", body, _TOKENS.size)
        return cls(epoch, seq_id, position, finish, ids[:count], ids[count:])


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


_LOGPROBS = struct.Struct(">IQI")


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities at `position`, before any penalty: first of the token that was chosen, then
    of the likeliest ones, highest first. Sent before the token, when asked for."""

    TYPE: ClassVar[int] = 28
    LIMIT: ClassVar[int] = _LOGPROBS.size + 8 * (1 + MAX_LOGPROBS)
    epoch: int
    seq_id: int
    position: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    def encode(self) -> bytes:
        head, count = _LOGPROBS.pack(self.epoch, self.seq_id, self.position), len(self.ids)
        return head + struct.pack(f"<{count}I", *self.ids) + struct.pack(f"<{count}f", *self.logprobs)

    @classmethod
    def decode(cls, body: bytes) -> "Logprobs":
        epoch, seq_id, position = unpack("logprobs", _LOGPROBS, body)
        size = len(body) - _LOGPROBS.size
        if size < 8 or size % 8 or size > 8 * (1 + MAX_LOGPROBS):
            raise RemoteProtocolError(f"logprobs: {size} bytes, expected 8 for each of 1 to {1 + MAX_LOGPROBS} tokens")
        count = size // 8
        ids = struct.unpack_from(f"<{count}I", body, _LOGPROBS.size)
        logprobs = struct.unpack_from(f"<{count}f", body, _LOGPROBS.size + 4 * count)
        if not all(value <= 0 for value in logprobs):  # NaN neither
            raise RemoteProtocolError("logprobs: a value that is no logarithm of a probability")
        return cls(epoch, seq_id, position, ids, logprobs)


_EMBEDDED = struct.Struct(">IQ")


@dataclass(frozen=True)
class Embedded:
    """The embedding of the whole prompt, float32 [hidden_size]. It ends the sequence, whose Open asked to `pool`."""

    TYPE: ClassVar[int] = 30
    LIMIT: ClassVar[int] = 1 * MB
    epoch: int
    seq_id: int
    data: bytes = field(repr=False)

    def encode(self) -> bytes:
        return _EMBEDDED.pack(self.epoch, self.seq_id) + self.data

    @classmethod
    def decode(cls, body: bytes) -> "Embedded":
        epoch, seq_id = unpack("embedded", _EMBEDDED, body)
        data = body[_EMBEDDED.size :]
        if not data or len(data) % 4:
            raise RemoteProtocolError(f"embedded: {len(data)} bytes, expected a multiple of 4")
        return cls(epoch, seq_id, data)
