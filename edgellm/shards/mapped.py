"""A shard file, mapped and parsed without torch: what each tensor is, and its bytes as they lie in the file's pages."""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgellm.errors import CheckpointError, ManifestError
from edgellm.kernels.library import GROUP_BYTES
from edgellm.shards.manifest import ModelFile, Shard
from edgellm.shards.safetensors_file import ITEM_BYTES, SafetensorsFile
from edgellm.shards.verified import verified

FORMAT = "edgellm-shard-2"
PACKED = tuple(GROUP_BYTES)
_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_DTYPES = (*_PLAIN, "U8", "I8", "I16", "I32", "I64", "BOOL")


@dataclass(frozen=True)
class MappedTensor:
    """A tensor in a mapped shard: `data` is its bytes (uint8, read-only), `stored_shape` and `dtype` what safetensors
    says of them; `encoding` is f32, f16, bf16, a packed one (PACKED), or None for integers and booleans; `shape` counts
    elements: [out, in] of a packed weight, [experts, out, in] of as many of them.
    """

    data: np.ndarray
    dtype: str
    stored_shape: tuple[int, ...]
    encoding: str | None
    shape: tuple[int, ...]


class MappedShard:
    """A mapped shard. `tensors` by name; `bytes` is the file's size. All errors are ManifestErrors naming the file."""

    def __init__(self, folder: Path, shard: Shard, verify_sha256: bool = True):
        self.path = Path(folder) / shard.name
        mapping = self._mapping = map_checked(self.path, shard, verify_sha256)
        self.bytes = len(mapping)
        try:
            parsed = SafetensorsFile.open(self.path)
        except CheckpointError as e:
            raise ManifestError(f"{e} Push it again.") from None
        packed = self._packed(parsed.metadata)
        if unknown := packed.keys() - parsed.tensors.keys():
            raise ManifestError(f"{self.path}: encodings names {sorted(unknown)[0]!r}, which the file doesn't have")
        raw = self._raw = np.frombuffer(mapping, np.uint8)
        self.tensors: dict[str, MappedTensor] = {}
        for name, info in parsed.tensors.items():
            if info.dtype not in _DTYPES or info.offset + info.bytes > self.bytes:
                raise ManifestError(f"{self.path}: {name}: dtype {info.dtype} or its place is not what a shard has")
            data = raw[info.offset : info.offset + info.bytes]
            if info.offset % ITEM_BYTES[info.dtype]:
                data = data.copy()  # writers align tensors, so this is rare
            encoding, shape = packed.get(name, (_PLAIN.get(info.dtype), info.shape))
            self.tensors[name] = MappedTensor(data, info.dtype, info.shape, encoding, tuple(shape))

    def read_alone(self, tensor: MappedTensor) -> None:
        """Have the system read no neighbours of what a tensor's pages are missing: they would drive out others that are
        needed."""
        start = tensor.data.ctypes.data - self._raw.ctypes.data
        if 0 <= start < self.bytes:  # else it's a copy
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapping.madvise(mmap.MADV_RANDOM, first, start + tensor.data.nbytes - first)

    def _packed(self, metadata: dict[str, str]) -> dict[str, tuple[str, tuple[int, ...]]]:
        if metadata.get("format") != FORMAT:
            found = metadata.get("format")
            raise ManifestError(
                f"{self.path}: format is {str(found)[:40]!r}, expected {FORMAT}: split the model again, with "
                "edgellm split SOURCE --out FOLDER, and deploy that."
            )
        try:
            content = json.loads(metadata.get("encodings", "{}"))
            packed = {name: (encoding, tuple(shape)) for name, (encoding, shape) in content.items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ManifestError(f"{self.path}: its list of encodings can't be read. Push it again.") from None
        for name, (encoding, shape) in packed.items():
            if encoding not in PACKED or len(shape) not in (2, 3) or not all(type(n) is int and n > 0 for n in shape):
                raise ManifestError(f"{self.path}: {name} has encoding {encoding!r} and shape {shape}")
        return packed


def map_checked(path: Path, entry: Shard | ModelFile, verify_sha256: bool = True) -> mmap.mmap:
    """Map a file read-only and compare its size, and the SHA-256 of the bytes as mapped, with the manifest's. A file
    that matched isn't hashed again as long as it is the same file."""
    again = "push it again"
    try:
        with open(path, "rb") as f:
            mapping = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            if len(mapping) != entry.bytes:
                raise ManifestError(f"{path}: {len(mapping)} bytes, the manifest says {entry.bytes}; {again}")
            if verify_sha256 and (found := verified.sha256(f, mapping, entry.sha256)) != entry.sha256:
                raise ManifestError(f"{path}: SHA-256 is {found}, the manifest says {entry.sha256}; {again}")
    except (OSError, ValueError) as e:  # ValueError: empty
        raise ManifestError(f"{path}: {getattr(e, 'strerror', None) or e}; {again}") from None
    return mapping
