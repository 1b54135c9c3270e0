"""Writing one shard file: which tensors in which encoding, streamed a few rows at a time."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.checkpoint.tensors import (
    FLOATS,
    PLAIN,
    Rows,
    SourceTensor,
    from_f32,
    plain_encoding,
    stored_bytes,
    stored_shape,
)
from edgellm.errors import CheckpointError
from edgellm.files import fsync_folder
from edgellm.kernels.library import BLOCK_COLUMNS, GROUP, TILE
from edgellm.shards.encodings import ENCODINGS, not_finite, split_blocks
from edgellm.shards.manifest import SHARD_FORMAT, Shard
from edgellm.shards.quantize import quantize as quantized
from edgellm.shards.tiles import BLOCK_BYTES, to_tiles

_CHUNK_ELEMENTS = 1 << 21  # of one tensor in memory at a time, where the source can be read in pieces
_DTYPE_NAMES = {
    "f32": "F32", "f16": "F16", "bf16": "BF16", "i64": "I64", "i32": "I32", "i16": "I16", "i8": "I8", "u8": "U8",
    "bool": "BOOL",
} | dict.fromkeys(ENCODINGS, "U8")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor of a shard: `shape` as stored, [out, in] for a weight and [experts, out, in] for experts; `packable` as
    model.structure has it."""

    name: str
    tensor: SourceTensor
    shape: tuple[int, ...]
    transposed: bool
    packable: bool
    encoding: str

    @property
    def bytes(self) -> int:
        return stored_bytes(self.shape, self.encoding)

    @property
    def ram_bytes(self) -> int:
        """Weights are read in place from the mapped file, all else is widened to float32."""
        return self.bytes if self.packable else 4 * math.prod(self.shape)


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be written: its tensors in file order and its header."""

    name: str
    kind: str
    layer: int | None
    entries: tuple[Entry, ...]
    header: bytes

    @property
    def bytes(self) -> int:
        return len(self.header) + sum(e.bytes for e in self.entries)

    @property
    def ram_bytes(self) -> int:
        return sum(e.ram_bytes for e in self.entries)


def choose_encoding(encoding: str, shape: tuple[int, ...], packable: bool, kind: str, quantize: str) -> str:
    """The encoding a tensor is stored in. `shape` as stored; --quantize int4 gives q4_k where rows are long enough for
    its blocks, keeps embedding and head at int8, and what is packed at no more bits than asked for stays as it is."""
    columns = BLOCK_COLUMNS.get(encoding, GROUP)
    fits = packable and len(shape) in (2, 3) and shape[-1] % columns == 0 and min(shape) > 0
    if not fits:
        return plain_encoding(encoding)
    if quantize == "none" or encoding not in (*FLOATS, *BLOCK_BYTES):
        return encoding
    wanted = "int8"
    if quantize == "int4" and kind == "layer":
        wanted = "int4" if shape[-1] % BLOCK_COLUMNS["q4_k"] else "q4_k"
    return encoding if encoding in BLOCK_BYTES and ENCODINGS[encoding].bits <= ENCODINGS[wanted].bits else wanted


def make_entry(name: str, tensor: SourceTensor, transposed: bool, packable: bool, kind: str, quantize: str) -> Entry:
    """Decide how one tensor is stored."""
    shape = tensor.shape[::-1] if transposed else tensor.shape
    encoding = choose_encoding(tensor.encoding, shape, packable, kind, quantize)
    return Entry(name, tensor, shape, transposed, packable, encoding)


def make_plan(name: str, kind: str, layer: int | None, entries: list[Entry]) -> ShardPlan:
    """Lay out a shard: wider elements first, so that each tensor lies aligned to its own."""
    order = sorted(entries, key=lambda e: (-_item_bytes(e), e.name))
    packed = {e.name: [e.encoding, list(e.shape)] for e in order if e.encoding in BLOCK_BYTES}
    header: dict = {"__metadata__": {"format": SHARD_FORMAT, "encodings": json.dumps(packed)}}
    at = 0
    for entry in order:
        shape = list(stored_shape(entry.shape, entry.encoding))
        header[entry.name] = {"dtype": _DTYPE_NAMES[entry.encoding], "shape": shape}
        header[entry.name]["data_offsets"] = [at, at + entry.bytes]
        at += entry.bytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(len(raw) + 8) % 64)  # the data begins on a cache line
    return ShardPlan(name, kind, layer, tuple(order), len(raw).to_bytes(8, "little") + raw)


def _item_bytes(entry: Entry) -> int:
    # Packed weights first: the data begins on a cache line, and tiles, multiples of 16 bytes, keep everything after
    # them aligned.
    return 64 if entry.encoding in BLOCK_BYTES else PLAIN[entry.encoding].itemsize


def write_shard(plan: ShardPlan, folder: Path, wrote: Callable[[int], None]) -> Shard:
    """Write a shard as NAME.part, then rename it; calls `wrote` with the bytes done of it. Raises CheckpointError in
    one line for a full disk or a tensor that can't be stored, and leaves no .part behind."""
    path, part = folder / plan.name, folder / (plan.name + ".part")
    digest, done = hashlib.sha256(), 0
    try:
        with open(part, "wb") as f:

            def put(data: bytes | memoryview) -> None:
                nonlocal done
                f.write(data)
                digest.update(data)
                done += len(data)
                wrote(done)

            put(plan.header)
            for entry in plan.entries:
                _put_entry(entry, put)
            if done != plan.bytes:
                raise AssertionError(f"{plan.name}: {done} bytes written, {plan.bytes} planned")
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
        fsync_folder(folder)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise disk_error(e, path, plan.bytes) from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return Shard(plan.name, plan.kind, plan.layer, done, plan.ram_bytes, digest.hexdigest())


def disk_error(error: OSError, path: Path, need: int) -> CheckpointError:
    """A failed write in one line, with the space needed and left if the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        return CheckpointError(
            f"{path}: the disk is full: this file needs {need} bytes, {free} are free. Free some space and run the "
            "same command again; it continues with this file."
        )
    return CheckpointError(f"{error.filename or path}: {error.strerror or error}")


def _put_entry(entry: Entry, put: Callable[[memoryview], None]) -> None:
    rows = entry.tensor.rows(entry.transposed)
    if tuple(rows.shape) != entry.shape and math.prod(rows.shape) != math.prod(entry.shape):
        raise AssertionError(f"{entry.name}: rows of shape {rows.shape}, planned {entry.shape}")
    count = rows.shape[0] if rows.shape else 1
    step = max(1, _CHUNK_ELEMENTS // max(1, math.prod(rows.shape[1:])))
    if entry.encoding in BLOCK_BYTES:
        step = max(TILE, step // TILE * TILE) if len(entry.shape) == 2 else 1  # whole tiles, or one expert
    for start in range(0, count, step):
        for data in _encode(rows, start, min(start + step, count), entry):
            put(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)


def _encode(rows: Rows, start: int, stop: int, entry: Entry) -> Iterator[np.ndarray]:
    """Yield rows [start, stop) in the entry's encoding, in pieces. Raises CheckpointError for what isn't finite."""
    if entry.encoding in BLOCK_BYTES:
        yield from _pack(rows, start, stop, entry)
        return
    if entry.encoding == rows.encoding:
        data = rows.read(start, stop)
        _check_finite(data, entry.encoding, entry, start, "value")
    else:
        values = rows.read_f32(start, stop)
        _check_finite(values, "f32", entry, start, "value")
        data = from_f32(values, entry.encoding)
        _check_finite(data, entry.encoding, entry, start, f"value in {entry.encoding}")
    yield data


def _pack(rows: Rows, start: int, stop: int, entry: Entry) -> Iterator[np.ndarray]:
    """Yield tiles of rows [start, stop), or of one expert."""
    kept = entry.encoding == rows.encoding
    whole = rows.read(start, stop) if kept else rows.read_f32(start, stop)
    whole = whole.reshape(-1, whole.shape[-1])  # an expert's own rows
    step = max(TILE, _CHUNK_ELEMENTS // entry.shape[-1] // TILE * TILE)
    first = start if len(entry.shape) == 2 else start * entry.shape[-2]  # of all rows, for errors
    for at in range(0, len(whole), step):
        part = whole[at : at + step]
        if kept:
            codes, scales = split_blocks(part, entry.encoding)
            _check_scales(scales, entry, first + at)
            yield to_tiles(entry.encoding, codes, scales)
            continue
        _check_finite(part, "f32", entry, first + at, "value")
        try:
            yield quantized(part, entry.encoding)
        except ValueError as e:
            raise CheckpointError(f"{entry.tensor.origin}: {e}") from None


def _check_scales(scales: np.ndarray, entry: Entry, start: int) -> None:
    """Check scales and minima of packed blocks."""
    if bad := not_finite(scales, entry.encoding):
        blocks = scales.shape[0] * scales.shape[1]
        raise CheckpointError(
            f"{entry.tensor.origin}: the scales of {bad} of {blocks} blocks from row {start} on are not finite; the "
            "checkpoint is corrupt"
        )


# Of a float's bits: an unsigned type of its size, all but its sign, and its exponent, which is full if it isn't finite.
_EXPONENTS: dict[str, tuple[type, int, int]] = {
    "f64": (np.uint64, (1 << 63) - 1, 0x7FF << 52), "f32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "f16": (np.uint16, 0x7FFF, 0x7C00), "bf16": (np.uint16, 0x7FFF, 0x7F80),
}  # fmt: skip


def _check_finite(values: np.ndarray, encoding: str, entry: Entry, start: int, what: str) -> None:
    if encoding not in _EXPONENTS or not values.size:
        return
    unsigned, magnitude, exponent = _EXPONENTS[encoding]
    bits = np.ascontiguousarray(values).view(unsigned) & unsigned(magnitude)
    if bits.max() >= exponent:
        bad = int((bits >= exponent).sum())
        raise CheckpointError(
            f"{entry.tensor.origin}: {bad} of {values.size} {what}s from row {start} on are not finite; "
            "the checkpoint is corrupt"
        )
