"""Measures what this machine can offer: RAM that is free for a section, how fast it decodes, and how fast its disk is.
"""

import logging
import os
import time
from pathlib import Path
from random import Random

import psutil

from edgellm.errors import ManifestError
from edgellm.plan.costs import mean_layers
from edgellm.shards.manifest import Manifest, Shard
from edgellm.shards.verified import verified
from edgellm.wire.status import MAX_DAMAGED, ShardsHere

log = logging.getLogger(__name__)
_DECODE_STEPS, _DECODE_S = (5, 21), 0.4  # at least, at most; seconds after which the minimum is enough
_ALIKE = 1.05  # the minimum is also enough if this many were nearly as fast as the fastest: nothing disturbed them
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_MOST_CACHE_BYTES = 32 << 20
_PIECE_BYTES, _DISK_S, _DISK_BYTES = 1 << 20, 0.3, 128 << 20  # what is read of a disk, at most
_HOP_S = 0.0005  # a hop on a wired LAN with our framing, before one was measured
_MOST_HOP_S = 1.0  # believed
_OWN_CGROUPS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def free_ram_bytes() -> int:
    """Return how many bytes this process may still take: what the machine has available, or its cgroup if that is less.

    Clean file pages count as available, and so do this agent's own mapped shards.
    """
    free = psutil.virtual_memory().available
    for limit, used in _cgroup_limits():
        free = min(free, max(0, limit - used))
    return free


def disk_free_bytes(folder: Path) -> int:
    """Return how many bytes may still be written beside `folder`; 0 if unknown."""
    try:
        return psutil.disk_usage(str(folder)).free
    except OSError:
        return 0


def disk_bytes_per_s(manifest: Manifest, folder: Path) -> float | None:
    """Return how fast experts come from the disk: pieces as large as theirs, here and there in the layers' shards, of
    which the system has to forget its copies before. None without experts, or shards."""
    layers = [i for i, held in enumerate(manifest.expert_bytes) if held]
    files = [path for path in (folder / manifest.layer(i).name for i in layers) if path.is_file()]
    random, read, took_s = Random(0), 0, 0.0
    try:
        while files and took_s < _DISK_S and read < _DISK_BYTES:
            with open(random.choice(files), "rb", buffering=0) as f:
                at = _PIECE_BYTES * random.randrange(max(1, os.fstat(f.fileno()).st_size // _PIECE_BYTES))
                os.posix_fadvise(f.fileno(), at, _PIECE_BYTES, os.POSIX_FADV_DONTNEED)
                began = time.perf_counter()
                read += len(os.pread(f.fileno(), _PIECE_BYTES, at))
                took_s += time.perf_counter() - began
    except OSError as e:
        log.warning("the disk's speed is not measured: %s", e.strerror or e)
    return read / took_s if read and took_s else None


def shards_here(manifest: Manifest, folder: Path) -> ShardsHere:
    """Return which shards lie in `folder`, by name and size. Those that were hashed and found wrong aren't among them,
    and are named as damaged."""
    damaged: list[str] = []

    def here(shard: Shard) -> bool:
        try:
            found = (folder / shard.name).stat()
        except OSError:
            return False
        if found.st_size == shard.bytes and verified.is_wrong(found, shard.sha256):
            damaged.append(shard.name)
            return False
        return found.st_size == shard.bytes

    runs: list[tuple[int, int]] = []
    for i in range(manifest.num_layers):
        if here(manifest.layer(i)):
            start = runs.pop()[0] if runs and runs[-1][1] == i else i
            runs.append((start, i + 1))
    embedding, head = here(manifest.embedding), here(manifest.head)
    return ShardsHere(embedding, tuple(runs), head, tuple(damaged[:MAX_DAMAGED]))


def timed_layers(manifest: Manifest, folder: Path) -> tuple[int, int]:
    """Return the layers [start, end) to time a step with: around the middle of those whose shards are here, and so many
    that no cache holds their weights from one step to the next, as in a whole section. Raises ManifestError if none is.
    """

    def weighs(i: int) -> int:
        return manifest.layer(i).ram_bytes

    runs = shards_here(manifest, folder).layers
    if not runs:
        raise ManifestError(f"{folder}: no layer shard of {manifest.model} is here; push shards to this board first")
    first, last = max(runs, key=lambda run: run[1] - run[0])
    start = (first + last) // 2
    end, total, enough = start + 1, weighs(start), 2 * _cache_bytes()
    while total < enough and (start > first or end < last):
        if end < last:
            total, end = total + weighs(end), end + 1
        else:
            start, total = start - 1, total + weighs(start - 1)
    return start, end


def load_timed(manifest: Manifest, folder: Path, path: str = "auto"):
    """Return the section of `timed_layers`, loaded by way of `path`, and to how many layers of mean size it amounts.

    If one of them is corrupt, it is a single layer that isn't: a corrupt shard matters when it is to be served. Raises
    ManifestError if no layer is here, or all are corrupt.
    """
    from edgellm.agent.load import load_section

    start, end = timed_layers(manifest, folder)
    here = [i for first, last in shards_here(manifest, folder).layers for i in range(first, last)]
    tries = [(start, end), *((i, i + 1) for i in sorted(here, key=lambda i: abs(i - start)))]
    for first, last in tries:
        try:
            section = load_section(manifest, folder, first, last, without_ends=True, path=path)
            return section, mean_layers(manifest, first, last)
        except ManifestError as e:
            error = e
            log.warning("layers %d-%d are not timed: %s", first, last, e)
    raise error


def measure_decode(manifest: Manifest, folder: Path, path: str = "auto") -> tuple[float, float]:
    """Return the seconds to decode one token through a layer of mean size and through the head, with the kernels in
    use.

    Times `timed_layers`, and the head behind the last layer. If its shard is missing, the time is scaled by bytes:
    too much for a small model, whose layers take more than their bytes do. Raises ManifestError if no layer is here, or
    all are corrupt.
    """
    from edgellm.agent.load import load_section

    section, layers = load_timed(manifest, folder, path)
    layer_s = _decode_s(section, False) / layers
    last, here = manifest.num_layers - 1, shards_here(manifest, folder)
    if last > 0 and here.head and here.layers[-1][1] == manifest.num_layers:
        try:
            section = load_section(manifest, folder, last, last + 1, path=path)
            return layer_s, max(0.0, _decode_s(section, True) - _decode_s(section, False))
        except ManifestError as e:  # no matter unless this board is to hold it
            log.warning("the head is not timed: %s", e)
    first = here.layers[0][0]
    of_mean_size = manifest.layer(first).ram_bytes / mean_layers(manifest, first, first + 1)
    return layer_s, layer_s * manifest.head_touched_bytes / max(1, of_mean_size)


def _decode_s(section, want_logits: bool) -> float:
    """Return the seconds of a decode step: the fastest of some, because a board that has just booted has other work."""
    least, most = _DECODE_STEPS
    slot, x = section.new_slot(most + 1), section.example()
    seconds: list[float] = []
    deadline = time.perf_counter() + _DECODE_S
    while len(seconds) < most:
        began = time.perf_counter()
        if len(seconds) >= least and (began > deadline or sum(s <= _ALIKE * min(seconds) for s in seconds) >= least):
            break
        section.forward(x, len(seconds), slot, len(seconds) + 1, want_logits)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _cache_bytes() -> int:
    """Return the size of a core's largest cache, within bounds, because /sys of a virtual machine may say anything."""
    found = []
    for path in _CACHES.glob("index*/size"):
        try:
            found.append(int(path.read_text().strip().removesuffix("K")) << 10)
        except (OSError, ValueError):
            continue
    return min(max(found, default=0), _MOST_CACHE_BYTES)


def hop_s(measured_s: float | None, link_mbit: int | None, token_bytes: int) -> float:
    """Return the seconds from a step's end here to its beginning on the next board, for one token: what a small message
    was measured to take, and the token's bytes at the speed that the network interface negotiated."""
    if measured_s is None:
        return _HOP_S
    return min(measured_s, _MOST_HOP_S) + (token_bytes * 8 / (link_mbit * 1e6) if link_mbit else 0.0)


def _cgroup_limits():
    """Yield (limit, used without reclaimable cache) of this process's cgroups, v1 and v2, but not of unlimited ones."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit_name, used_name, prefix, cache = _CGROUPS, "memory.max", "memory.current", "", "file"
        elif "memory" in controllers.split(","):
            root, prefix, cache = _CGROUPS / "memory", "total_", "cache"
            limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        while True:
            try:
                limit = (folder / limit_name).read_text().strip()
                if limit.isdigit() and int(limit) < 1 << 50:
                    used = int((folder / used_name).read_text())
                    stat = folder / "memory.stat"
                    # Files in a tmpfs count as cache, and can't be dropped.
                    reclaimable = _stat(stat, prefix + cache) - _stat(stat, prefix + "shmem")
                    yield int(limit), max(0, used - reclaimable)
            except (OSError, ValueError):
                pass  # a level without the controller
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent


def _stat(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
