"""A GGUF file's header, parsed as hostile input: its metadata, and what each tensor is and where its bytes lie.

The gguf package's reader is not used for this: it makes a numpy array of every vocabulary entry (seconds), and it
checks no length against the file.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import CheckpointError
from edgellm.shards.positioned_file import CheckpointFile

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_HEADER_BYTES = 1 << 28
_FIRST_READ_BYTES = 1 << 24
# ggml type: name, elements per block, bytes per block
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor in a GGUF file: `shape` slowest dimension first (as NumPy), `offset` from the file's first byte."""

    file: CheckpointFile
    type: str
    type_id: int
    shape: tuple[int, ...]
    offset: int
    bytes: int
    row_bytes: int


@dataclass(frozen=True)
class GGUFFile:
    """An opened GGUF file and its checked header: `header` is its bytes."""

    file: CheckpointFile
    header: bytes
    metadata: dict[str, object]
    tensors: dict[str, GGUFTensor]

    @classmethod
    def open(cls, path: Path) -> "GGUFFile":
        """Open a file, read and check its header. Raises CheckpointError with file, tensor and both numbers."""
        file = CheckpointFile(path)
        if bytes(file.read(0, min(4, file.bytes))) != b"GGUF":
            raise CheckpointError(f"{path} doesn't begin with 'GGUF', so it is not a GGUF file")
        # Grow until the header is in: its length is stated nowhere.
        length = min(_FIRST_READ_BYTES, file.bytes)
        while True:
            cursor = _Cursor(path, file.read(0, length), complete=length == file.bytes)
            try:
                return _parse(path, file, cursor)
            except _NeedMore:
                if length >= _MAX_HEADER_BYTES:
                    raise CheckpointError(
                        f"{path}: the header continues after {length} bytes, at most {_MAX_HEADER_BYTES} are read. "
                        "It is corrupt; fetch it again."
                    ) from None
                length = min(length * 4, file.bytes, _MAX_HEADER_BYTES)


class _NeedMore(Exception):
    """The header doesn't end within the bytes read so far."""


class _Cursor:
    def __init__(self, path: Path, data: bytearray, complete: bool):
        self.path, self.data, self.complete, self.at = path, data, complete, 0

    def skip(self, length: int) -> int:
        """Step over `length` bytes, which must be there; return where they begin."""
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            if not self.complete:
                raise _NeedMore
            raise CheckpointError(
                f"{self.path}: the header needs byte {self.at}, the file has {len(self.data)}. "
                "It is truncated or corrupt; fetch it again."
            )
        return start

    def scalar(self, form: str):
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))[0]

    def string(self) -> str:
        length = self.scalar("<Q")
        start = self.skip(length)
        # Some vocabularies have entries that aren't UTF-8; nothing looks these up.
        return self.data[start : start + length].decode("utf-8", "replace")

    def value(self, kind: int):
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise CheckpointError(f"{self.path}: metadata of type {kind} at byte {self.at}, known are 0 to 12")
        element, count = self.scalar("<I"), self.scalar("<Q")
        if element in _SCALARS:
            form = _SCALARS[element][1]
            start = self.skip(count * struct.calcsize("<" + form))
            return list(struct.unpack_from(f"<{count}{form}", self.data, start))
        if element != _STRING:
            raise CheckpointError(f"{self.path}: an array of type {element} at byte {self.at}, known are plain ones")
        if self.at + 8 * count > len(self.data):  # each string has at least its length
            self.skip(8 * count)
        return [self.string() for _ in range(count)]


def _parse(path: Path, file: CheckpointFile, cursor: _Cursor) -> GGUFFile:
    cursor.skip(4)
    version, num_tensors, num_entries = cursor.scalar("<I"), cursor.scalar("<Q"), cursor.scalar("<Q")
    if version not in (2, 3):
        raise CheckpointError(f"{path} is GGUF version {version}, readable are 2 and 3 (little-endian)")
    metadata: dict[str, object] = {}
    for _ in range(num_entries):
        key, kind = cursor.string(), cursor.scalar("<I")
        if key in metadata:
            raise CheckpointError(f"{path}: metadata {key[:80]!r} occurs twice")
        metadata[key] = cursor.value(kind)
    infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
        name, num_dims = cursor.string(), cursor.scalar("<I")
        if name in infos or num_dims > 4:
            raise CheckpointError(f"{path}: tensor {name[:80]!r} occurs twice or has {num_dims} dimensions, not 1-4")
        dims = tuple(cursor.scalar("<Q") for _ in range(num_dims))
        infos[name] = (dims[::-1], cursor.scalar("<I"), cursor.scalar("<Q"))
    header = bytes(cursor.data[: cursor.at])
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment is {str(alignment)[:40]}, expected a power of two")
    start = -(-cursor.at // alignment) * alignment
    return GGUFFile(file, header, metadata, {name: _tensor(file, name, *info, start) for name, info in infos.items()})


def _tensor(
    file: CheckpointFile, name: str, shape: tuple[int, ...], type_id: int, offset: int, data_start: int
) -> GGUFTensor:
    where = f"{file.path}: tensor {name[:200]!r}"
    if type_id not in TYPES:
        known = ", ".join(t[0] for t in TYPES.values())
        raise CheckpointError(f"{where} has ggml type {type_id}; known are {known}")
    type_name, block, block_bytes = TYPES[type_id]
    shape = shape or (1,)
    if shape[-1] % block:
        raise CheckpointError(f"{where} has rows of {shape[-1]} elements, {type_name} needs a multiple of {block}")
    row_bytes = shape[-1] // block * block_bytes
    need = math.prod(shape[:-1]) * row_bytes
    end = data_start + offset + need
    if end > file.bytes:
        raise CheckpointError(
            f"{where} ends at byte {end}, the file has {file.bytes}. It is truncated or corrupt; fetch it again."
        )
    return GGUFTensor(file, type_name, type_id, shape, data_start + offset, need, row_bytes)
