"""Frames: length-prefixed bytes, cut out of a stream without I/O and without trusting its lengths.

A frame is a 4-byte big-endian length of what follows, one byte of type, and the body (docs/wire.md).
"""

import struct
from collections.abc import Callable, Generator

from edgellm.errors import RemoteProtocolError

PREFIX = struct.Struct(">IB")  # length of type + body, type


def encode_frame(type_: int, body: bytes | bytearray | memoryview) -> bytes:
    """Return one frame as bytes."""
    return b"".join((PREFIX.pack(1 + len(body), type_), body))


class FrameReader:
    """Cuts a byte stream into (type, body). `limit_of(type, size)` gives the largest body allowed, in view of one of
    `size` bytes, or raises RemoteProtocolError for a type that isn't; it is asked before room for the body is made."""

    def __init__(self, limit_of: Callable[[int, int], int]):
        self._limit_of = limit_of
        self._buffer = bytearray()
        self._need = PREFIX.size
        self._type: int | None = None  # of the frame whose prefix has been read

    @property
    def partial(self) -> bool:
        """True while a frame has begun and not ended."""
        return bool(self._buffer) or self._type is not None

    @property
    def buffered(self) -> int:
        """Bytes that are held: of the frame that has begun, and of those behind it."""
        return len(self._buffer)

    @property
    def ready(self) -> bool:
        """Whether `feed` would get further without more bytes."""
        return len(self._buffer) >= self._need

    def feed(self, data: bytes) -> Generator[tuple[int, bytes], None, None]:
        """Take bytes and yield the frames that they complete, one at a time: a frame's prefix is looked at only when
        the frame before it has been dealt with. Frames that aren't taken stay. Raises RemoteProtocolError at the first
        bad prefix."""
        self._buffer += data
        offset = 0
        try:
            while len(self._buffer) - offset >= self._need:
                if self._type is None:
                    length, type_ = PREFIX.unpack_from(self._buffer, offset)
                    self._check(length, type_)
                    offset += PREFIX.size
                    self._type, self._need = type_, length - 1
                else:
                    frame = self._type, bytes(memoryview(self._buffer)[offset : offset + self._need])
                    offset += self._need
                    self._type, self._need = None, PREFIX.size
                    yield frame
        finally:
            del self._buffer[:offset]

    def _check(self, length: int, type_: int) -> None:
        if length < 1:
            raise RemoteProtocolError("a frame of length 0; the shortest is 1 byte")
        limit = self._limit_of(type_, length - 1)
        if length - 1 > limit:
            raise RemoteProtocolError(f"a frame of type {type_} with {length - 1} bytes, at most {limit} are allowed")

    def at_end(self) -> None:
        """Take the end of the stream. Raises RemoteProtocolError if that is inside a frame."""
        if self._type is not None:
            raise RemoteProtocolError(f"stream ends after {len(self._buffer)} bytes of a body, expected {self._need}")
        if self._buffer:
            found = len(self._buffer)
            raise RemoteProtocolError(f"stream ends after {found} bytes of a prefix, expected {PREFIX.size}")
