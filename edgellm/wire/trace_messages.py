"""Messages of a trace: what each layer of a section gives for a part of a sequence (docs/wire.md)."""

import struct
from dataclasses import dataclass, field
from typing import ClassVar

from edgellm.errors import RemoteProtocolError
from edgellm.limits import MAX_FRAME_BYTES
from edgellm.wire.body import unpack

_TRACE = struct.Struct(">IIQIIII")


@dataclass(frozen=True)
class Trace:
    """Run your section over a part of a sequence, in the slot that is open for it, and send what each layer gives (for
    `edgellm verify`).

    `data` is token ids (uint32 [count]) for the first board, hidden states (float32 [count, hidden_size]) for others,
    at `position` and behind it, of a sequence of `pass_len` tokens. Answered by one `traced` per layer, in order.
    """

    TYPE: ClassVar[int] = 18
    OVERHEAD: ClassVar[int] = _TRACE.size
    LIMIT: ClassVar[int] = MAX_FRAME_BYTES
    epoch: int
    layer: int  # the section's first layer
    count: int
    data: bytes = field(repr=False)
    seq_id: int = 0
    position: int = 0
    pass_len: int = 0
    request: int = 0

    def encode(self) -> bytes:
        head = _TRACE.pack(
            self.request, self.epoch, self.seq_id, self.layer, self.position, self.pass_len, self.count
        )
        return b"".join((head, self.data))

    @classmethod
    def decode(cls, body: bytes) -> "Trace":
        request, epoch, seq_id, layer, position, pass_len, count = unpack("trace", _TRACE, body)
        data = body[_TRACE.size :]
        if count < 1 or not data or len(data) % (4 * count):
            raise RemoteProtocolError(f"trace: {len(data)} bytes of tensor for {count} tokens")
        return cls(epoch, layer, count, data, seq_id, position, pass_len, request)


_TRACED = struct.Struct(">IIIII")


@dataclass(frozen=True)
class Traced:
    """A layer's output at `position` and behind it, float32 [count, hidden_size]."""

    TYPE: ClassVar[int] = 19
    LIMIT: ClassVar[int] = MAX_FRAME_BYTES
    epoch: int
    layer: int
    count: int
    data: bytes = field(repr=False)
    position: int = 0
    request: int = 0

    def encode(self) -> bytes:
        return b"".join((_TRACED.pack(self.request, self.epoch, self.layer, self.position, self.count), self.data))

    @classmethod
    def decode(cls, body: bytes) -> "Traced":
        request, epoch, layer, position, count = unpack("traced", _TRACED, body)
        data = body[_TRACED.size :]
        if count < 1 or not data or len(data) % (4 * count):
            raise RemoteProtocolError(f"traced: {len(data)} bytes of tensor for {count} tokens")
        return cls(epoch, layer, count, data, position, request)
