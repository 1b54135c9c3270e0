"""Splitting a source into shard files and a manifest, a few rows of one tensor at a time, resumable at every shard."""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgellm.checkpoint.journal import Journal
from edgellm.checkpoint.json_file import read_json_if_there
from edgellm.checkpoint.layer_facts import layer_facts, mtp_facts
from edgellm.checkpoint.layout import Layout, mtp_kind
from edgellm.checkpoint.shard import SHARD_FORMAT, ShardPlan, disk_error, make_entry, make_plan, write_shard
from edgellm.checkpoint.sources import Progress, Source
from edgellm.errors import CheckpointError, ManifestError, UsageError
from edgellm.files import fsync_folder, locked, sha256_of
from edgellm.sampling import Sampling
from edgellm.shards.manifest import FORMAT, MANIFEST_NAME, Manifest, ModelFile, Shard
from edgellm.shards.safetensors_file import SafetensorsFile
from edgellm.text.chat_template import check_template

QUANTIZE = ("none", "int8", "int4")
_OURS = re.compile(r"(embedding|head|layer-\d{4})\.safetensors(\.part)?\Z")
_SPARE_BYTES = 16 << 20  # on the disk besides the shards: tokenizer, manifest, journal


def split(
    source: Source, out: Path | str, quantize: str = "none", progress: Progress | None = None, *,
    force: bool = False, replace: bool = False, note: Callable[[str], None] = lambda text: None,
) -> Manifest:  # fmt: skip
    """Split `source` into shards in the folder `out`; return the Manifest.

    Continues where an interrupted split of the same source stopped, writes only the tokenizer and config files again if
    nothing else changed, and returns at once if nothing did. `progress(shard name, bytes done, bytes in all)` is called
    as bytes are written, and once for each shard that is there already; `note(sentence)` with what else to say.
    `replace` replaces another model's split in `out`; `force` does too, and writes every shard again. Raises
    CheckpointError or ModelError in one line, before any long work where possible.
    """
    if quantize not in QUANTIZE:
        raise UsageError(f"--quantize is {quantize!r}, expected one of {', '.join(QUANTIZE)}")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CheckpointError(f"{out}: {e.strerror or e}") from None
    try:
        with locked(out):
            return _split(source, out, quantize, progress, force, replace or force, note)
    except TimeoutError:
        raise CheckpointError(f"{out}: another split writes here. Wait for it, or give another --out.") from None
    except OSError as e:
        raise disk_error(e, out / MANIFEST_NAME, _SPARE_BYTES) from None


def _split(source: Source, out: Path, quantize: str, progress, force: bool, replace: bool, note) -> Manifest:
    # The 1 was the manifest's format once. A split of that format stays known, so that its shards aren't written again.
    identity = f"{source.fingerprint} {quantize} 1 {SHARD_FORMAT}"
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    head = {"fingerprint": fingerprint, "model": source.name, "quantize": quantize}
    journal = Journal(out, head)
    finished = _take_stock(out, journal, source, replace)
    with tempfile.TemporaryDirectory(prefix=".files-", dir=out) as aside:
        files = _write_files(source, Path(aside))
        _check_sampling(Path(aside), source.where)
        if broken := check_template(Path(aside), source.where):
            note(broken)
        if finished is not None and not force:
            if not (changed := _changes(source, files, finished)):
                if progress:
                    total = sum(s.bytes for s in finished.shards)
                    progress(MANIFEST_NAME, total, total)
                return finished
            note(f"{out}: updated {', '.join(changed)}. The shards are unchanged.")
        return _write(source, out, quantize, progress, journal, force, Path(aside), files)


def _write(
    source: Source, out: Path, quantize: str, progress: Progress | None, journal: Journal, force: bool, aside: Path,
    files: tuple[ModelFile, ...],
) -> Manifest:  # fmt: skip
    """Write what `out` lacks: shards, then the files that lie ready in `aside`, then the manifest."""
    layout, plans = plan_split(source, quantize)
    kept = {p.name: journal.shards[p.name] for p in plans if _is_whole(out, p, journal.shards.get(p.name))}
    kept = {} if force else kept
    journal.shards = kept
    for name in _former_files(out) - {f.name for f in files}:
        (out / name).unlink(missing_ok=True)
    journal.start()
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    for path in out.iterdir():
        if _OURS.match(path.name) and path.name not in kept:
            path.unlink()
    total, done = sum(p.bytes for p in plans), sum(s.bytes for s in kept.values())
    free = shutil.disk_usage(out).free
    if total - done + _SPARE_BYTES > free:
        raise CheckpointError(
            f"{out}: the shards need {total - done + _SPARE_BYTES} bytes, {free} are free. Free some space, give "
            f"another --out{', or --quantize int4' if quantize == 'none' else ''}."
        )
    for file in files:
        os.replace(aside / file.name, out / file.name)
    shards: list[Shard] = []
    for plan in plans:
        if plan.name not in kept:
            shard = write_shard(plan, out, _reporting(progress, plan.name, done, total))
            journal.add(shard)
            done += shard.bytes
            shards.append(shard)
        else:
            shards.append(kept[plan.name])
            if progress:
                progress(plan.name, done, total)
    manifest = Manifest(
        model=source.name,
        architecture=layout.architecture,
        model_type=layout.model_type,
        quantization=quantize,
        num_layers=layout.num_layers,
        hidden_size=layout.hidden_size,
        vocab_size=layout.vocab_size,
        max_seq_len=layout.max_seq_len,
        eos_token_ids=tuple(source.eos_token_ids),
        kv_elements_per_token=layout.kv_elements_per_token,
        activation_elements_per_token=layout.activation_elements_per_token,
        rope_switch_len=layout.rope_switch_len,
        shards=tuple(shards),
        files=files,
        **layer_facts(layout.spec, plans),
        source_sha256=journal.head["fingerprint"],
        pooling=source.pooling,
        mtp=mtp_facts(layout.spec, plans),
    )
    manifest.write(out)
    journal.path.unlink(missing_ok=True)
    fsync_folder(out)
    return Manifest.read(out)


def _reporting(progress: Progress | None, name: str, before: int, total: int) -> Callable[[int], None]:
    """Return what to call with the bytes done of a shard, before which `before` bytes of `total` were written."""
    return lambda done: progress(name, before + done, total) if progress else None


def _take_stock(out: Path, journal: Journal, source: Source, replace: bool) -> Manifest | None:
    """The finished split if `out` holds it, else None with the journal's shards filled in; raises CheckpointError if
    `out` holds something else."""
    if getattr(source, "folder", None) == out.resolve():
        raise CheckpointError(f"{out} is the source's own folder. Give another --out.")
    wanted = journal.head["fingerprint"]
    again = "Give another --out, or --force to replace it."
    if (out / MANIFEST_NAME).exists():
        try:
            manifest = Manifest.read(out)
        except ManifestError as e:
            if not replace:
                raise CheckpointError(f"{e} {again}") from None
            return None
        if manifest.source_sha256 == wanted:
            journal.shards = {s.name: s for s in manifest.shards}
            sizes = {entry.name: entry.bytes for entry in manifest.shards} | {f.name: f.bytes for f in manifest.files}
            return manifest if all(_size(out / name) == size for name, size in sizes.items()) else None
        if not replace:
            raise CheckpointError(
                f"{out} holds a split of {manifest.model} with --quantize {manifest.quantization}, not this source "
                f"with --quantize {journal.head['quantize']}. {again}"
            )
        return None
    head = journal.read()
    if head is None:
        if not replace and (others := sorted(p.name for p in out.iterdir())):
            raise CheckpointError(f"{out} holds {others[0]} but no split. Give an empty folder as --out.")
    elif head.get("fingerprint") != wanted:
        if not replace:
            raise CheckpointError(
                f"{out} holds an unfinished split of {head.get('model', 'another source')} with --quantize "
                f"{head.get('quantize', '?')}, not this source with --quantize {journal.head['quantize']}. {again}"
            )
        journal.shards = {}
    return None


def _is_whole(out: Path, plan: ShardPlan, shard: Shard | None) -> bool:
    return shard is not None and shard.bytes == plan.bytes == _size(out / plan.name)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _write_files(source: Source, folder: Path) -> tuple[ModelFile, ...]:
    """Write config and tokenizer files into `folder`, so that they survive a power loss."""
    files = []
    for name in source.write_files(folder):
        with open(folder / name, "rb+") as f:
            os.fsync(f.fileno())
        files.append(ModelFile(name, _size(folder / name), sha256_of(folder / name)))
    return tuple(files)


def _check_sampling(folder: Path, where: str) -> None:
    """Raise CheckpointError if the authors of the model advise a sampling that is none: every question would fail."""
    try:
        Sampling.from_generation_config(read_json_if_there(folder / "generation_config.json"))
    except UsageError as e:
        raise CheckpointError(f"{where}: the sampling that its authors advise can't be used: {e}") from None


def _changes(source: Source, files: tuple[ModelFile, ...], finished: Manifest) -> list[str]:
    """The names of what differs from a finished split of the same weights: files, which tokens end an answer, and how
    an embedding is made."""
    now, then = ({f.name: f.sha256 for f in some} for some in (files, finished.files))
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    if tuple(source.eos_token_ids) != finished.eos_token_ids:
        changed.append("eos_token_ids")
    if source.pooling != finished.pooling:
        changed.append("pooling")
    if finished.format != FORMAT:
        changed.append(MANIFEST_NAME)
    return changed


def _former_files(out: Path) -> set[str]:
    """The files of the split that `out` holds, whatever model's it is."""
    try:
        return {f.name for f in Manifest.read(out).files}
    except ManifestError:
        return set()


def plan_split(source: Source, quantize: str) -> tuple[Layout, list[ShardPlan]]:
    """Return what a split of `source` consists of; reads headers only. Raises CheckpointError for a tensor that is
    missing, one too many, or of another shape than the model's."""
    layout = source.layout()
    plans = []
    for shard in layout.shards:
        entries = [
            make_entry(
                t.name, t.source, t.transposed, t.packable, mtp_kind(t.name, shard.kind),
                "none" if t.kept else quantize,
            ) for t in shard.tensors
        ]  # fmt: skip
        plans.append(make_plan(shard.file_name, shard.kind, shard.layer, entries))
    return layout, plans


def bits_per_weight(out: Path, manifest: Manifest) -> float:
    """Return how many bits a weight takes on average in the split in `out`: of matrices, not of norms and biases."""
    weights = bits = 0
    for shard in manifest.shards:
        file = SafetensorsFile.open(out / shard.name)
        packed = json.loads(file.metadata.get("encodings", "{}"))
        for name, info in file.tensors.items():
            shape = packed[name][1] if name in packed else info.shape
            if len(shape) > 1:
                weights += math.prod(shape)
                bits += 8 * info.bytes
    return bits / weights if weights else 0.0
