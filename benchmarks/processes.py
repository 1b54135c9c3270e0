"""Processes from outside: their memory, one that is run and measured, one that answers lines, a limit that holds."""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgellm.errors import EdgellmError

# A process's peak RSS as wait() tells it starts from that of the process it was forked from: so from a small one.
_LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"code": done.returncode, "stdout": done.stdout.decode(errors="replace"), "peak_bytes": peak,
                  "wall_s": time.perf_counter() - began}))
"""


class BenchmarkError(Exception):
    """Something can't be measured here: one line, with what to do about it."""


FAILURES = (EdgellmError, BenchmarkError, TimeoutError)  # after which the other measurements go on


@dataclass(frozen=True)
class Finished:
    """A process that has ended; `peak_bytes` is its largest RSS, file pages that it mapped included."""

    code: int
    stdout: str
    peak_bytes: int
    wall_s: float


def run_measured(command: list[str], timeout_s: float, stderr=None) -> Finished:
    """Run a command, its stderr left on ours or sent to an open file. Raises TimeoutError, with the process and its
    children gone; they are gone too after any other exception, such as Ctrl-C."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _LAUNCHER, *command], stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
    ) as process:
        try:
            out, _ = process.communicate(timeout=timeout_s)
        except BaseException as e:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(e, subprocess.TimeoutExpired):
                raise TimeoutError(f"{' '.join(command[:5])} … did not end within {timeout_s:g} s") from None
            raise
    return Finished(**json.loads(out))


@dataclass(frozen=True)
class Memory:
    """A running process's memory in bytes: `rss` = `anonymous` (its own) + `file` (mapped files: shards, libraries);
    `peak` is the largest rss so far."""

    rss: int
    anonymous: int
    file: int
    peak: int


def memory_of(pid: int) -> Memory:
    """Raises OSError where /proc doesn't tell."""
    rollup = _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
    status = _kilobytes(Path(f"/proc/{pid}/status").read_text())
    rss, anonymous = rollup["Rss"], rollup["Anonymous"]
    return Memory(rss, anonymous, rss - anonymous, status["VmHWM"])


def mapped_bytes(pid: int, folder: Path) -> int:
    """Bytes of the files of `folder` that a process has mapped and that are in memory (its part of their RSS)."""
    found, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        if line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024 * counts
        elif not line.split(" ", 1)[0].endswith(":"):  # a mapping's own line: addresses, rights, …, path
            counts = f" {folder}/" in line
    return found


def worker_cores(count: int) -> list[int]:
    """The cores that workers are pinned to, one each. Raises BenchmarkError if there are too few."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise BenchmarkError(f"{len(cores)} core may be used here, {count} are needed: a worker has one to itself")
    if not shutil.which("taskset"):
        raise BenchmarkError("there is no taskset to pin workers to cores. Install util-linux.")
    return cores[:count]


def pinned(*cores: int) -> list[str]:
    """What to put before a command so that it runs on these cores alone."""
    return ["taskset", "--cpu-list", ",".join(map(str, cores))]


def cpu_s(pids: list[int]) -> tuple[float, float]:
    """Seconds of processor time since the machine started, or these processes did: (of all processes, of these)."""
    every = psutil.cpu_times()
    idle = every.idle + getattr(every, "iowait", 0.0)
    guest = getattr(every, "guest", 0.0) + getattr(every, "guest_nice", 0.0)  # counted in user and nice already
    own = (psutil.Process(pid).cpu_times() for pid in pids)
    return sum(every) - idle - guest, sum(t.user + t.system for t in own)


def major_faults(pid: int) -> int:
    """Page faults so far that had to wait for the disk."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])


def _kilobytes(text: str) -> dict[str, int]:
    """Bytes by name, of the lines like "Rss:   123 kB"."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) * 1024
    return found


class Answering:
    """A process that answers each line of JSON on stdin with one on stdout. Ended with the `with` block."""

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self._process.pid

    def __enter__(self) -> "Answering":
        return self

    def __exit__(self, *exc) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def ask(self, question: dict, timeout_s: float) -> dict:
        """Raises TimeoutError, RuntimeError if the process is gone."""
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise TimeoutError(f"process {self.pid} gave no answer within {timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"process {self.pid} ended without an answer, code {self._process.wait()}")
        return json.loads(line)


class MemoryGroup:
    """A control group whose processes together may have `limit_bytes` of RAM, page cache that they bring in included.

    Version 1: below our own group, so that limits we are under stay. Version 2: beside it, for a group with processes
    can't have limited ones below. Needs root. Raises OSError where it can't be had. Use as `with`.
    """

    def __init__(self, name: str, limit_bytes: int):
        self.version, parent = _own_group()
        self.path = parent / f"edgellm-benchmark-{os.getpid()}-{name}"
        self.limit_bytes = limit_bytes
        self.path.mkdir()
        try:
            limit = "memory.limit_in_bytes" if self.version == 1 else "memory.max"
            (self.path / limit).write_text(str(limit_bytes))
            with contextlib.suppress(OSError):  # no swap, no such file
                (self.path / "memory.swap.max").write_text("0")
        except OSError:
            self.path.rmdir()
            raise

    def __enter__(self) -> "MemoryGroup":
        return self

    def __exit__(self, *exc) -> None:
        deadline = time.monotonic() + 10.0
        while True:  # busy until its last process is reaped
            try:
                self.path.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def prefix(self) -> list[str]:
        """What to put before a command so that it runs in this group."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs")]

    def peak_bytes(self) -> int | None:
        """The most it has held so far; None where the kernel doesn't count that."""
        try:
            name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
            return int((self.path / name).read_text())
        except OSError:
            return None

    def usage(self) -> dict[str, int]:
        """Bytes now: `all`, and of these `anonymous` and `file`; `at_limit` counts how often it ran into the limit,
        `oom_kills` the processes killed for it."""
        stat = _pairs(self.path / "memory.stat")
        if self.version == 1:
            used = int((self.path / "memory.usage_in_bytes").read_text())
            anonymous, file = stat["total_rss"], stat["total_cache"]
            at_limit = int((self.path / "memory.failcnt").read_text())
            kills = _pairs(self.path / "memory.oom_control").get("oom_kill", 0)
        else:
            used = int((self.path / "memory.current").read_text())
            anonymous, file = stat["anon"], stat["file"]
            events = _pairs(self.path / "memory.events")
            at_limit, kills = events["max"], events["oom_kill"]
        return {"all": used, "anonymous": anonymous, "file": file, "at_limit": at_limit, "oom_kills": kills}


def _pairs(path: Path) -> dict[str, int]:
    return {name: int(value) for name, _, value in (line.partition(" ") for line in path.read_text().splitlines())}


def _own_group() -> tuple[int, Path]:
    """(version, folder to make groups in) of the memory controller."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return 1, Path("/sys/fs/cgroup/memory") / path.lstrip("/")
        if not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            own = Path("/sys/fs/cgroup") / path.lstrip("/")
            parent = own if path == "/" else own.parent
            if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                return 2, parent
    raise OSError("no memory controller for control groups")


def drop_cached(folder: Path) -> None:
    """Let the page cache forget the files of a folder: who reads them next is charged for them."""
    for path in sorted(folder.iterdir()):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
