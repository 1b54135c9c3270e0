"""Measures on which cores this agent decodes fastest, and keeps the result as long as the machine stays the same."""

import contextlib
import json
import logging
import os
import time
from pathlib import Path

from edgellm import __version__
from edgellm.agent import measure
from edgellm.agent.cores import (
    Choice,
    Core,
    allowed_cores,
    candidates,
    choose,
    fastest_kind,
    format_list,
    read_cores,
    settled,
)
from edgellm.files import write_atomically
from edgellm.shards.manifest import Manifest

log = logging.getLogger(__name__)
_ROUNDS = 2, 8  # of all sets: at least, and as many as do
_BUDGET_S = 0.3  # no round begins after this; twice as long if other work disturbs
_CALM = 0.05  # share of a step's time that may be spent waiting for a core
_DISTURBED = "the fast ones; other work disturbed the measurement, so the next start measures again"
_MAX_KEPT_BYTES = 64 << 10
_SLOW = {
    "scalar": "this CPU has none of the instructions that fast kernels need (AVX2, NEON): expect a tenth of the speed",
    "avx2": "this CPU has no AVX512-VNNI: the slower AVX2 kernels run",
    "neon": "this CPU has no dot product instructions (a Cortex-A72 or older): the slower NEON kernels run",
}


def state_folder() -> Path:
    """Return the folder for measurements: the one that systemd gave the agent, else the user's."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    import platformdirs

    return Path(platformdirs.user_state_dir("edgellm")) / "agent"


def take_cores(manifest: Manifest, folder: Path, threads: int | None, wanted: tuple[int, ...] | None,
               state: Path | None = None, path: str = "auto") -> Choice:  # fmt: skip
    """Choose the cores, and use them in this process from now on: as told, as kept in `state`, or as measured on
    `path`, as load_section has it.

    Raises UsageError for cores that can't be used, ManifestError for shards that can't.
    """
    from edgellm.agent.load import set_threads
    from edgellm.kernels import library
    from edgellm.model.native.section import read_spec

    measure.timed_layers(manifest, folder)  # without a layer there is nothing to compute
    cores, is_native = read_cores(allowed_cores()), path == "auto" and read_spec(manifest, folder)[0] is not None
    choice = settled(cores, threads, wanted, pin=is_native)
    if choice is None:
        file, key = (state or state_folder()) / "cores.json", _key(manifest, cores, library.target(), is_native)
        choice = _read(file, key, cores)
        if choice is None:
            choice = _measure(manifest, folder, cores, path)
            if choice.why != _DISTURBED:
                _keep(file, key, choice)
    if choice.cores and not choice.pinned:
        _confine(choice.cores)
    set_threads(choice.threads, choice.cores if choice.pinned else ())
    if library.target() in _SLOW:
        log.warning("%s", _SLOW[library.target()])
    log.info("computes with %s, %s kernels", choice, library.target())
    return choice


def time_sets(section, sets: list[tuple[int, ...]], use, queued_s) -> tuple[dict[tuple[int, ...], float], bool]:
    """Return the seconds of the fastest of some decode steps on each set of cores, and whether all ran undisturbed.

    `use(cores)` has the next steps run there; `queued_s()` counts how long our threads have waited for a core that
    others had. The sets take turns, so that other work on the machine affects all of them.
    """
    slot, x = section.new_slot(16), section.example()
    seconds, calm = dict.fromkeys(sets, float("inf")), dict.fromkeys(sets, False)
    began, rounds = time.perf_counter(), 0
    while True:
        passed, sure = time.perf_counter() - began, all(calm.values())
        if rounds >= _ROUNDS[0] and (passed > 2 * _BUDGET_S or sure and (passed > _BUDGET_S or rounds >= _ROUNDS[1])):
            return seconds, sure
        rounds += 1
        for some in sets:
            use(some)
            for _ in range(2):  # the first wakes the cores up
                queued, start = queued_s(), time.perf_counter()
                section.forward(x, 0, slot, 1, False)
                took = time.perf_counter() - start
                if took < seconds[some]:
                    seconds[some], calm[some] = took, queued_s() - queued < _CALM * took


def _queued_s() -> float:
    """Return the seconds that this process's threads have waited for a core so far; 0 where the kernel counts none."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int(path.read_text().split()[1])
    return total / 1e9


def _confine(cores: tuple[int, ...]) -> None:
    """Keep all threads of this process, and those to come, on these cores. Call it before the kernels are loaded:
    they note where the process may run."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(int(thread), cores)


def _measure(manifest: Manifest, folder: Path, cores: tuple[Core, ...], path: str) -> Choice:
    from edgellm.agent.load import set_threads

    section, _ = measure.load_timed(manifest, folder, path)
    seconds, calm = time_sets(section, candidates(cores), lambda some: set_threads(len(some), some), _queued_s)
    log.info(
        "measured a step: %s", ", ".join(f"{1e3 * seconds[some]:.1f} ms on {format_list(some)}" for some in seconds)
    )
    best = choose(seconds) if calm else fastest_kind(cores)
    return Choice(len(best), best, "measured as the fastest" if calm else _DISTURBED)


def _key(manifest: Manifest, cores: tuple[Core, ...], target: str, is_native: bool) -> dict:
    """Return what the choice depends on: it is made again when any of it changes. The model is part of it, because what
    is fastest for a small model's steps may not be for a large one's."""
    facts = [[c.number, c.speed, c.first_sibling] for c in cores]
    return {"machine": _machine(), "cores": facts, "kernels": target, "model": manifest.sha256,
            "native": is_native, "version": __version__}  # fmt: skip


def _machine(root: Path = Path("/")) -> str:
    """Return the board's or the processor's name; empty if both are unknown."""
    try:
        return (root / "proc/device-tree/model").read_text(errors="replace")[:200].strip("\0\n ")
    except OSError:
        pass
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip()[:200] for line in lines if line.startswith("model name")), "")


def _read(path: Path, key: dict, cores: tuple[Core, ...]) -> Choice | None:
    """Return the choice kept for this machine; None if there is none, it is another machine's, or it can't be read."""
    try:
        with open(path, "rb") as f:
            kept = json.loads(f.read(_MAX_KEPT_BYTES))
        chosen = tuple(kept["chosen"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
        log.warning("%s can't be read, so cores are measured again: %s", path, e)
        return None
    if kept.get("for") != key or chosen not in candidates(cores):
        return None
    return Choice(len(chosen), chosen, "measured earlier as the fastest")


def _keep(path: Path, key: dict, choice: Choice) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"for": key, "chosen": choice.cores}).encode() + b"\n")
    except OSError as e:  # then the next start measures again
        log.warning("%s can't be written, so the next start measures cores again: %s", path, e.strerror or e)
