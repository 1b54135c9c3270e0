"""A mapped shard's tensors for torch: views of the file's pages, never copied into memory of our own."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from edgellm.model.families.mtp import PREFIX as MTP_PREFIX
from edgellm.shards.manifest import Shard
from edgellm.shards.mapped import FORMAT, MappedShard, map_checked

__all__ = ["FORMAT", "ShardFile", "Stored", "map_checked"]
_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8, "I8": torch.int8,
    "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a shard: `data` as it lies in the file, its encoding, and its shape in elements."""

    data: torch.Tensor
    encoding: str | None  # None for integers and booleans
    shape: tuple[int, ...]


class ShardFile:
    """A mapped shard. `tensors` by name, without those that native sections draft with; `bytes` is the file's size. All
    errors are ManifestErrors naming the file."""

    def __init__(self, folder: Path, shard: Shard, verify_sha256: bool = True):
        mapped = MappedShard(folder, shard, verify_sha256)
        self.path, self.bytes = mapped.path, mapped.bytes
        self.tensors: dict[str, Stored] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given (buffer|NumPy array) is not writable")  # nor written
            for name, tensor in mapped.tensors.items():
                if shard.kind == "head" and name.startswith(MTP_PREFIX):
                    continue  # transformers has none of them
                data = torch.from_numpy(tensor.data).view(_DTYPES[tensor.dtype]).view(tensor.stored_shape)
                self.tensors[name] = Stored(data, tensor.encoding, tensor.shape)
