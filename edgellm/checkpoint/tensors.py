"""A source's tensors, read a few rows at a time: plain, in GGUF's blocks as a shard packs them, or dequantized."""

import math
from collections.abc import Callable

import numpy as np

from edgellm.errors import CheckpointError
from edgellm.kernels.library import BLOCK_COLUMNS, GROUP, GROUP_BYTES, TILE
from edgellm.shards.encodings import split_blocks, values
from edgellm.shards.positioned_file import CheckpointFile
from edgellm.shards.tiles import BLOCK_BYTES

# Encodings of plain tensors (docs/shards.md), and NumPy dtypes that hold them: of bf16, which NumPy lacks, its bits.
PLAIN: dict[str, np.dtype] = {
    "f64": np.dtype("<f8"), "f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "bf16": np.dtype("<u2"),
    "i64": np.dtype("<i8"), "i32": np.dtype("<i4"), "i16": np.dtype("<i2"), "i8": np.dtype("i1"), "u8": np.dtype("u1"),
    "bool": np.dtype("?"),
}  # fmt: skip
FLOATS = ("f64", "f32", "f16", "bf16")


def plain_encoding(encoding: str) -> str:
    """Return the plain encoding for a tensor that can't stay packed."""
    return "f16" if encoding in BLOCK_BYTES else encoding


def block_shape(shape: tuple[int, ...], encoding: str) -> tuple[int, ...]:
    """Return the shape of the array that holds rows in GGUF's blocks: a packed row is the bytes of its blocks."""
    if encoding in BLOCK_BYTES:
        return (*shape[:-1], shape[-1] // BLOCK_COLUMNS[encoding] * BLOCK_BYTES[encoding])
    return tuple(shape)


def stored_shape(shape: tuple[int, ...], encoding: str) -> tuple[int, ...]:
    """Return the shape of the tensor in a shard: a packed weight [out, in] is tiles of bytes, and experts
    [experts, out, in] are as many such weights."""
    if encoding in GROUP_BYTES:
        return (*shape[:-2], -(-shape[-2] // TILE), shape[-1] // GROUP * GROUP_BYTES[encoding])
    return tuple(shape)


def stored_bytes(shape: tuple[int, ...], encoding: str) -> int:
    """Return the bytes in a shard of a tensor of `shape` in `encoding`."""
    item = 1 if encoding in GROUP_BYTES else PLAIN[encoding].itemsize
    return math.prod(stored_shape(shape, encoding)) * item


def to_f32(data: np.ndarray, encoding: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return rows as read in float32; `shape` counts elements."""
    if encoding in BLOCK_BYTES:
        return values(*split_blocks(data.reshape(-1, data.shape[-1]), encoding), encoding).reshape(shape)
    if encoding == "bf16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):  # what isn't finite is refused where it is written
        return data.astype(np.float32)


def from_f32(values: np.ndarray, encoding: str) -> np.ndarray:
    """Return float32 values in a plain encoding, rounded to nearest, ties to even."""
    if encoding == "bf16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    with np.errstate(all="ignore"):
        return values.astype(PLAIN[encoding])


class Rows:
    """A tensor whose first dimension can be read piece by piece.

    `shape` counts elements. `encoding` says what `read` returns: an array of that dtype (PLAIN), or GGUF's blocks,
    uint8 [rows, bytes per row].
    """

    def __init__(self, shape: tuple[int, ...], encoding: str):
        self.shape, self.encoding = tuple(shape), encoding

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) as the source has them."""
        raise NotImplementedError

    def read_f32(self, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) in float32."""
        return to_f32(self.read(start, stop), self.encoding, (stop - start, *self.shape[1:]))

    def read_all(self) -> np.ndarray:
        """Return the whole tensor as the source has it; of a scalar too."""
        return self.read(0, self._count).reshape(block_shape(self.shape, self.encoding))

    def read_all_f32(self) -> np.ndarray:
        """Return the whole tensor in float32."""
        return self.read_f32(0, self._count).reshape(self.shape)

    @property
    def _count(self) -> int:
        return self.shape[0] if self.shape else 1


class FileRows(Rows):
    """Rows that lie in a file as `read` returns them."""

    def __init__(self, file: CheckpointFile, offset: int, shape: tuple[int, ...], encoding: str, what: str):
        super().__init__(shape, encoding)
        self._file, self._offset, self._what = file, offset, what
        self._dtype = np.dtype(np.uint8) if encoding in BLOCK_BYTES else PLAIN[encoding]
        self._row_bytes = math.prod(block_shape((1, *self.shape[1:]), encoding)) * self._dtype.itemsize

    def read(self, start: int, stop: int) -> np.ndarray:
        shape = block_shape((stop - start, *self.shape[1:]), self.encoding)
        if not math.prod(shape):
            return np.empty(shape, self._dtype)
        raw = self._file.read(self._offset + start * self._row_bytes, (stop - start) * self._row_bytes, self._what)
        return np.frombuffer(raw, self._dtype).reshape(shape)


class BlockRows(Rows):
    """Rows of GGUF blocks that a shard doesn't pack: they become float16."""

    def __init__(
        self, file: CheckpointFile, offset: int, shape: tuple[int, ...], row_bytes: int, type_id: int, what: str
    ):
        super().__init__(shape, "f16")
        self._file, self._offset, self._row_bytes, self._type_id, self._what = file, offset, row_bytes, type_id, what

    def _raw(self, start: int, stop: int) -> np.ndarray:
        """Return rows along the first dimension as uint8 [rows × inner rows, bytes per row]."""
        inner = math.prod(self.shape[1:-1])
        stride = inner * self._row_bytes
        raw = self._file.read(self._offset + start * stride, (stop - start) * stride, self._what)
        return np.frombuffer(raw, dtype=np.uint8).reshape(-1, self._row_bytes)

    def read(self, start: int, stop: int) -> np.ndarray:
        return from_f32(self.read_f32(start, stop), "f16")

    def read_f32(self, start: int, stop: int) -> np.ndarray:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        with np.errstate(all="ignore"):  # the writer refuses what isn't finite
            values = dequantize(self._raw(start, stop), GGMLQuantizationType(self._type_id))
        return np.ascontiguousarray(values, np.float32).reshape(stop - start, *self.shape[1:])


class LoadedRows(Rows):
    """Rows of a tensor that only exists whole (transposed, permuted, merged from several); made at the first read."""

    def __init__(self, shape: tuple[int, ...], encoding: str, load: Callable[[], np.ndarray]):
        super().__init__(shape, encoding)
        self._load = load
        self._data: np.ndarray | None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._data is None:
            self._data = self._load().reshape(block_shape(self.shape or (1,), self.encoding))
        return self._data[start:stop]


class SlicedRows(Rows):
    """What a tensor has from `first` on along one of its dimensions. Columns of blocks begin and end with a block, or
    they are read in float16."""

    def __init__(self, whole: Rows, axis: int, first: int, shape: tuple[int, ...]):
        self._whole, self._axis, self._first = whole, axis, first
        self._in_blocks = axis == len(shape) - 1 and whole.encoding in BLOCK_BYTES
        columns = BLOCK_COLUMNS[whole.encoding] if self._in_blocks else 1
        self._whole_blocks = first % columns == shape[-1] % columns == 0
        super().__init__(shape, whole.encoding if self._whole_blocks else "f16")

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._axis == 0:
            return self._whole.read(self._first + start, self._first + stop)
        if not self._whole_blocks:
            return from_f32(self.read_f32(start, stop), "f16")
        if not self._in_blocks:
            return self._whole.read(start, stop)[:, self._first : self._first + self.shape[1]]
        first, end = (block_shape((1, n), self.encoding)[1] for n in (self._first, self._first + self.shape[1]))
        return self._whole.read(start, stop)[:, first:end]

    def read_f32(self, start: int, stop: int) -> np.ndarray:
        if self._axis == 0:
            return self._whole.read_f32(self._first + start, self._first + stop)
        if self._whole_blocks and self._in_blocks:
            return super().read_f32(start, stop)
        return self._whole.read_f32(start, stop)[:, self._first : self._first + self.shape[1]]


class SourceTensor:
    """One tensor of a source under its state_dict name: `shape` as in the state_dict, `encoding` as the source has it.

    `origin` names file and tensor for errors. `rows(transposed)` opens it; transposed=True gives the rows [out, in] of
    a Conv1D weight, whose state_dict shape is [in, out].
    """

    def __init__(self, shape: tuple[int, ...], encoding: str, origin: str, open_rows: Callable[[bool], Rows]):
        self.shape, self.encoding, self.origin = tuple(shape), encoding, origin
        self._open = open_rows

    def rows(self, transposed: bool = False) -> Rows:
        """Open for reading."""
        return self._open(transposed)


def sliced(tensor: SourceTensor, axis: int, first: int, shape: tuple[int, ...]) -> SourceTensor:
    """Return what a tensor has from `first` on along its dimension `axis`, 0 or 1, in `shape`."""

    def open_rows(transposed: bool) -> Rows:
        return SlicedRows(tensor.rows(), axis, first, shape)

    return SourceTensor(shape, open_rows(False).encoding, tensor.origin, open_rows)


def transposed_rows(rows: Rows) -> Rows:
    """Return a 2-D plain tensor with its dimensions swapped."""
    if rows.encoding in BLOCK_BYTES or len(rows.shape) != 2:
        raise CheckpointError(f"a tensor of shape {list(rows.shape)} in {rows.encoding} can't be transposed")
    return LoadedRows(rows.shape[::-1], rows.encoding, lambda: np.ascontiguousarray(rows.read_all().T))
