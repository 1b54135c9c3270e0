"""A safetensors file's header, parsed as hostile input: what each tensor is and where its bytes lie."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.errors import CheckpointError
from edgellm.shards.positioned_file import CheckpointFile

_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a safetensors file; `offset` counts from the file's first byte."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class SafetensorsFile:
    """An opened safetensors file and its checked header."""

    file: CheckpointFile
    header: bytes
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFile":
        """Read and check the header; raises CheckpointError with file, tensor and both numbers."""
        file = CheckpointFile(path)
        length = int.from_bytes(file.read(0, 8, "the header's length"), "little")
        if length > min(_MAX_HEADER_BYTES, file.bytes - 8):
            raise CheckpointError(
                f"{path}: the header claims {length} bytes, the file has {file.bytes - 8} after its length. "
                "It is truncated or no safetensors file; fetch it again."
            )
        raw = bytes(file.read(8, length))
        try:
            header = json.loads(raw)
        except (ValueError, RecursionError):
            raise CheckpointError(f"{path}: the header's {length} bytes are not JSON; fetch the file again.") from None
        if not isinstance(header, dict):
            raise CheckpointError(f"{path}: the header is not a JSON object; fetch the file again.")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise CheckpointError(f"{path}: the header's __metadata__ is not a JSON object")
        tensors = {name: _tensor(path, name, entry, 8 + length, file.bytes) for name, entry in header.items()}
        return cls(file, raw, tensors, metadata)


def _tensor(path: Path, name: str, entry: Any, data_start: int, file_bytes: int) -> TensorInfo:
    where = f"{path}: tensor {name[:200]!r}"
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{where} lacks a dtype, a shape or its two offsets") from None
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has dtype {str(dtype)[:40]!r}, known are {', '.join(ITEM_BYTES)}")
    if len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, start, end)):
        raise CheckpointError(f"{where} has a bad shape or bad offsets: {str(entry)[:120]}")
    need = math.prod(shape) * ITEM_BYTES[dtype]
    if end - start != need:
        raise CheckpointError(f"{where} holds {end - start} bytes, its shape {list(shape)} in {dtype} needs {need}")
    if data_start + end > file_bytes:
        raise CheckpointError(
            f"{where} ends at byte {data_start + end}, the file has {file_bytes}. It is truncated; fetch it again."
        )
    return TensorInfo(dtype, shape, data_start + start, need)
