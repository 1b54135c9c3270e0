"""A GGUF in parts (NAME-00001-of-00003.gguf …) as one file: any part may be named, and all must be there."""

import re
from dataclasses import dataclass
from pathlib import Path

from edgellm.checkpoint.gguf.file import GGUFFile, GGUFTensor
from edgellm.errors import CheckpointError

_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf\Z", re.IGNORECASE | re.DOTALL)
_MAX_PARTS = 1000


@dataclass(frozen=True)
class GGUF:
    """A model's GGUF: its parts in order, the first part's metadata, and the tensors of all parts by name."""

    name: str
    parts: tuple[GGUFFile, ...]
    metadata: dict[str, object]
    tensors: dict[str, GGUFTensor]

    @property
    def path(self) -> Path:
        """Path of the first part, which has the vocabulary."""
        return self.parts[0].file.path


def open_gguf(path: Path) -> GGUF:
    """Open a GGUF, with its other parts if it is in parts. Raises CheckpointError, by name for a part that is
    missing."""
    given = GGUFFile.open(path)
    count = _number(path, given, "split.count", 1)
    if count <= 1:
        return GGUF(path.stem, (given,), given.metadata, given.tensors)
    match = _PART_NAME.match(path.name)
    if not match or int(match["count"]) != count:
        raise CheckpointError(
            f"{path} is one of {count} parts, and the others can't be found by its name: name them "
            f"NAME-00001-of-{count:05}.gguf to NAME-{count:05}-of-{count:05}.gguf, in one folder"
        )
    if count > _MAX_PARTS:
        raise CheckpointError(f"{path} says that it is one of {count} parts, at most {_MAX_PARTS} are read")
    paths = [path.with_name(f"{match['stem']}-{i + 1:05}-of-{count:05}{path.suffix}") for i in range(count)]
    missing = [i for i, p in enumerate(paths) if p.name != path.name and not p.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{paths[missing[0]]}: part {missing[0] + 1} of {count} is missing{more}. Fetch it into the same folder."
        )
    parts = tuple(given if p.name == path.name else GGUFFile.open(p) for p in paths)
    tensors: dict[str, GGUFTensor] = {}
    for i, part in enumerate(parts):
        numbers = (_number(paths[i], part, "split.no", 0) + 1, _number(paths[i], part, "split.count", 1))
        if numbers != (i + 1, count):
            raise CheckpointError(
                f"{paths[i]} says that it is part {numbers[0]} of {numbers[1]}, expected part {i + 1} of {count}"
            )
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{paths[i]}: tensor {name[:80]!r} is in {tensors[name].file.path.name} too")
            tensors[name] = tensor
    expected = _number(paths[0], parts[0], "split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise CheckpointError(
            f"{paths[0]}: the {count} parts have {len(tensors)} tensors, split.tensors.count says {expected}. "
            "The parts don't belong together."
        )
    return GGUF(match["stem"], parts, parts[0].metadata, tensors)


def _number(path: Path, part: GGUFFile, key: str, default: int) -> int:
    value = part.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise CheckpointError(f"{path}: {key} is {str(value)[:40]!r}, expected a whole number")
    return value
