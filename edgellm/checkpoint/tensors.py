"""A source's tensors, read a few rows at a time: plain, in GGUF's blocks as a shard packs them, or dequantized."""

import math
from collections.abc import Callable

import numpy as np
import torch

from edgellm.errors import CheckpointError
from edgellm.shards.positioned_file import CheckpointFile
from edgellm.shards.tiles import BLOCK_BYTES, GROUP_BYTES, TILE
from edgellm.shards.tiles import GROUP as BLOCK

# Encodings of plain tensors (docs/shards.md) and their torch dtypes.
PLAIN = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip
ENCODING_OF = {dtype: encoding for encoding, dtype in PLAIN.items()}
FLOATS = ("f64", "f32", "f16", "bf16")


def block_shape(shape: tuple[int, ...], encoding: str) -> tuple[int, ...]:
    """Shape of the tensor that holds rows in GGUF's blocks: a packed row is in/32 blocks of bytes."""
    if encoding in BLOCK_BYTES:
        return (*shape[:-1], shape[-1] // BLOCK * BLOCK_BYTES[encoding])
    return tuple(shape)


def stored_shape(shape: tuple[int, ...], encoding: str) -> tuple[int, ...]:
    """Shape of the tensor in a shard: a packed weight [out, in] is tiles of bytes."""
    if encoding in GROUP_BYTES:
        return -(-shape[0] // TILE), shape[1] // BLOCK * GROUP_BYTES[encoding]
    return tuple(shape)


def stored_bytes(shape: tuple[int, ...], encoding: str) -> int:
    """Bytes in a shard of a tensor of `shape` in `encoding`."""
    item = 1 if encoding in GROUP_BYTES else PLAIN[encoding].itemsize
    return math.prod(stored_shape(shape, encoding)) * item


class Rows:
    """A tensor whose first dimension can be read piece by piece.

    `shape` counts elements, `encoding` says what `read` returns: a tensor of that dtype, or GGUF's
    blocks, a uint8 tensor [rows, bytes a row].
    """

    def __init__(self, shape: tuple[int, ...], encoding: str):
        self.shape, self.encoding = tuple(shape), encoding

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) as the source has them."""
        raise NotImplementedError

    def read_f32(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) in float32."""
        return to_f32(self.read(start, stop), self.encoding, (stop - start, *self.shape[1:]))

    def read_all(self) -> torch.Tensor:
        """The whole tensor as the source has it; of a scalar too."""
        return self.read(0, self.shape[0] if self.shape else 1).reshape(block_shape(self.shape, self.encoding))


class FileRows(Rows):
    """Rows that lie in a file as `read` returns them."""

    def __init__(self, file: CheckpointFile, offset: int, shape: tuple[int, ...], encoding: str, what: str):
        super().__init__(shape, encoding)
        self._file, self._offset, self._what = file, offset, what
        item = 1 if encoding in BLOCK_BYTES else PLAIN[encoding].itemsize
        self._row_bytes = math.prod(block_shape((1, *self.shape[1:]), encoding)) * item

    def read(self, start: int, stop: int) -> torch.Tensor:
        shape = block_shape((stop - start, *self.shape[1:]), self.encoding)
        if not math.prod(shape):
            return torch.empty(shape, dtype=PLAIN.get(self.encoding, torch.uint8))
        raw = self._file.read(self._offset + start * self._row_bytes, (stop - start) * self._row_bytes, self._what)
        return torch.frombuffer(raw, dtype=PLAIN.get(self.encoding, torch.uint8)).reshape(shape)


class BlockRows(Rows):
    """Rows of GGUF blocks that a shard doesn't pack: they become float16."""

    def __init__(self, file: CheckpointFile, offset: int, shape, row_bytes: int, type_id: int, what: str):
        super().__init__(shape, "f16")
        self._file, self._offset, self._row_bytes, self._type_id, self._what = file, offset, row_bytes, type_id, what

    def _raw(self, start: int, stop: int) -> np.ndarray:
        """Rows along the first dimension as uint8 [rows × inner rows, bytes a row]."""
        inner = math.prod(self.shape[1:-1])
        stride = inner * self._row_bytes
        raw = self._file.read(self._offset + start * stride, (stop - start) * stride, self._what)
        return np.frombuffer(raw, dtype=np.uint8).reshape(-1, self._row_bytes)

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self.read_f32(start, stop).to(torch.float16)

    def read_f32(self, start: int, stop: int) -> torch.Tensor:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        with np.errstate(all="ignore"):  # the writer refuses what isn't finite
            values = dequantize(self._raw(start, stop), GGMLQuantizationType(self._type_id))
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(stop - start, *self.shape[1:])


class LoadedRows(Rows):
    """Rows of a tensor that only exists whole (transposed, permuted, merged from several); made at the first read."""

    def __init__(self, shape: tuple[int, ...], encoding: str, load: Callable[[], torch.Tensor]):
        super().__init__(shape, encoding)
        self._load, self._data = load, None

    def read(self, start: int, stop: int) -> torch.Tensor:
        if self._data is None:
            self._data = self._load().reshape(block_shape(self.shape or (1,), self.encoding))
        return self._data[start:stop]


class SourceTensor:
    """One tensor of a source under its state_dict name: `shape` as in the state_dict, `encoding` as the source has it.

    `origin` names file and tensor for errors. `rows(transposed)` opens it; transposed=True gives the rows [out, in] of
    a Conv1D weight, whose state_dict shape is [in, out].
    """

    def __init__(self, shape, encoding: str, origin: str, open_rows: Callable[[bool], Rows]):
        self.shape, self.encoding, self.origin = tuple(shape), encoding, origin
        self._open = open_rows

    def rows(self, transposed: bool = False) -> Rows:
        """Open for reading."""
        return self._open(transposed)


def to_f32(data: torch.Tensor, encoding: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Rows as read, in float32; `shape` counts elements."""
    if encoding in BLOCK_BYTES:
        from edgellm.model.generic.packed import block_values

        return block_values(data.reshape(-1, BLOCK_BYTES[encoding]), encoding).reshape(shape)
    return data.to(torch.float32)


def transposed_rows(rows: Rows) -> Rows:
    """A 2-D plain tensor with its dimensions swapped."""
    if rows.encoding in BLOCK_BYTES or len(rows.shape) != 2:
        raise CheckpointError(f"a tensor of shape {list(rows.shape)} in {rows.encoding} can't be transposed")
    return LoadedRows(rows.shape[::-1], rows.encoding, lambda: rows.read_all().t().contiguous())
