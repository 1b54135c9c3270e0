"""Chooses cores to compute on: what /sys reports, which sets are worth measuring, and which one is the fastest."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import UsageError
from edgellm.kernels.abi import constants

_ALIKE = 0.9  # a core with at least this share of the fastest one's speed is of its kind
_WORTH = 0.97  # more cores must take at most this share of the time of fewer
_MOST_CORES: int = constants.MOST_THREADS  # that the pool has threads for
_MOST_CPU = 1023  # as in a cpu_set_t


@dataclass(frozen=True)
class Core:
    """A core that this process may use: its number, its speed beside others of the machine, and the number of the first
    core that shares its execution units (its own without SMT)."""

    number: int
    speed: float
    first_sibling: int


@dataclass(frozen=True)
class Choice:
    """Compute with `threads` threads. `pinned`: the i-th stays on the i-th of `cores`. Else the system places them, on
    `cores` if there are any. `why` is for the log."""

    threads: int
    cores: tuple[int, ...]
    why: str
    pinned: bool = True

    def __str__(self) -> str:
        on = f" on cores {format_list(self.cores)}" if self.cores else ""
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}{on} ({self.why})"


def parse_list(text: str) -> tuple[int, ...]:
    """Return the core numbers of a list like 4-7 or 0,2, in the order given; raises UsageError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = first, last if dash else first
        if not all(n.isascii() and n.isdigit() for n in ends) or not int(ends[0]) <= int(ends[1]) <= _MOST_CPU:
            raise UsageError(f"{text[:60]!r} is not a list of cores, expected one like 4-7 or 0,2")
        found += range(int(ends[0]), int(ends[1]) + 1)
    if len(set(found)) < len(found):
        raise UsageError(f"{text[:60]!r} names a core twice")
    return tuple(found)


def format_list(cores: Iterable[int]) -> str:
    """Return a list of cores as `parse_list` takes it: 4-7, or 0,2."""
    runs: list[list[int]] = []
    for n in cores:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def allowed_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may use: its affinity, within its control group's cpuset."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def read_cores(allowed: Iterable[int], *, root: Path = Path("/")) -> tuple[Core, ...]:
    """Return the allowed cores, the fastest first. Speed is cpu_capacity, else the highest frequency; if neither can
    be read for all of them, they count as equal."""
    folder, numbers = root / "sys/devices/system/cpu", list(allowed)
    speeds = [1.0] * len(numbers)
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        read = [_number(folder / f"cpu{n}" / name) for n in numbers]
        if all(read):
            speeds = [speed for speed in read if speed is not None]
            break
    siblings = [_first_of(folder / f"cpu{n}/topology/thread_siblings_list", n) for n in numbers]
    cores = [Core(*facts) for facts in zip(numbers, speeds, siblings, strict=True)]
    # By kind, then by number: the system numbers neighbours that share a cache one after another.
    kinds = {c.number: i for i, kind in enumerate(_kinds(cores)) for c in kind}
    return tuple(sorted(cores, key=lambda c: (kinds[c.number], c.number)))


def candidates(cores: Sequence[Core]) -> list[tuple[int, ...]]:
    """Return the sets of cores worth a try, the largest first: all; the fastest kind, with the next kinds added one by
    one; one thread of each core with SMT; half; one. Slow cores alone are never faster than fast ones alone."""
    kinds = _kinds(cores)
    found = [sum(kinds[:i], ()) for i in range(len(kinds), 0, -1)]
    found += [tuple(c for c in some if c.first_sibling == c.number) for some in found]
    found += [tuple(cores[: len(cores) // 2]), tuple(cores[:1])]
    numbers = {tuple(c.number for c in some[:_MOST_CORES]) for some in found if some}
    return sorted(numbers, key=lambda some: (-len(some), some))


def fastest_kind(cores: Sequence[Core]) -> tuple[int, ...]:
    """Return the cores of the fastest kind: a good guess if nothing could be measured."""
    return tuple(c.number for c in _kinds(cores)[0])[:_MOST_CORES]


def choose(seconds: dict[tuple[int, ...], float]) -> tuple[int, ...]:
    """Return the set with the fewest seconds per step; of two about as fast, the smaller, which leaves a core free."""
    best: tuple[int, ...] = ()
    for some in sorted(seconds, key=len):
        if not best or seconds[some] < _WORTH * seconds[best]:
            best = some
    return best


def settled(cores: Sequence[Core], threads: int | None, wanted: tuple[int, ...] | None, pin: bool) -> Choice | None:
    """Return the choice that needs no measurement: the owner's, or the only core; None if candidates must be measured.

    `threads` alone takes the fastest cores where some are slower, or all; else the system places them, because other
    agents may have the same option. Without `pin` (torch's threads would all inherit one core), the system places them
    on the given cores, or else on the fast ones. Raises UsageError for cores that can't be used.
    """
    numbers, fast = tuple(c.number for c in cores), fastest_kind(cores)
    if wanted is not None:
        if strange := [n for n in wanted if n not in numbers]:
            have = format_list(sorted(numbers))
            raise UsageError(f"core {strange[0]} doesn't exist or is not available. Choose from {have} with --cores.")
        if threads is not None and threads != len(wanted):
            raise UsageError(f"{threads} threads on {len(wanted)} cores: leave out --threads, or give as many cores")
        return Choice(min(len(wanted), _MOST_CORES), wanted[:_MOST_CORES], "as told", pin)
    some_slow = len(fast) < len(numbers)
    if threads is not None:
        threads = min(threads, _MOST_CORES)
        sure = threads == len(numbers) or (threads < len(numbers) and some_slow)
        return Choice(threads, numbers[:threads] if sure else (), "as told", pin and sure)
    if not pin:
        why = "the fast ones" if some_slow else "all"
        return Choice(len(fast), fast if some_slow else (), why, False)
    if len(numbers) == 1:
        return Choice(1, numbers, "the only one")
    return None


def _kinds(cores: Sequence[Core]) -> list[tuple[Core, ...]]:
    """Return groups of cores of about the same speed, the fastest first."""
    kinds: list[tuple[Core, ...]] = []
    for core in sorted(cores, key=lambda c: (-c.speed, c.number)):
        if kinds and core.speed >= _ALIKE * kinds[-1][0].speed:
            kinds[-1] += (core,)
        else:
            kinds.append((core,))
    return [tuple(sorted(kind, key=lambda c: c.number)) for kind in kinds]


def _number(path: Path) -> float | None:
    try:
        value = int(path.read_text()[:32])
    except (OSError, ValueError):
        return None
    return float(value) if value > 0 else None


def _first_of(path: Path, own: int) -> int:
    try:
        return parse_list(path.read_text()[:4096].strip())[0]
    except (OSError, UnicodeDecodeError, UsageError):
        return own
