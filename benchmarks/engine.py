"""Measures the whole path: agents on this machine, beside one transformers process and beside what memory can give.

    python -m benchmarks.engine
    python -m benchmarks.engine --model phi3 --agents 2 --runs 3 --json

Each run measures everything once, so that a busy moment hits both sides; the table shows medians. Limits that fall
short are shown, and are no error.
"""

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.processes import Answering, cpu_s, memory_of, run_measured
from benchmarks.report import Row, at_least, at_most, holds, median, ratio
from edgellm import config
from edgellm.console import note
from edgellm.errors import EdgellmError
from edgellm.kernels import library
from edgellm.manager import local
from edgellm.manager.client import ClusterClient
from edgellm.manager.cluster_file import ClusterFile
from edgellm.plan import Plan, Settings
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest

MAX_CONTEXT_RATIO, MAX_OVERHEAD_BYTES, MAX_MANAGER_BYTES = 1.5, 64, 200_000_000
SHORT, LONG = 50, 1000  # tokens of context to decode at
PROMPT, PREFILL, DECODED, AT_ONCE = 20, 512, 64, 4
_AROUND = 32  # tokens decoded around a context
_TIMEOUT_S = 900.0
_BUFFER_BYTES = 512 << 20


class Measurements:
    """Everything measured, by name; every run adds a value."""

    def __init__(self):
        self.values: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: float | None) -> None:
        if value is not None:
            self.values[name].append(value)

    def __getitem__(self, name: str) -> float | None:
        return median(self.values.get(name, ()))


async def answer(cluster: ClusterClient, ids: list[int], tokens: int) -> dict:
    """Greedy tokens of one sequence, without drafts and with nothing held from before: seconds to the first, per token
    after it, and what the boards report."""
    clock, stats = asyncio.get_running_loop().time, {}
    began = clock()
    async with asyncio.timeout(_TIMEOUT_S):
        stream = cluster.generate(
            ids, sampling=Sampling(), max_tokens=tokens, eos=(), stats=stats, speculate=False, reuse=False
        )
        at = [c.at_s async for c in stream]
    return {
        "first_s": at[0] - began, "last_s": at[-1] - began, "stats": stats,
        "per_token_s": (at[-1] - at[0]) / (tokens - 1) if tokens > 1 else None,
    }  # fmt: skip


class Run:
    """The things that are measured, and what they are measured with."""

    def __init__(self, cluster: ClusterClient, baseline: Answering, manifest: Manifest, threads: int):
        self.found = Measurements()
        self._cluster, self._baseline, self._threads = cluster, baseline, threads
        self._random, self._vocab_size = random.Random(0), manifest.vocab_size
        self._context = cluster.plan.context
        self._buffer = torch.ones(_BUFFER_BYTES, dtype=torch.uint8)

    def prompt(self, tokens: int) -> list[int]:
        return [self._random.randrange(self._vocab_size) for _ in range(tokens)]

    async def everything(self, runs: int) -> None:
        note("warms up")
        await answer(self._cluster, self.prompt(PROMPT), 4)
        await self._reference(self.prompt(PROMPT), 4, self._threads)
        for i in range(runs):
            note(f"run {i + 1} of {runs}")
            await self._decode()
            await self._at_once()
            self._read()
            await self._prefill()
            await self._at_context("short", SHORT)
            await self._at_context("long", LONG)
            self._read()

    async def _decode(self) -> None:
        ids = self.prompt(SHORT)
        got = await answer(self._cluster, ids, DECODED)
        self.found.add("token_s", got["per_token_s"])
        for board, stats in got["stats"].items():
            if steps := stats.decode_steps:
                self.found.add(f"sent_bytes {board}", stats.sent_bytes / steps)
                self.found.add(f"compute_s {board}", stats.decode_s / steps)
        for threads in sorted({1, self._threads}):
            told = await self._reference(ids, DECODED, threads)
            self.found.add(f"reference token_s {threads}", told["per_token_s"])

    async def _at_once(self) -> None:
        """Tokens a second of several sequences that run at once, from the last one's first token on."""
        count = min(AT_ONCE, self._cluster.plan.slots)
        got = await asyncio.gather(*(answer(self._cluster, self.prompt(PROMPT), DECODED) for _ in range(count)))
        began, ended = max(g["first_s"] for g in got), max(g["last_s"] for g in got)
        self.found.add("at_once_tokens_per_s", count * (DECODED - 1) / (ended - began))

    async def _prefill(self) -> None:
        for name, tokens in (("short", PROMPT), ("long", PREFILL)):
            if tokens >= self._context:
                continue
            ids = self.prompt(tokens)
            self.found.add(f"first_s {name}", (await answer(self._cluster, ids, 1))["first_s"])
            for threads in sorted({1, self._threads}):
                told = await self._reference(ids, 1, threads)
                self.found.add(f"reference first_s {name} {threads}", told["first_s"])

    async def _at_context(self, name: str, context: int) -> None:
        if context + _AROUND > self._context:
            return
        ids = self.prompt(context - _AROUND // 2)
        self.found.add(f"token_s {name}", (await answer(self._cluster, ids, _AROUND))["per_token_s"])
        told = await self._reference(ids, _AROUND, self._threads)
        self.found.add(f"reference token_s {name}", told["per_token_s"])

    async def _reference(self, ids: list[int], tokens: int, threads: int) -> dict:
        question = {"ids": ids, "tokens": tokens, "threads": threads}
        return await asyncio.to_thread(self._baseline.ask, question, _TIMEOUT_S)

    def _read(self) -> None:
        began = time.perf_counter()
        library.read(self._buffer.numpy())
        self.found.add("read_bytes_per_s", _BUFFER_BYTES / (time.perf_counter() - began))


def measure_manager(cluster_file: Path, runs: int) -> dict | None:
    """`edgellm ask` as a process: peak memory, seconds, and whether it imports torch. None if the model has no text."""
    command = ["-m", "edgellm", "ask", "Name three birds.", "--json", "--max-tokens", "8", "--cluster"]
    command.append(str(cluster_file))
    finished = [run_measured([sys.executable, *command], 300.0) for _ in range(runs)]
    if any(f.code for f in finished):
        return None
    with tempfile.TemporaryFile("w+") as stderr:
        subprocess.run(
            [sys.executable, "-X", "importtime", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=stderr, timeout=300.0, check=True,
        )  # fmt: skip
        stderr.seek(0)
        modules = set(re.findall(r"^import time: .*\| +([\w.]+)$", stderr.read(), re.MULTILINE))
    return {
        "peak_bytes": max(f.peak_bytes for f in finished),
        "wall_s": median(f.wall_s for f in finished),
        "modules": len(modules),
        "imports_torch": "torch" in modules,
    }


def make_rows(found: Measurements, plan: Plan, manifest: Manifest, threads: int, memory: dict, manager: dict | None):
    """The table's rows, from medians."""

    def per_s(value: float | None, count: float = 1) -> float | None:
        return count / value if value else None

    def ms(value: float | None) -> float | None:
        return value * 1e3 if value is not None else None

    hidden_bytes = manifest.hidden_size * 4
    weights = sum(s.bytes for s in manifest.shards if s.kind != "embedding")
    rate = per_s(found["token_s"])
    rows = [Row("other processes meanwhile", found["others_cores"], "cores"),
            Row("decode, one sequence", rate, "tok/s"), Row("  a token", ms(found["token_s"]), "ms")]  # fmt: skip
    for section in plan.sections:
        rows.append(Row(f"  computing on {section.board}, {section}", ms(found[f"compute_s {section.board}"]), "ms"))
    references = {count: per_s(found[f"reference token_s {count}"]) for count in sorted({1, threads})}
    for count, reference in references.items():
        rows.append(Row(f"  transformers bf16, {_threads(count)}", reference, "tok/s"))
    best = max(references, key=lambda count: references[count])
    rows.append(at_least(f"  edgellm ÷ transformers bf16 at its best, {_threads(best)}",
                         ratio(rate, references[best]), "", 1.0))  # fmt: skip
    read = found["read_bytes_per_s"]
    reference_prefill = found[f"reference first_s long {threads}"]
    rows += [
        Row("  weights read a token", weights / 1e6, "MB"),
        Row("  one core reads", read / 1e9, "GB/s"),
        Row("  weights × tok/s ÷ what one core reads", ratio(rate * weights, read)),
        Row(f"decode, {min(AT_ONCE, plan.slots)} sequences at once", found["at_once_tokens_per_s"], "tok/s"),
        Row(f"a token at {SHORT} tokens of context", ms(found["token_s short"]), "ms"),
        Row(f"a token at {LONG} tokens of context", ms(found["token_s long"]), "ms"),
        at_most("  ratio", ratio(found["token_s long"], found["token_s short"]), "", MAX_CONTEXT_RATIO),
        Row("  transformers bf16, ratio",
            ratio(found["reference token_s long"], found["reference token_s short"])),
        Row(f"prefill, {PREFILL} tokens", per_s(found["first_s long"], PREFILL), "tok/s"),
        Row(f"  transformers bf16, {_threads(threads)}", per_s(reference_prefill, PREFILL), "tok/s"),
        Row("  edgellm ÷ transformers bf16", ratio(reference_prefill, found["first_s long"])),
        Row(f"time to first token, {PROMPT} tokens", ms(found["first_s short"]), "ms"),
        Row(f"  transformers bf16, {_threads(threads)}", ms(found[f"reference first_s short {threads}"]), "ms"),
    ]  # fmt: skip
    rows += wire_rows(plan, {s.board: found[f"sent_bytes {s.board}"] for s in plan.sections}, hidden_bytes)
    for name, used in memory.items():
        rows.append(Row(f"memory, {name}", used.rss / 1e6, "MB"))
        rows.append(Row("  its own + mapped files", f"{used.anonymous / 1e6:.0f} + {used.file / 1e6:.0f}", "MB"))
    if manager is None:
        rows.append(Row("memory, manager (edgellm ask)", None, "MB", f"≤ {MAX_MANAGER_BYTES / 1e6:.0f}"))
    else:
        rows.append(at_most("memory, manager (edgellm ask), peak", manager["peak_bytes"] / 1e6, "MB",
                            MAX_MANAGER_BYTES // 1_000_000))  # fmt: skip
        rows.append(holds("  imports torch", "yes" if manager["imports_torch"] else "no", "no",
                          not manager["imports_torch"]))  # fmt: skip
        rows.append(Row("  edgellm ask, 8 tokens, from start to end", manager["wall_s"], "s"))
    return rows


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def wire_rows(plan: Plan, sent_bytes: dict[str, float | None], hidden_bytes: int) -> list[Row]:
    """What every board sends another for a decoded token, beside the hidden state that it must."""
    if len(plan.sections) == 1:
        return []
    rows = []
    for here, there in zip(plan.boards, (*plan.boards[1:], plan.boards[0]), strict=True):
        sent, payload = sent_bytes[here], 0 if here == plan.boards[-1] else hidden_bytes
        rows.append(Row(f"wire, {here} → {there}, a token", sent, "bytes"))
        what = f"  over its hidden state of {payload}" if payload else "  no hidden state, the token's id"
        rows.append(at_most(what, None if sent is None else sent - payload, "bytes", MAX_OVERHEAD_BYTES))
    return rows


async def measure(model: Path, count: int, runs: int, work: Path) -> tuple[list[Row], dict]:
    """Starts the agents and the reference, measures, ends them. Returns the rows, and everything measured."""
    manifest = Manifest.read(model)
    context = min(config.DEFAULT_CONTEXT, manifest.max_seq_len)
    settings = Settings(context, config.DEFAULT_SLOTS, kv_dtype="float16", objective="throughput")
    threads = count * max(1, report.cores() // count)
    with local.LocalAgents(model, count, work, cache_gb=0, cache_ram_gb=0) as agents:
        note(f"starts {count} agents with {manifest.model}")
        addresses = await asyncio.to_thread(agents.start)
        plan = await local.form_cluster(manifest, addresses, settings)
        note(f"loads one transformers process in bf16, {threads} threads")
        with Answering([sys.executable, "-m", "benchmarks.baseline", str(model)]) as baseline:
            async with ClusterClient.dial(plan, addresses) as cluster:
                run = Run(cluster, baseline, manifest, threads)
                pids, began = [os.getpid(), baseline.pid, *(a.pid for a in agents.agents)], time.monotonic()
                before = cpu_s(pids)
                await run.everything(runs)
                every, ours = (b - a for a, b in zip(before, cpu_s(pids), strict=True))
                run.found.add("others_cores", max(0.0, every - ours) / (time.monotonic() - began))
            memory = {f"agent {a.name}": memory_of(a.pid) for a in agents.agents}
            memory["transformers bf16"] = memory_of(baseline.pid)
        note("measures the manager")
        path = work / "cluster.json"
        ClusterFile.make(model, addresses, plan).write(path)
        manager = await asyncio.to_thread(measure_manager, path, min(runs, 3))
    rows = make_rows(run.found, plan, manifest, threads, memory, manager)
    everything = {
        "plan": plan.to_dict(), "threads": threads, "medians": {n: run.found[n] for n in run.found.values},
        "values": run.found.values, "memory": {n: asdict(m) for n, m in memory.items()}, "manager": manager,
    }  # fmt: skip
    return rows, everything


def default_model() -> Path:
    """The built-in model's split, made now if it isn't there."""
    out = local.models_dir() / config.DEFAULT_MODEL
    if not (out / "manifest.json").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "edgellm", "split", config.DEFAULT_MODEL, "--out", str(out)]
        subprocess.run(command, stdout=subprocess.DEVNULL, timeout=1800.0, check=True)
    return out


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help=f"a split model's folder (default: {config.DEFAULT_MODEL})")
    parser.add_argument("--agents", type=int, default=2, help="agents to start (default: 2)")
    parser.add_argument("--runs", type=int, default=5, help="how often everything is measured (default: 5)")
    parser.add_argument("--json", action="store_true", help="print everything measured as JSON")
    options = parser.parse_args()
    if options.agents < 1 or options.runs < 1:
        parser.error("--agents and --runs must be at least 1")
    machine = report.machine()
    try:
        with tempfile.TemporaryDirectory(prefix="edgellm-bench-") as work:
            model = (options.model or default_model()).resolve()
            rows, everything = asyncio.run(measure(model, options.agents, options.runs, Path(work)))
    except EdgellmError as e:
        sys.exit(f"benchmark: {e}")
    machine["load_average_after"] = list(os.getloadavg())
    if options.json:
        print(report.to_json("engine", machine, rows, agents=options.agents, runs=options.runs, **everything))
    else:
        print(report.machine_text(machine, machine["load_average_after"][0]))
        print(report.table(rows))


if __name__ == "__main__":
    main()
