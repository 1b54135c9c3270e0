"""What the server costs a question, and whether it stands a crowd while boards come and go.

    python -m benchmarks.serving
    python -m benchmarks.serving --minutes 10 --clients 100 --json

SmolLM2 runs on agents of this machine. First questions are asked in turns through edgellm.AsyncClient, which is
what `ask` uses, and through the server, streamed; medians. Then, with --minutes, so many clients stream answers at once
while agents are killed and started again: every answer must be the one that is expected.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks import report
from benchmarks.processes import memory_of
from benchmarks.report import Row, at_least, at_most, holds, median, ratio
from edgellm.cli.models import builtin_model
from edgellm.client import AsyncClient
from edgellm.manager.cluster_file import ClusterFile
from edgellm.manager.connections import Connections
from edgellm.manager.local import form_cluster
from edgellm.plan import Settings
from edgellm.shards.manifest import Manifest

RATE, FIRST_MS, MEMORY_MB = 0.95, 20.0, 200.0
_TOKENS, _SLOTS, _DEADLINE_S = 200, 4, 120.0
_AWAY_S, _BACK_S = 8.0, 20.0  # between an agent's end and its next start, and until the next one ends
_QUESTIONS = [f"Tell me one fact about the number {i}." for i in range(20)]


class Agents:
    """Agents of this machine, each of which may be killed and started again at its address."""

    def __init__(self, model: Path, count: int, folder: Path):
        self._model, self._folder = model, folder
        self.addresses = {f"b{i}": ("127.0.0.1", _free_port()) for i in range(count)}
        self._running: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "Agents":
        for name in self.addresses:
            self.start(name)
        return self

    def __exit__(self, *exc) -> None:
        for name in list(self._running):
            self.kill(name)

    def start(self, name: str) -> None:
        """Start an agent; it listens a moment later."""
        host, port = self.addresses[name]
        state = self._folder / name
        state.mkdir(exist_ok=True)
        with open(self._folder / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", "edgellm", "agent", "--shards", str(self._model), "--listen", f"{host}:{port}",
                 "--name", name, "--threads", "1"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                env={**os.environ, "STATE_DIRECTORY": str(state)},
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """End an agent as a power cut does."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    async def form(self, path: Path) -> None:
        """Have the agents take a plan, once all of them listen, and write the cluster file."""
        async with asyncio.timeout(_DEADLINE_S):
            for host, port in self.addresses.values():
                while not _listens(host, port):
                    await asyncio.sleep(0.1)
            manifest = Manifest.read(self._model)
            plan = await form_cluster(manifest, self.addresses, Settings(2048, _SLOTS, 32, "float16", "throughput"))
        ClusterFile.make(self._model, self.addresses, plan).write(path)

    async def free_slots(self) -> list[int]:
        """Free slots of each board that has a section."""
        async with Connections() as connections:
            boards = await connections.to_all(self.addresses)
            sections = [(await b.status()).section for b in boards]
        return [s.free_slots for s in sections if s is not None]


@contextlib.contextmanager
def serving(cluster: Path) -> Iterator[tuple[int, str]]:
    """A server as a process; its pid and its URL."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgellm", "serve", "--cluster", str(cluster), "--port", str(port), "--no-history"],
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end_s = time.monotonic() + _DEADLINE_S
        while not _listens("127.0.0.1", port):
            if time.monotonic() > end_s or process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        yield process.pid, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@dataclass
class Asked:
    """Of several answers: seconds to the first token, and tokens a second after it."""

    first_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def add(self, began_s: float, at: list[float]) -> None:
        self.first_s.append(at[0] - began_s)
        self.rates.append((len(at) - 1) / (at[-1] - at[0]))


async def overhead(cluster: Path, url: str, rounds: int) -> list[Row]:
    """Ask the same questions directly and through the server, in turns."""
    direct, served = Asked(), Asked()
    async with AsyncClient(cluster) as client:
        for i in range(rounds + 1):
            # Never the same prompt twice: nothing is to be known from before.
            ours, theirs = (f"{random.random()}: tell me a long story." for _ in "ab")
            began_s = time.perf_counter()
            stream = client.chat(_chat(ours), temperature=0, max_tokens=_TOKENS, speculate=False)
            at = [time.perf_counter() async for delta in stream if delta.token is not None]
            if i:  # the first round warms up
                direct.add(began_s, at)
            began_s = time.perf_counter()
            at = await _arrivals(url, theirs)
            if i:
                served.add(began_s, at)
    rate = ratio(median(served.rates), median(direct.rates))
    first_ms = [1e3 * (median(a.first_s) or 0.0) for a in (direct, served)]
    return [
        Row("AsyncClient, tokens/s", median(direct.rates)),
        at_least("the server's, of that", rate, "", RATE),
        Row("AsyncClient, first token", first_ms[0], "ms"),
        at_most("the server's, more than that", first_ms[1] - first_ms[0], "ms", FIRST_MS),
    ]


async def crowd(agents: Agents, pid: int, url: str, cluster: Path, minutes: float, clients: int) -> list[Row]:
    """Have clients stream answers while agents come and go."""
    async with AsyncClient(cluster) as client:
        asks = [client.chat(_chat(q), temperature=0, max_tokens=_TOKENS).read() for q in _QUESTIONS]
        expected = {q: (await ask).text for q, ask in zip(_QUESTIONS, asks, strict=True)}
    end_s = time.monotonic() + 60 * minutes
    right, wrong, failed, gone, peak = 0, [], [], 0, 0

    async def one(i: int) -> None:
        nonlocal right, gone
        dice = random.Random(i)
        async with httpx.AsyncClient(base_url=url, timeout=600) as http:
            while time.monotonic() < end_s:
                question = dice.choice(_QUESTIONS)
                text, leaves = "", dice.random() < 0.1  # some go away in the middle
                try:
                    async with contextlib.aclosing(_pieces(http, question, _TOKENS)) as pieces:
                        async for piece in pieces:
                            text += piece
                            if leaves and len(text) > 40:
                                break
                except (httpx.HTTPError, RuntimeError) as e:
                    failed.append(f"{type(e).__name__}: {e}")
                    await asyncio.sleep(1.0)
                    continue
                if leaves:
                    gone += 1
                elif text == expected[question]:
                    right += 1
                else:
                    wrong.append((question, text))

    async def come_and_go() -> int:
        for count, name in enumerate(itertools.cycle(agents.addresses)):
            if time.monotonic() + _AWAY_S + _BACK_S > end_s:
                return count
            await asyncio.to_thread(agents.kill, name)
            await asyncio.sleep(_AWAY_S)
            agents.start(name)
            await asyncio.sleep(_BACK_S)
        return 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, memory_of(pid).rss)
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    _, killed = await asyncio.gather(asyncio.gather(*(one(i) for i in range(clients))), come_and_go())
    watching.cancel()
    free = await _settled(agents)
    port = int(url.rsplit(":", 1)[1])
    connections = psutil.Process(pid).net_connections()
    left = sum(c.laddr.port == port and c.status != psutil.CONN_LISTEN for c in connections)
    for question, text in wrong[:3]:
        print(f"wrong: {question!r}: {text!r}, expected {expected[question]!r}", file=sys.stderr)
    for text in sorted(set(failed))[:5]:
        print(f"failed ({failed.count(text)}): {text}", file=sys.stderr)
    return [
        Row(f"right answers of {clients} clients", right),
        Row("clients that went away", gone),
        Row("agents killed", killed),
        at_most("wrong answers", len(wrong), "", 0),
        at_most("failed answers", len(failed), "", 0),
        at_most("the server's memory, most", peak / 1e6, "MB", MEMORY_MB),
        holds("free slots at the end", str(free), f"{_SLOTS} everywhere", set(free) == {_SLOTS}),
        at_most("clients' sockets left", left, "", 0),
    ]


async def _arrivals(url: str, question: str) -> list[float]:
    """When each token of a streamed answer came, seen by a client that does next to nothing."""
    body = json.dumps(_body(question, _TOKENS, speculate=False)).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    at = []
    while (line := await reader.readline()) and line != b"data: [DONE]\n":
        if line.startswith(b"data: ") and b'"content":"' in line and b'"role"' not in line:
            at.append(time.perf_counter())
    writer.close()
    return at


async def _settled(agents: Agents) -> list[int]:
    """Free slots, once they are free or some seconds have passed."""
    end_s = time.monotonic() + 30
    while set(free := await agents.free_slots()) != {_SLOTS} and time.monotonic() < end_s:
        await asyncio.sleep(0.5)
    return free


async def _pieces(http: httpx.AsyncClient, question: str, tokens: int):
    """The pieces of a streamed answer. Raises RuntimeError for an error, and for a stream that isn't whole."""
    async with http.stream("POST", "/v1/chat/completions", json=_body(question, tokens)) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code} {(await response.aread())[:200]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                return
            told = json.loads(line.removeprefix("data: "))
            if "error" in told:
                raise RuntimeError(told["error"]["message"])
            if text := told["choices"][0]["delta"].get("content"):
                yield text
    raise RuntimeError("the stream ended without [DONE]")


def _body(question: str, tokens: int, **fields) -> dict:
    return {"messages": _chat(question), "temperature": 0, "max_tokens": tokens, "stream": True, **fields}


def _chat(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def _listens(host: str, port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex((host, port)) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="questions each way")
    parser.add_argument("--minutes", type=float, default=0.0, help="of a crowd, while agents come and go")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    model = builtin_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cluster = folder / "cluster.json"
        with Agents(model, 3 if options.minutes else 2, folder) as agents:
            asyncio.run(agents.form(cluster))
            with serving(cluster) as (pid, url):
                rows = asyncio.run(overhead(cluster, url, options.rounds)) if options.rounds else []
                if options.minutes:
                    rows += asyncio.run(crowd(agents, pid, url, cluster, options.minutes, options.clients))
    print(report.text("serving", report.machine(), rows, options.json))


if __name__ == "__main__":
    main()
