"""How long an agent and `edgellm ask` take to start, and what an agent's memory is beside its weights and KV.

    python -m benchmarks.startup SPLIT
    python -m benchmarks.startup SPLIT --runs 9 --json --out startup.json

One agent serves the whole model, as a process, with warm files that an earlier one has found right; its cores are given
to it. In the last two runs it measures them: first without any state, then with that state. `ask` is given a board that
says nothing, which notes when its first byte comes.
"""

import argparse
import asyncio
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.processes import cpu_s, mapped_bytes, memory_of
from benchmarks.report import Row, at_most, holds, median
from edgellm.config import DEFAULT_CHUNK, DEFAULT_CONTEXT, DEFAULT_SLOTS
from edgellm.manager.client import ClusterClient
from edgellm.manager.cluster_file import ClusterFile
from edgellm.manager.connections import Connections
from edgellm.manager.take import give
from edgellm.plan import Plan, Section, section_need
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest

LISTENS_S = SERVES_S = 2.0
OWN_MB = 120
FIRST_BYTE_S = 0.5
_TIMEOUT_S = 120.0
_PROMPT, _TOKENS = [1, 2, 3, 4, 5, 6, 7, 8], 16


def plan_for(manifest: Manifest) -> Plan:
    """All layers on one board, with the default settings."""
    layers, context = manifest.num_layers, min(DEFAULT_CONTEXT, manifest.max_seq_len)
    return Plan(
        1, manifest.model, manifest.sha256, layers, "latency", context, DEFAULT_SLOTS, DEFAULT_CHUNK, "float16",
        (Section("b1", 0, layers),),
    )  # fmt: skip


def start_agent(split: Path, state: Path, arguments: list[str]) -> dict:
    """Start an agent, give it the whole model, ask it something, end it. Seconds since its start, bytes of memory."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgellm", "agent", "--shards", str(split), "--listen", "127.0.0.1:0", "--name", "b1",
         "--announce", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={**os.environ, "STATE_DIRECTORY": str(state)},
    )  # fmt: skip
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(_TIMEOUT_S) else b""
        if not line:
            raise RuntimeError("the agent did not start")
        listens_s = time.perf_counter() - began
        addresses = {"b1": ("127.0.0.1", json.loads(line)["port"])}
        manifest = Manifest.read(split)
        plan = plan_for(manifest)
        serves_s, own_s = asyncio.run(serve_and_answer(plan, addresses, began, process.pid))
        memory, shards = memory_of(process.pid), mapped_bytes(process.pid, split)
        kv = section_need(manifest, plan.settings, 0, manifest.num_layers).kv
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        return {
            "listens_s": listens_s, "serves_s": serves_s, "cpu_s": own_s, "rss": memory.rss, "shards": shards, "kv": kv,
            "own": memory.rss - shards - kv, "own_anonymous": memory.anonymous - kv, "peak": memory.peak,
            "torch": "libtorch" in maps,
        }  # fmt: skip
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


async def serve_and_answer(plan: Plan, addresses: dict, began: float, pid: int) -> tuple[float, float]:
    """Have the board take the plan and answer; seconds until it served, and seconds of computing until then."""
    async with Connections() as connections:
        boards = await connections.to_all(addresses)
        await give(plan, addresses, boards, {b.name: (await b.status()).epoch for b in boards})
    serves_s, own_s = time.perf_counter() - began, cpu_s([pid])[1]
    async with ClusterClient.dial(plan, addresses) as cluster:
        stream = cluster.generate(_PROMPT, sampling=Sampling(), max_tokens=_TOKENS, eos=())
        assert len([chosen async for chosen in stream]) == _TOKENS
    return serves_s, own_s


def first_byte_s(split: Path, work: Path) -> tuple[float, float, float]:
    """Seconds from the start of `edgellm ask` to its connection, to its first byte on the wire, and of computing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_TIMEOUT_S)
        path = work / "cluster.json"
        ClusterFile.make(split, {"b1": server.getsockname()}, plan_for(Manifest.read(split))).write(path)
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "edgellm", "ask", "Why is the sky blue?", "--cluster", str(path), "--wait", "0"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            connection, _ = server.accept()
            connected_s = time.perf_counter() - began
            with connection:
                connection.settimeout(_TIMEOUT_S)
                if not connection.recv(1):
                    raise RuntimeError("edgellm ask closed the connection without a byte")
                return connected_s, time.perf_counter() - began, cpu_s([process.pid])[1]
        finally:
            process.kill()
            process.wait()


def measure(split: Path, runs: int) -> list[Row]:
    """All figures, medians of `runs`."""
    cores = str(min(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="edgellm-startup-") as folder:
        work = Path(folder)
        for warm in sorted(split.iterdir()):
            if warm.is_file():
                warm.read_bytes()
        agents, asks = [], []
        for _ in range(1 + runs):
            agents.append(start_agent(split, work / "state", ["--cores", cores]))
            asks.append(first_byte_s(split, work))
        del agents[0]  # it hashed all
        fresh = start_agent(split, work / "other", [])
        kept = start_agent(split, work / "other", [])

    def mid(name: str, per: float = 1.0) -> float:
        return median(a[name] for a in agents) / per

    return [
        at_most("agent listens", mid("listens_s"), "s", LISTENS_S),
        at_most("agent serves its section", mid("serves_s"), "s", SERVES_S),
        Row("  of that computing", mid("cpu_s"), "s"),
        at_most("  first start, which measures cores and hashes", fresh["serves_s"], "s", SERVES_S),
        at_most("  second start, which remembers", kept["serves_s"], "s", SERVES_S),
        Row("agent's memory", mid("rss", 1e6), "MB"),
        Row("  mapped shards", mid("shards", 1e6), "MB"),
        Row("  KV", mid("kv", 1e6), "MB"),
        at_most("  beside shards and KV", mid("own", 1e6), "MB", OWN_MB),
        Row("  of that anonymous", mid("own_anonymous", 1e6), "MB"),
        Row("  largest", mid("peak", 1e6), "MB"),
        holds("agent loads torch", "yes" if agents[0]["torch"] else "no", "no", not agents[0]["torch"]),
        Row("ask connects", median(a for a, _, _ in asks), "s"),
        at_most("ask's first byte on the wire", median(b for _, b, _ in asks), "s", FIRST_BYTE_S),
        Row("  of that computing", median(c for _, _, c in asks), "s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path, help="a split model's folder, with its tokenizer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="write JSON to this file too")
    arguments = parser.parse_args()
    machine = report.machine()
    rows = measure(arguments.split.resolve(), arguments.runs)
    content = report.to_json("startup", machine, rows, runs=arguments.runs, split=arguments.split.name)
    print(content if arguments.json else f"{report.machine_text(machine)}\n\n{report.table(rows)}")
    if arguments.out:
        arguments.out.write_text(content + "\n")


if __name__ == "__main__":
    main()
