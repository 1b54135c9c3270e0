"""The models that both sides run, made once and kept in the user's cache: a GGUF file, and edgellm's split of it."""

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.processes import BenchmarkError, run_measured
from benchmarks.shapes import LLAMA_1B, PHI3_MINI, Shape, file_bytes, write_gguf
from edgellm.checkpoint.builtin import BUILTIN, fetch_builtin
from edgellm.checkpoint.gguf.file import GGUFFile
from edgellm.checkpoint.shard import SHARD_FORMAT
from edgellm.config import DEFAULT_MODEL
from edgellm.console import Progress, note
from edgellm.shards.manifest import Manifest

_SPLIT_TIMEOUT_S = 3600.0
_SPARE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Recipe:
    """How a model is made: a shape with random weights of a ggml type, or the built-in model where there is none."""

    shape: Shape | None
    weights: str
    quantize: str  # of `edgellm split`; what is packed already stays as it is


RECIPES = {
    "phi3-int4": Recipe(PHI3_MINI, "Q4_0", "int4"),
    "phi3-int8": Recipe(PHI3_MINI, "Q8_0", "int8"),
    "1b-int4": Recipe(LLAMA_1B, "Q4_0", "int4"),
    "smollm2": Recipe(None, "Q4_1", "int4"),
}


@dataclass(frozen=True)
class Model:
    """A model on disk. `split_cost` is what splitting it took: peak_bytes (of RAM) and wall_s."""

    name: str
    gguf: Path
    split: Path
    split_cost: dict

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.split)

    def bytes_a_token(self) -> tuple[int, int]:
        """Bytes of weights that decoding one token reads: (edgellm's, llama.cpp's)."""
        ours = sum(s.bytes for s in self.manifest.shards if s.kind != "embedding")
        return ours, gguf_bytes_a_token(self.gguf)


def gguf_bytes_a_token(path: Path) -> int:
    """Bytes of a GGUF file's weights but the embedding, which is read for its one row unless it is the head as well."""
    tensors = GGUFFile.open(path).tensors
    total = sum(t.bytes for t in tensors.values())
    return total - (tensors["token_embd.weight"].bytes if "output.weight" in tensors else 0)


def cache_folder() -> Path:
    """Where models and llama.cpp are kept."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgellm")) / "benchmarks"


def clean() -> int:
    """Remove all that benchmarks keep; returns the bytes that were freed."""
    folder = cache_folder()
    freed = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    if folder.is_dir():
        shutil.rmtree(folder)
    return freed


def prepare(names: list[str]) -> dict[str, Model]:
    """Make what isn't there. Raises BenchmarkError before it begins if the disk has no room for all of it."""
    folder = cache_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    check_disk(folder, needed_bytes(names, folder))
    return {name: _prepare(name, folder / name) for name in names}


def needed_bytes(names: list[str], folder: Path) -> int:
    """Bytes of disk for what isn't there yet; a tied embedding is split into two shards."""
    total = 0
    for name in names:
        recipe, own = RECIPES[name], folder / name
        size = file_bytes(recipe.shape, recipe.weights) if recipe.shape else BUILTIN[DEFAULT_MODEL].bytes
        total += size if not (own / "model.gguf").is_file() else 0
        total += size * 5 // 4 if not (_split_folder(own) / "manifest.json").is_file() else 0
    return total


def check_disk(folder: Path, needed: int) -> None:
    """Raises BenchmarkError unless the disk has room for `needed` bytes and some to spare."""
    free = shutil.disk_usage(folder).free
    if needed and free < needed + _SPARE_BYTES:
        raise BenchmarkError(
            f"{folder}: {free / 1e9:.1f} GB of disk are free, {(needed + _SPARE_BYTES) / 1e9:.1f} GB are needed. "
            "Free some, set XDG_CACHE_HOME to another disk, or measure less with --only."
        )


def _split_folder(own: Path) -> Path:
    return own / f"split-{SHARD_FORMAT}"


def _prepare(name: str, own: Path) -> Model:
    own.mkdir(exist_ok=True)
    recipe, gguf, split = RECIPES[name], own / "model.gguf", _split_folder(own)
    with Progress() as progress:
        if recipe.shape is None:
            gguf = fetch_builtin(DEFAULT_MODEL, progress)
        elif not gguf.is_file():
            write_gguf(gguf, recipe.shape, recipe.weights, lambda done, total: progress(f"write {name}", done, total))
    cost = split.with_suffix(".json")
    if not ((split / "manifest.json").is_file() and cost.is_file()):
        for old in own.glob("split-*"):  # of another format, or without its cost
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        note(f"splits {name}")
        _split(gguf, split, recipe.quantize, cost)
    return Model(name, gguf, split, json.loads(cost.read_text()))


def _split(gguf: Path, split: Path, quantize: str, cost: Path) -> None:
    command = [sys.executable, "-m", "edgellm", "split", str(gguf), "--out", str(split), "--quantize", quantize]
    done = run_measured(command, _SPLIT_TIMEOUT_S)
    if done.code:
        raise BenchmarkError(f"edgellm split {gguf} ended with code {done.code}")
    found = asdict(done)
    part = cost.with_suffix(".part")
    part.write_text(json.dumps({key: found[key] for key in ("peak_bytes", "wall_s")}))
    os.replace(part, cost)
