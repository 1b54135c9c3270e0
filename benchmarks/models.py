"""The models that both sides run, made once and kept in the user's cache: a GGUF file, and edgellm's split of it."""

import json
import os
import shutil
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.processes import BenchmarkError, run_measured
from benchmarks.random_gguf import write_gguf
from benchmarks.shapes import (
    GEMMA3_1B,
    GPT_OSS_20B,
    LFM2_8B,
    LLAMA_1B,
    PHI3_MINI,
    QWEN3_06B,
    QWEN3_30B,
    QWEN35_4B,
    Shape,
    file_bytes,
)
from edgellm.checkpoint.builtin import BUILTIN, fetch_builtin
from edgellm.checkpoint.gguf.file import GGUFFile
from edgellm.checkpoint.shard import SHARD_FORMAT
from edgellm.config import DEFAULT_MODEL
from edgellm.console import Progress, note
from edgellm.shards.manifest import Manifest

_SPLIT_TIMEOUT_S = 3600.0
_SPARE_BYTES = 1_000_000_000
_KEPT_BYTES = 15_000_000_000  # of models in the cache: those that were measured longest ago make room


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
    # Layers are cut down so that a run takes minutes.
    "phi3-q4_k": Recipe(PHI3_MINI, "Q4_K_M", "none"),
    "1b-q4_k": Recipe(LLAMA_1B, "Q4_K_M", "none"),
    "qwen3-0.6b": Recipe(QWEN3_06B, "Q4_K_M", "none"),
    "qwen3-30b": Recipe(QWEN3_30B.cut(12), "Q4_0", "none"),
    "qwen3-30b-q4_k": Recipe(QWEN3_30B.cut(12), "Q4_K_M", "none"),
    "gpt-oss-20b": Recipe(GPT_OSS_20B.cut(8), "MXFP4", "none"),
    "qwen3.5-4b": Recipe(QWEN35_4B, "Q4_K_M", "none"),
    "gemma3-1b": Recipe(GEMMA3_1B, "Q4_K_M", "none"),
    "lfm2-8b": Recipe(LFM2_8B.cut(12), "Q4_0", "none"),
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
        manifest = self.manifest
        return sum(manifest.touched_bytes_per_token) + manifest.head.bytes, gguf_bytes_a_token(self.gguf)


def gguf_bytes_a_token(path: Path) -> int:
    """Bytes of a GGUF file's weights that a token is multiplied with: all but the embedding, which is read for its one
    row unless it is the head as well, and of the experts those that a token takes."""
    file = GGUFFile.open(path)
    tensors, architecture = file.tensors, file.metadata["general.architecture"]
    chosen, count = (file.metadata.get(f"{architecture}.expert_{n}", 1) for n in ("used_count", "count"))
    total = sum(t.bytes * chosen // count if "_exps." in name else t.bytes for name, t in tensors.items())
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


def prepare(names: list[str], layers: int | None = None) -> dict[str, Model]:
    """Make what isn't there, of at most `layers` layers each. Models that were measured longest ago are removed where
    the cache would have over 15 GB. Raises BenchmarkError before it begins if the disk has no room for all of it."""
    folder = cache_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    recipes = {name: _cut(RECIPES[name], layers) for name in names}
    whole = {name: recipe == RECIPES[name] for name, recipe in recipes.items()}
    own = {name: folder / (name if whole[name] else f"{name}-{layers}-layers") for name in names}
    needed = sum(needed_bytes(recipes[name], own[name]) for name in names)
    _make_room(folder, needed, own.values())
    check_disk(folder, needed)
    return {name: _prepare(name, recipes[name], own[name]) for name in names}


def _cut(recipe: Recipe, layers: int | None) -> Recipe:
    """Return the recipe of the same model with at most so many layers; a real model stays whole."""
    if recipe.shape is None or layers is None or layers >= recipe.shape.layers:
        return recipe
    return replace(recipe, shape=recipe.shape.cut(layers))


def needed_bytes(recipe: Recipe, own: Path) -> int:
    """Bytes of disk for what isn't there yet; a tied embedding is split into two shards."""
    size = file_bytes(recipe.shape, recipe.weights) if recipe.shape else BUILTIN[DEFAULT_MODEL].bytes
    tied = 0 if recipe.shape and not recipe.shape.tied else size
    total = size if not (own / "model.gguf").is_file() else 0
    return total + (size + tied if not (_split_folder(own) / "manifest.json").is_file() else 0)


def _make_room(folder: Path, needed: int, kept: Collection[Path]) -> None:
    """Remove models until those left and `needed` bytes are no more than the cache may have, but none of `kept`."""
    if not needed:
        return
    there = sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in there}
    for old in there:
        if sum(sizes.values()) + needed <= _KEPT_BYTES:
            return
        if old not in kept:
            note(f"removes {old.name} from the cache, {sizes.pop(old) / 1e9:.1f} GB")
            shutil.rmtree(old)


def check_disk(folder: Path, needed: int) -> None:
    """Raises BenchmarkError unless the disk has room for `needed` bytes and some to spare."""
    free = shutil.disk_usage(folder).free
    if needed and free < needed + _SPARE_BYTES:
        raise BenchmarkError(
            f"{folder}: {free / 1e9:.1f} GB of disk are free, {(needed + _SPARE_BYTES) / 1e9:.1f} GB are needed. "
            "Free some, set XDG_CACHE_HOME to another disk, or measure less with --only or --models."
        )


def _split_folder(own: Path) -> Path:
    return own / f"split-{SHARD_FORMAT}"


def _prepare(name: str, recipe: Recipe, own: Path) -> Model:
    own.mkdir(exist_ok=True)
    os.utime(own)  # it is the last one to be removed
    gguf, split = own / "model.gguf", _split_folder(own)
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
