"""The model on the controller: the folder of its split, and which of its files a board gets."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from edgellm import __version__
from edgellm.checkpoint.builtin import cache_folder
from edgellm.errors import CheckpointError, UsageError
from edgellm.files import write_atomically
from edgellm.shards.manifest import MANIFEST_NAME, SHARD_FORMAT, Manifest

_MOST_CHARACTERS = 64


def split_folder(source: str, quantize: str, cache: Path | None = None) -> Path:
    """The folder in the cache for a source's split, another one for every source and quantization.

    A checkpoint on this machine is known by its path, so that the split of a changed one takes its forerunner's place.
    """
    path, cache = Path(source).expanduser(), cache or cache_folder()
    name, identity = source.replace("/", "--"), source
    if path.exists():
        path = path.resolve()
        name, identity = path.stem if path.is_file() else path.name, str(path)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._-")[:_MOST_CHARACTERS]
    if path.exists() or safe != name:
        safe = f"{safe}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return cache / (safe if quantize == "none" else f"{safe}+{quantize}")  # no name of a model has a plus


def finished_split(source: str, quantize: str) -> Path | None:
    """The folder itself if `source` is one that `edgellm split` made, else None. Raises UsageError if it was made with
    another --quantize, ManifestError or CheckpointError if it is damaged."""
    folder = Path(source).expanduser()
    if not (folder / MANIFEST_NAME).is_file():
        return None
    manifest = Manifest.read(folder)
    if quantize not in ("none", manifest.quantization):
        raise UsageError(
            f"{folder} was split with --quantize {manifest.quantization}, not {quantize}. Split its source again."
        )
    _check_sizes(folder, manifest)
    return folder.resolve()


def is_fresh(source: str, folder: Path) -> bool:
    """Whether `folder` has the whole split of `source` as it is now, by the sizes and times of its files: then nothing
    needs to be read. `remember` said so after the last split."""
    try:
        if _stamp_file(folder).read_text() != _stamp(source, folder):
            return False
        _check_sizes(folder, Manifest.read(folder))
    except (OSError, CheckpointError):
        return False
    return True


def remember(source: str, folder: Path) -> None:
    """Note that `folder` has the split of `source` as it is now, for `is_fresh`."""
    write_atomically(_stamp_file(folder), _stamp(source, folder).encode())


def _stamp_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".source")


def _stamp(source: str, folder: Path) -> str:
    """What a source and its split look like from outside; other code may split otherwise."""
    path = Path(source).expanduser()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    seen = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    return json.dumps([__version__, SHARD_FORMAT, source, seen, Manifest.read(folder).sha256]) + "\n"


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    for entry in manifest.entries:
        path = folder / entry.name
        size = path.stat().st_size if path.is_file() else 0
        if size != entry.bytes:
            raise CheckpointError(f"{path} has {size} bytes, the manifest says {entry.bytes}. Split the model again.")


def describe(folder: Path) -> dict:
    """What the playbooks need to know of a split: its files, those that a board needs to measure itself, and the path
    that sections of it take."""
    from edgellm.check.one_process import path_of

    manifest = Manifest.read(folder)
    whole = {"name": MANIFEST_NAME, "bytes": (folder / MANIFEST_NAME).stat().st_size, "sha256": manifest.sha256}
    files: list[dict[str, Any]] = [whole]
    files += [{"name": e.name, "bytes": e.bytes, "sha256": e.sha256} for e in manifest.entries]
    timed = (manifest.layer(manifest.num_layers // 2), manifest.layer(manifest.num_layers - 1), manifest.head)
    measure = [MANIFEST_NAME, *(f.name for f in manifest.files), *(s.name for s in timed)]
    return {
        "model": manifest.model, "folder": str(folder), "manifest_sha256": manifest.sha256,
        "total_bytes": sum(f["bytes"] for f in files), "files": files, "measure": list(dict.fromkeys(measure)),
        "path": path_of(manifest, folder),
    }  # fmt: skip
