"""edgellm, measured: agents that are pinned to their cores, a thread a core, asked over loopback as a manager asks."""

import asyncio
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.models import Model
from benchmarks.processes import mapped_bytes, memory_of, pinned
from edgellm.errors import AnswerError
from edgellm.kernels import library
from edgellm.manager import local
from edgellm.manager.client import ClusterClient
from edgellm.manager.cluster_file import ClusterFile
from edgellm.plan import Plan, Settings, section_need
from edgellm.sampling import Sampling
from edgellm.wire.status import SequenceStats

_TIMEOUT_S = 1800.0
_READ_BYTES, _READS = 512 << 20, 3


@dataclass(frozen=True)
class AgentMemory:
    """An agent's memory in bytes: its peak RSS, the shards it has mapped, and its KV: all of that is in memory from the
    start, since an agent writes zeros to whole slots before it says that it serves."""

    name: str
    peak: int
    shards: int
    kv: int

    @property
    def beyond(self) -> int:
        """Its peak beyond weights and KV."""
        return self.peak - self.shards - self.kv


class Cluster:
    """Agents that serve a model, as `with`: one for each of `cores`, or for each tuple of them, with as many threads.
    `serving_s` is what it took from their start until all served. They keep in `state` what they found out, and logs
    beside it."""

    def __init__(self, model: Model, settings: Settings, cores: Sequence[int | tuple[int, ...]], state: Path):
        self.model, self.manifest, logs = model, model.manifest, state / "logs"
        self._settings = replace(settings, context=min(settings.context, self.manifest.max_seq_len))
        kept = ["env", f"STATE_DIRECTORY={state}"]
        each = [(own,) if isinstance(own, int) else own for own in cores]
        by_name = {f"local{i}": [*kept, *pinned(*own)] for i, own in enumerate(each, 1)}
        self._cores = {core for own in each for core in own}
        self._agents = local.LocalAgents(
            model.split, len(cores), logs, prefix=by_name.__getitem__, cache_gb=0, cache_ram_gb=0
        )
        self._random = random.Random()  # never the same prompt twice: nothing is to be known from before
        self.paths: set[str] = set()  # what agents say they compute with: native, generic

    def __enter__(self) -> "Cluster":
        before, began = os.sched_getaffinity(0), time.perf_counter()
        try:
            os.sched_setaffinity(0, self._cores)  # agents share the cores that we may use
            try:
                self.addresses = self._agents.start()
            finally:
                os.sched_setaffinity(0, before)
            self.plan: Plan = asyncio.run(self._form())
        except BaseException:
            self._agents.stop()
            raise
        self.serving_s = time.perf_counter() - began
        return self

    def __exit__(self, *exc) -> None:
        self._agents.stop()

    async def _form(self) -> Plan:
        async with asyncio.timeout(_TIMEOUT_S):
            return await local.form_cluster(self.manifest, self.addresses, self._settings)

    def write(self, path: Path, addresses: dict[str, tuple[str, int]] | None = None) -> Path:
        """Write a cluster file, of other addresses if given; returns its path."""
        ClusterFile.make(self.model.split, addresses or self.addresses, self.plan).write(path)
        return path

    def decode(self, context: int, tokens: int) -> float:
        """Tokens a second of one sequence, decoded from `context` tokens on."""
        return self._run(1, context, tokens)[0]

    def prefill(self, tokens: int) -> float:
        """Tokens a second of a prompt: from asking until the first token of the answer is here."""
        return tokens / self._run(1, tokens, 0)[1]

    def streams(self, count: int, context: int, tokens: int) -> float:
        """Tokens a second of `count` sequences together: from the last one's first token to the first one's last."""
        return self._run(count, context, tokens)[0]

    def fill(self) -> None:
        """Have a prompt in each slot that fills it, all at once."""
        self._run(self.plan.slots, self.plan.context - 1, 0)

    def _run(self, count: int, context: int, tokens: int) -> tuple[float | None, float]:
        """(tokens a second while all decode, seconds until all do) of `count` sequences at once."""
        return asyncio.run(self._ask(count, context, tokens))

    async def _ask(self, count: int, context: int, tokens: int) -> tuple[float | None, float]:
        async with asyncio.timeout(_TIMEOUT_S), ClusterClient.dial(self.plan, self.addresses) as client:
            began = asyncio.get_running_loop().time()
            # One token more: the first comes out of the prompt's own pass.
            at = await asyncio.gather(*(self._answer(client, context, tokens + 1) for _ in range(count)))
        return together(at), max(times[0] for times in at) - began

    async def _answer(self, client: ClusterClient, context: int, tokens: int) -> list[float]:
        """When each token of a greedy answer to a random prompt came. Without drafts and slots that know the prompt:
        the weights are read anew for every token."""
        stats: dict[str, SequenceStats] = {}
        ids = self._random.choices(range(self.manifest.vocab_size), k=context)
        stream = client.generate(ids, sampling=Sampling(), max_tokens=tokens, eos=(), stats=stats, speculate=False,
                                 reuse=False)
        at = [chosen.at_s async for chosen in stream]
        if len(at) != tokens:
            raise AnswerError(f"{self.manifest.model}: {len(at)} tokens came, {tokens} were asked for")
        self.paths |= {s.path for s in stats.values() if s.path}
        return at

    @property
    def pids(self) -> dict[str, int]:
        """The agents' processes, by name."""
        return {a.name: a.pid for a in self._agents.agents}

    def memory(self) -> list[AgentMemory]:
        """Each agent's memory by now."""
        found, pids = [], self.pids
        for section in self.plan.sections:
            pid = pids[section.board]
            need = section_need(self.manifest, self.plan.settings, section.start, section.end)
            peak, shards = memory_of(pid).peak, mapped_bytes(pid, self.model.split)
            found.append(AgentMemory(section.board, peak, shards, need.kv))
        return found


def together(at: list[list[float]]) -> float | None:
    """Tokens a second, of the times at which each sequence's tokens came: while all of them were decoding. None if
    they never were together."""
    began, ended = max(times[0] for times in at), min(times[-1] for times in at)
    if ended <= began:
        return None
    return sum(sum(began < t <= ended for t in times) for times in at) / (ended - began)


class Memory:
    """The machine's memory, read by edgellm's own kernel."""

    def __init__(self, cores: list[int]):
        self._cores = cores
        self._data = np.ones(_READ_BYTES, np.uint8)

    def read_bytes_per_s(self) -> float:
        """What one core reads: the best of three reads on each of the cores, their mean."""
        before, rates = os.sched_getaffinity(0), []
        try:
            for core in self._cores:
                os.sched_setaffinity(0, {core})  # this thread
                rates.append(max(self._read(self._data) for _ in range(_READS)))
        finally:
            os.sched_setaffinity(0, before)
        return sum(rates) / len(rates)

    def read_together_bytes_per_s(self) -> float:
        """What all the cores read at once, in sum: the best of three times."""
        parts = np.split(self._data, len(self._cores))  # or one would read what the other has brought to their cache
        with ThreadPoolExecutor(len(self._cores)) as pool:
            return max(sum(pool.map(self._read_on, self._cores, parts)) for _ in range(_READS))

    def _read_on(self, core: int, data: np.ndarray) -> float:
        os.sched_setaffinity(0, {core})  # this thread
        return self._read(data)

    def _read(self, data: np.ndarray) -> float:
        began = time.perf_counter()
        library.read(data)
        return data.nbytes / (time.perf_counter() - began)
