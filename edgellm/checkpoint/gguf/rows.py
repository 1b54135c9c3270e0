"""Reading the tensors of a GGUF: blocks that a shard packs as they are, all else plain, rows in any order."""

import math
from collections.abc import Mapping

import numpy as np

from edgellm.checkpoint.gguf.file import GGUFTensor
from edgellm.checkpoint.tensors import (
    BlockRows,
    FileRows,
    LoadedRows,
    Rows,
    SourceTensor,
    from_f32,
    plain_encoding,
)
from edgellm.errors import CheckpointError
from edgellm.model.families.pieces import HeadRows
from edgellm.shards.encodings import ENCODINGS

_KEPT = ("Q4_K", "Q5_K", "Q6_K", "Q3_K", "IQ4_XS", "MXFP4")  # to name some
_AS_STORED = {"F32": "f32", "F16": "f16", "BF16": "bf16"} | {e.gguf: name for name, e in ENCODINGS.items()}


def open_rows(name: str, info: GGUFTensor) -> Rows:
    """Open a tensor as the file has it."""
    what = f"tensor {name}"
    if info.type in _AS_STORED:
        return FileRows(info.file, info.offset, info.shape, _AS_STORED[info.type], what)
    if info.type == "F64":
        wide = FileRows(info.file, info.offset, info.shape, "f64", what)
        return LoadedRows(info.shape, "f32", wide.read_all_f32)
    return BlockRows(info.file, info.offset, info.shape, info.row_bytes, info.type_id, what)


def widened_types(where: str, tensors: Mapping[str, GGUFTensor]) -> tuple[str, ...]:
    """Return what to tell the owner of a file of whose types some can't stay as they are: one sentence, or none."""
    bytes_, wide = dict[str, int](), 0
    for info in tensors.values():
        if info.type not in _AS_STORED and info.type != "F64":
            bytes_[info.type] = bytes_.get(info.type, 0) + info.bytes
            wide += 2 * math.prod(info.shape)
    if not bytes_:
        return ()
    now = sum(bytes_.values()) / 1e6
    return (
        f"{where} has {now:.1f} MB in {', '.join(sorted(bytes_))}, which become {wide / 1e6:.1f} MB in float16 and are "
        f"as much slower. A file in {', '.join(_KEPT)} keeps its size.",
    )


def origin_of(*names: str, info: GGUFTensor) -> str:
    """Return how errors name tensors."""
    return f"{info.file.path}: tensor {' and '.join(names)}"


def matrix(name: str, info: GGUFTensor, order: np.ndarray | None = None) -> SourceTensor:
    """Return a tensor as the file has it, its rows in `order` if one is given."""
    encoding = open_rows(name, info).encoding

    def open_ordered(transposed: bool) -> Rows:
        rows = open_rows(name, info)
        if order is None or np.array_equal(order, np.arange(len(order))):
            return rows
        return LoadedRows(rows.shape, rows.encoding, lambda: rows.read_all()[order])

    return SourceTensor(info.shape, encoding, origin_of(name, info=info), open_ordered)


def vector(name: str, info: GGUFTensor, order: np.ndarray | None = None) -> SourceTensor:
    """Return a norm's weight or a bias in float32, its elements in `order` if one is given."""

    def load() -> np.ndarray:
        values = open_rows(name, info).read_all_f32()
        return values if order is None else values[order]

    return SourceTensor(
        info.shape, "f32", origin_of(name, info=info), lambda transposed: LoadedRows(info.shape, "f32", load)
    )


def head_rows(name: str, info: GGUFTensor, piece: HeadRows, shape: tuple[int, ...]) -> SourceTensor:
    """Return a piece of a tensor that has rows of all heads; one that is transposed can't stay packed, and becomes
    float16."""
    stored = open_rows(name, info).encoding
    encoding = plain_encoding(stored) if piece.transposed else stored

    def load() -> np.ndarray:
        rows = open_rows(name, info)
        if encoding == stored:
            return piece.cut(rows.read_all(), piece.count)
        return from_f32(piece.cut(rows.read_all_f32(), piece.count), encoding)

    return SourceTensor(
        shape, encoding, origin_of(name, info=info), lambda transposed: LoadedRows(shape, encoding, load)
    )


def shifted(tensor: SourceTensor, by: float) -> SourceTensor:
    """Return a vector with `by` added to each of its values, in float32."""

    def load() -> np.ndarray:
        return tensor.rows().read_all_f32() + np.float32(by)

    return SourceTensor(tensor.shape, "f32", tensor.origin, lambda transposed: LoadedRows(tensor.shape, "f32", load))


def reshaped(tensor: SourceTensor, shape: tuple[int, ...]) -> SourceTensor:
    """Return as many values in another shape, in float32."""

    def load() -> np.ndarray:
        return tensor.rows().read_all_f32().reshape(shape)

    return SourceTensor(shape, "f32", tensor.origin, lambda transposed: LoadedRows(shape, "f32", load))


def decay_log(tensor: SourceTensor) -> SourceTensor:
    """Return the logarithms of decays that llama.cpp has as -e^x, in float32."""

    def load() -> np.ndarray:
        values = tensor.rows().read_all_f32().astype(np.float64)
        if not (values < 0).all():
            raise CheckpointError(f"{tensor.origin} has a value that isn't negative, so a state would grow")
        return np.log(-values).astype(np.float32)

    return SourceTensor(tensor.shape, "f32", tensor.origin, lambda transposed: LoadedRows(tensor.shape, "f32", load))


def as_row(tensor: SourceTensor) -> SourceTensor:
    """Return a vector as a matrix of one row, in float32."""
    shape = (1, *tensor.shape)

    def load() -> np.ndarray:
        return tensor.rows().read_all_f32().reshape(shape)

    return SourceTensor(shape, "f32", tensor.origin, lambda transposed: LoadedRows(shape, "f32", load))


def zeros(size: int, origin: str) -> SourceTensor:
    """Return a bias that the file leaves out."""
    return SourceTensor(
        (size,), "f32", origin, lambda transposed: LoadedRows((size,), "f32", lambda: np.zeros(size, np.float32))
    )


def rotary_order(rows: int, heads: int) -> np.ndarray:
    """Return the order that puts rows of Llama's q or k back.

    llama.cpp's converter lays the rows that rotate together, one of each half of a head, side by side.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def grouped_order(heads: int, kv_heads: int, head_dim: int) -> np.ndarray:
    """Return the order that puts rows of Falcon's fused q, k, v back.

    llama.cpp has all query heads, then all keys, then all values; Falcon each group of query heads with its key and
    value.
    """
    rows = np.arange((heads + 2 * kv_heads) * head_dim).reshape(-1, head_dim)
    q, k, v = np.split(rows, [heads, heads + kv_heads])
    q = q.reshape(kv_heads, heads // kv_heads, head_dim)
    return np.concatenate([q, k[:, None], v[:, None]], axis=1).reshape(-1)
