"""A shard file, mapped: its tensors are views of the file's pages and are never copied into memory of our own."""

import hashlib
import json
import mmap
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from edgellm.checkpoint.manifest import ModelFile, Shard
from edgellm.checkpoint.safetensors_file import SafetensorsFile
from edgellm.errors import CheckpointError, ManifestError

FORMAT = "edgellm-shard-2"
_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8, "I8": torch.int8,
    "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip
_PLAIN = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a shard: `data` as it lies in the file, what it encodes, and in which shape."""

    data: torch.Tensor
    encoding: str | None  # f32, f16, bf16, int8, int4; None for integers and booleans
    shape: tuple[int, ...]


class ShardFile:
    """A mapped shard. `tensors` by name; `bytes` is the file's size. All errors are ManifestErrors naming the file."""

    def __init__(self, folder: Path, shard: Shard, verify_sha256: bool = True):
        self.path = Path(folder) / shard.name
        mapping = map_checked(self.path, shard, verify_sha256)
        self.bytes = len(mapping)
        try:
            parsed = SafetensorsFile.open(self.path)
        except CheckpointError as e:
            raise ManifestError(f"{e} Push it again.") from None
        packed = self._packed(parsed.metadata)
        if unknown := packed.keys() - parsed.tensors.keys():
            raise ManifestError(f"{self.path}: encodings names {sorted(unknown)[0]!r}, which the file doesn't have")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")  # it is never written
            raw = torch.frombuffer(mapping, dtype=torch.uint8)
        self.tensors: dict[str, Stored] = {}
        for name, info in parsed.tensors.items():
            if info.dtype not in _DTYPES or info.offset + info.bytes > self.bytes:
                raise ManifestError(f"{self.path}: {name}: dtype {info.dtype} or its place is not what a shard has")
            dtype = _DTYPES[info.dtype]
            data = raw[info.offset : info.offset + info.bytes]
            if info.offset % dtype.itemsize:
                data = data.clone()  # writers align tensors, so this is rare
            data = data.view(dtype).view(info.shape)
            encoding, shape = packed.get(name, (_PLAIN.get(dtype), info.shape))
            self.tensors[name] = Stored(data, encoding, tuple(shape))

    def _packed(self, metadata: dict) -> dict[str, tuple[str, tuple[int, int]]]:
        if metadata.get("format") != FORMAT:
            found = metadata.get("format")
            raise ManifestError(
                f"{self.path}: format is {str(found)[:40]!r}, expected {FORMAT}: split the model again, with "
                "edgellm split SOURCE --out FOLDER, and deploy that."
            )
        try:
            content = json.loads(metadata.get("encodings", "{}"))
            found = {name: (encoding, (rows, columns)) for name, (encoding, (rows, columns)) in content.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ManifestError(f"{self.path}: its list of encodings can't be read. Push it again.") from None
        for name, (encoding, shape) in found.items():
            if encoding not in ("int4", "int8") or not all(type(n) is int and n > 0 for n in shape):
                raise ManifestError(f"{self.path}: {name} has encoding {encoding!r} and shape {shape}")
        return found


def map_checked(path: Path, entry: Shard | ModelFile, verify_sha256: bool = True) -> mmap.mmap:
    """Map a file read-only and compare its size, and the SHA-256 of the bytes as mapped, with the manifest's."""
    again = "push it again"
    try:
        with open(path, "rb") as f:
            mapping = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as e:  # ValueError: empty
        raise ManifestError(f"{path}: {getattr(e, 'strerror', None) or e}; {again}") from None
    if len(mapping) != entry.bytes:
        raise ManifestError(f"{path}: {len(mapping)} bytes, the manifest says {entry.bytes}; {again}")
    if verify_sha256:
        found = hashlib.sha256(mapping).hexdigest()
        if found != entry.sha256:
            raise ManifestError(f"{path}: SHA-256 is {found}, the manifest says {entry.sha256}; {again}")
    return mapping
