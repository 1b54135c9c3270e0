"""A cluster on this machine: agents as processes on loopback, for trying edgellm without any board."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from edgellm.config import DEFAULT_CACHE_GB, DEFAULT_CACHE_RAM_GB
from edgellm.errors import BoardError, ClusterError, PlanError
from edgellm.files import write_atomically
from edgellm.manager.rebalance import propose, settle
from edgellm.manager.survey import Fleet
from edgellm.plan import Capacity, Plan, Settings
from edgellm.shards.manifest import Manifest
from edgellm.wire.credentials import Credentials

_START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class LocalAgent:
    """A running agent process: `pid` with its start time (pids are reused), its board name and address."""

    name: str
    host: str
    port: int
    pid: int
    started_s: float


class LocalAgents:
    """Starts agents and ends them, at the latest at the end of the `with` block or when this process dies.

    With a `record` they may outlive this process: they are written down there as soon as they start. `prefix(name)`
    gives words to put before an agent's command, to run it under a limit. `path` as `edgellm agent` has it. Together
    they keep up to `cache_gb` of prompts, beside their logs, and up to `cache_ram_gb` in RAM. `more` are the folders of
    further models.
    """

    def __init__(
        self, model_dir: Path, count: int, log_dir: Path, *, record: Path | None = None, ram_bytes: int | None = None,
        prefix: Callable[[str], list[str]] = lambda name: [], path: str = "auto",
        cache_gb: float = DEFAULT_CACHE_GB, cache_ram_gb: float = DEFAULT_CACHE_RAM_GB, more: Sequence[Path] = (),
    ):  # fmt: skip
        self._model_dirs, self._count, self._log_dir = (model_dir, *more), count, log_dir
        self.plan_file = log_dir / "plan.json"  # for form_cluster
        self._record, self._ram_bytes, self._prefix, self._path = record, ram_bytes, prefix, path
        self._cache_gb, self._cache_ram_gb = cache_gb / count, cache_ram_gb / count
        self._processes: list[subprocess.Popen[bytes]] = []
        self.agents: list[LocalAgent] = []

    def __enter__(self) -> "LocalAgents":
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> dict[str, tuple[str, int]]:
        """Start all agents, wait until each listens, and return their addresses by name.

        Raises BoardError with the last line of the log of one that doesn't start.
        """
        self._log_dir.mkdir(parents=True, exist_ok=True)
        shares = share_cores(self._count)
        for i in range(self._count):
            name = f"local{i + 1}"
            prefix, share = self._prefix(name), shares[i]
            command = [
                *prefix, sys.executable, "-m", "edgellm", "agent",
                *[word for folder in self._model_dirs for word in ("--shards", str(folder))],
                "--listen", "127.0.0.1:0", "--name", name, "--announce", "--path", self._path,
                "--cache", str(self._log_dir / "cache" / name), "--cache-gb", f"{self._cache_gb:.6f}",
                "--cache-ram-gb", f"{self._cache_ram_gb:.6f}",
            ]  # fmt: skip
            if share and not prefix:
                command += ["--cores", ",".join(map(str, share))]
            else:  # a prefix may leave it other cores
                command += ["--threads", str(max(1, len(share)))]
            if self._ram_bytes:
                command += ["--ram", f"{self._ram_bytes}B"]
            if self._record is None:
                command.append("--until-eof")
            with open(self._log_dir / f"{name}.log", "w") as log, _ctrl_c_waits():
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL if self._record else subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the manager, which tells the agents
                )
                self._processes.append(process)
            self.agents.append(LocalAgent(name, "127.0.0.1", 0, process.pid, _started_s(process)))
            if self._record:
                remember(self._record, self.agents)
        self.agents = [self._wait(i, process) for i, process in enumerate(self._processes)]
        if self._record:
            remember(self._record, self.agents)
        return {a.name: (a.host, a.port) for a in self.agents}

    def stop(self) -> None:
        """End all agents, and wait until they are gone."""
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if self._processes and self._record:
            self._record.unlink(missing_ok=True)
        self._processes.clear()

    def leave_running(self) -> list[LocalAgent]:
        """Let the agents live on without us."""
        for process in self._processes:
            if process.stdout is not None:
                process.stdout.close()
            process.returncode = 0  # not ours to wait for any more
        self._processes.clear()
        return self.agents

    def _wait(self, i: int, process: subprocess.Popen[bytes]) -> LocalAgent:
        name, deadline = f"local{i + 1}", time.monotonic() + _START_TIMEOUT_S
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            ready = selector.select(max(0.0, deadline - time.monotonic()))
        line = process.stdout.readline() if ready else b""
        if not line:
            raise BoardError(f"agent {name} did not start: {self._last_line(name)}", name)
        announced = json.loads(line)
        return LocalAgent(name, announced["host"], announced["port"], process.pid, _started_s(process))

    def _last_line(self, name: str) -> str:
        path = self._log_dir / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        return lines[-1] if lines else f"no line in {path} within {_START_TIMEOUT_S:g} s"


def share_cores(count: int) -> list[tuple[int, ...]]:
    """Return for each of `count` agents, cores of its own; none where there are fewer cores than agents."""
    if not hasattr(os, "sched_getaffinity"):
        return [()] * count
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // count
    return [tuple(cores[i * each : (i + 1) * each]) for i in range(count)]


async def form_cluster(
    manifest: Manifest, addresses: dict[str, tuple[str, int]], settings: Settings, *, shared_ram: bool = True,
    remembered: Path | None = None,
) -> Plan:  # fmt: skip
    """Ask the agents what they offer, plan, and have them load their sections. Raises PlanError or BoardError.

    With `shared_ram` the agents are processes that share this machine's RAM, and each may use its part of it. In the
    file `remembered` is the plan that was made the last time: it stays unless another is worth it, because agents that
    get other layers can't use the prompts that they keep.
    """
    before = None if remembered is None else _plan_in(remembered)
    async with Fleet(manifest, addresses, shared_ram=shared_ram) as fleet:
        await fleet.survey()
        if fleet.missing:
            raise BoardError("; ".join(fleet.missing.values()))
        plan = (await settle(fleet, settings, before, grow=True)).plan
    if remembered is not None:
        write_atomically(remembered, json.dumps(plan.to_dict()).encode())
    return plan


def _plan_in(path: Path) -> Plan | None:
    """Return the plan in a file; None if there is none that can be read."""
    try:
        return Plan.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError, PlanError):
        return None


async def could_hold(
    manifest: Manifest, addresses: dict[str, tuple[str, int]], settings: Settings, tls: Credentials | None = None, *,
    any_shard: bool = False, on_disk: Callable[[Capacity], Capacity] = lambda capacity: capacity,
) -> Plan:  # fmt: skip
    """Return a plan of a further model that these boards could take, of epoch 0 because they aren't given it.

    With `any_shard`, shards may still be pushed, as far as `on_disk` says. Raises PlanError if the boards can't hold
    the model, BoardError if none answers.
    """
    async with Fleet(manifest, addresses, tls, strangers=False) as fleet:
        await fleet.survey()
        if any_shard:
            reports = fleet.reports.items()
            fleet.reports = {name: replace(r, capacity=on_disk(r.capacity)) for name, r in reports}
        plan = (await propose(fleet, settings, any_shard=any_shard)).plan
        return replace(plan, epoch=0)


@contextlib.contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Have Ctrl-C take effect at the end of the block, so that no process is started and then forgotten."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[bool] = []
    signal.signal(signal.SIGINT, lambda *_: caught.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def _started_s(process: subprocess.Popen[bytes]) -> float:
    """Return when the process started; 0 if it has ended already."""
    try:
        return float(psutil.Process(process.pid).create_time())
    except psutil.Error:
        return 0.0


# `edgellm local up` records the agents it started, and `down` ends exactly these.


def remember(path: Path, agents: list[LocalAgent]) -> None:
    """Write down the agents that were started, for `recall`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps([vars(a) for a in agents]).encode())


def recall(path: Path) -> list[LocalAgent]:
    """Return the agents that were written down and still run. Raises ClusterError for a file that can't be read."""
    try:
        agents = [LocalAgent(**a) for a in json.loads(path.read_text())]
        if odd := [a.pid for a in agents if type(a.pid) is not int or a.pid < 1]:
            raise ValueError(f"{odd[0]!r} is not a process")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise ClusterError(f"{path}: {e}. Remove it, and end the agents that may still run.") from None
    return [a for a in agents if _process(a) is not None]


def end(agents: list[LocalAgent], tell: Callable[[str], None] = lambda text: None) -> None:
    """Drain and end these agents; kill those that don't end in time."""
    processes = [p for a in agents if (p := _process(a)) is not None]
    for process in processes:
        tell(f"ends agent {process.pid}")
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_STOP_TIMEOUT_S)


def _process(agent: LocalAgent) -> psutil.Process | None:
    try:
        process = psutil.Process(agent.pid)
        same = abs(process.create_time() - agent.started_s) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def state_dir() -> Path:
    """Return the folder for logs and the record of local agents."""
    import platformdirs

    return Path(platformdirs.user_state_dir("edgellm"))


def models_dir() -> Path:
    """Return the folder for splits of built-in models."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgellm")) / "models"
