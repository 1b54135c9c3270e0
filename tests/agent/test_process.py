"""Agents as processes of their own, and what a user or the kernel does to them while an answer is being made."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.errors import BoardError
from edgellm.manager.client import ClusterClient
from edgellm.plan import Plan, Section
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from edgellm.wire import messages as m
from tests.certificates import ensure
from tests.fakes import ask, assign, connect_all, run
from tests.tiny import CONTEXT, environment, split_tiny

PROMPT = [(7 * k) % 500 for k in range(20)]
LONG = CONTEXT - len(PROMPT)  # tokens, as many as fit
START_S = 90.0


class Process:
    """`edgellm agent` on a free port, with its log."""

    def __init__(self, name: str, shards: Path, home: Path, *arguments: str):
        self.name, self.log = name, home / f"{name}.log"
        command = [sys.executable, "-m", "edgellm", "agent", "--shards", str(shards), "--name", name, "--threads", "1"]
        with open(self.log, "w") as log:
            self.popen = subprocess.Popen(
                [*command, "--listen", "127.0.0.1:0", "--announce", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment(home),
            )  # fmt: skip
        self.port = 0

    def announced(self) -> None:
        line = self.popen.stdout.readline()
        assert line, self.log.read_text()
        self.port = json.loads(line)["port"]

    def signal(self, number: int) -> None:
        os.kill(self.popen.pid, number)

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait(10)
        self.popen.stdin.close()
        self.popen.stdout.close()


class Cluster:
    """Agents in processes. `form` gives sections to some of them, under a new epoch each time."""

    def __init__(self, model_dir: Path, processes: list[Process]):
        self.manifest = Manifest.read(model_dir)
        self.processes = {p.name: p for p in processes}
        self._epoch = 0

    def addresses(self, *names: str) -> dict[str, tuple[str, int]]:
        return {name: ("127.0.0.1", self.processes[name].port) for name in names}

    async def form(self, *names: str) -> Plan:
        self._epoch += 1
        cuts = [round(i * self.manifest.num_layers / len(names)) for i in range(len(names) + 1)]
        sections = tuple(Section(n, a, b) for n, a, b in zip(names, cuts, cuts[1:], strict=False))
        plan = Plan(
            self._epoch, self.manifest.model, self.manifest.sha256, self.manifest.num_layers, "throughput", CONTEXT, 2,
            64, "float32", sections,
        )  # fmt: skip
        boards = await connect_all(self.addresses(*names))
        try:
            await assign(plan, self.addresses(*names), boards)
        finally:
            for board in boards:
                board.close()
        return plan

    async def status(self, name: str) -> dict:
        (board,) = await connect_all(self.addresses(name))
        try:
            return await board.status()
        finally:
            board.close()

    async def until_free(self, *names: str) -> None:
        """Wait until these boards hold no sequence any more."""
        async with asyncio.timeout(10):
            for name in names:
                while (section := (await self.status(name)).section).free_slots < section.slots:
                    await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return split_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def cluster(model_dir, tmp_path_factory):
    """Four agents: pi0 outlives all, the others meet their end in one of the tests; `bad` has a corrupt shard."""
    home = tmp_path_factory.mktemp("home")
    corrupt = home / "corrupt"
    shutil.copytree(model_dir, corrupt)
    path = corrupt / "layer-0004.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    processes = [Process(n, model_dir, home) for n in ("pi0", "pi1", "pi2")]
    processes.append(Process("bad", corrupt, home, "--until-eof"))
    try:
        for process in processes:
            process.announced()
        yield Cluster(model_dir, processes)
    finally:
        for process in processes:
            process.end()


@pytest.fixture(scope="module")
def expected(cluster) -> list[int]:
    """The answer of one board alone."""

    async def go():
        plan = await cluster.form("pi0")
        async with ClusterClient.dial(plan, cluster.addresses("pi0")) as client:
            return [c.token for c in await ask(client, PROMPT, LONG)]

    return run(go(), START_S)


@contextlib.asynccontextmanager
async def answering(cluster: Cluster, *names: str):
    """(client, stream, its first tokens) of an answer that has begun and is far from its end."""
    plan = await cluster.form(*names)
    async with ClusterClient.dial(plan, cluster.addresses(*names)) as client:
        stream = client.generate(PROMPT, sampling=Sampling(), max_tokens=LONG, eos=())
        yield client, stream, [(await anext(stream)).token]
        await stream.aclose()


async def lost(stream) -> BoardError:
    """The error that the answer ends with."""
    with pytest.raises(BoardError) as caught:
        while True:
            await anext(stream)
    return caught.value


def test_a_corrupt_shard_is_refused_with_its_name(cluster):
    async def go():
        with pytest.raises(BoardError, match=r"board bad .*layer-0004\.safetensors.*SHA-256") as caught:
            await cluster.form("pi0", "bad")
        assert "\n" not in str(caught.value) and (await cluster.status("bad")).section is None

    run(go())


def test_an_agent_ends_when_its_stdin_does(cluster):
    process = cluster.processes["bad"].popen
    process.stdin.close()
    assert process.wait(10) == 0


def test_a_hanging_agent_is_named_within_the_timeout_and_serves_again_when_it_wakes(cluster, expected, monkeypatch):
    monkeypatch.setattr("edgellm.manager.board.PONG_TIMEOUT_S", 0.5)
    monkeypatch.setattr("edgellm.manager.board.PING_EVERY_S", 0.1)

    async def go():
        async with answering(cluster, "pi0", "pi1") as (client, stream, tokens):
            cluster.processes["pi1"].signal(signal.SIGSTOP)
            try:
                began_s = asyncio.get_running_loop().time()
                error = await lost(stream)
                assert error.board == "pi1" and "has not answered for 0.5 s" in str(error)
                assert asyncio.get_running_loop().time() - began_s < 5
                await cluster.until_free("pi0")
            finally:
                cluster.processes["pi1"].signal(signal.SIGCONT)
        await cluster.until_free("pi1")
        monkeypatch.undo()
        plan = await cluster.form("pi0", "pi1")
        async with ClusterClient.dial(plan, cluster.addresses("pi0", "pi1")) as client:
            assert [c.token for c in await ask(client, PROMPT, LONG)] == expected

    run(go())


def test_sigterm_lets_a_running_answer_end_and_takes_no_new_one(cluster, expected, monkeypatch):
    monkeypatch.setattr("edgellm.manager.client._CLOSE_TIMEOUT_S", 0.3)
    pi0, pi1 = cluster.processes["pi0"], cluster.processes["pi1"]

    async def go():
        async with answering(cluster, "pi0", "pi1") as (client, stream, tokens):
            pi0.signal(signal.SIGSTOP)  # the answer stands still meanwhile
            try:
                pi1.signal(signal.SIGTERM)
                async with asyncio.timeout(4):
                    while not (await cluster.status("pi1")).draining:
                        await asyncio.sleep(0.02)
                (_, board), events = client.boards, asyncio.Queue()
                board.subscribe(7, events)
                board.send(m.Open(client.plan.epoch, 7, {"plan": client.plan.digest, "slot": 1}, (1,)))
                async with asyncio.timeout(4):
                    assert (await events.get())[1].reason == "board pi1 is stopping and takes no new prompts"
                assert pi1.popen.poll() is None
            finally:
                pi0.signal(signal.SIGCONT)
            tokens += [c.token async for c in stream]
        assert tokens == expected
        return await asyncio.to_thread(pi1.popen.wait, 10)

    assert run(go()) == 0
    assert "Traceback" not in pi1.log.read_text()


def test_a_killed_agent_is_named_and_the_survivor_frees_the_sequence(cluster):
    async def go():
        async with answering(cluster, "pi0", "pi2") as (client, stream, tokens):
            cluster.processes["pi2"].signal(signal.SIGKILL)
            error = await lost(stream)
            assert error.board == "pi2" and str(error).startswith("board pi2 (127.0.0.1:")
        cluster.processes["pi2"].popen.wait(10)
        await cluster.until_free("pi0")
        with pytest.raises(BoardError, match="board pi2 .*connection refused, is its agent running"):
            await connect_all(cluster.addresses("pi2"))

    run(go())
    assert "Traceback" not in cluster.processes["pi0"].log.read_text()


def test_an_agent_that_can_not_start_says_why_in_one_line(model_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    alone = tmp_path / "alone"  # a manifest without its shards
    alone.mkdir()
    manifest = Manifest.read(model_dir)
    replace(manifest, sha256="").write(alone)
    identity = ensure(tmp_path / "tls", ["pi1"]).boards["pi1"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = f"127.0.0.1:{taken.getsockname()[1]}"
        cases = [
            (["--shards", tmp_path / "nowhere"], 2, "nowhere"),
            (["--shards", tmp_path / "empty"], 1, "manifest.json"),
            (["--shards", alone, "--listen", "127.0.0.1:0"], 1, "no layer shard"),
            (["--shards", model_dir, "--listen", used], 1, "in use"),
            (["--shards", model_dir, "--listen", "7710"], 2, "HOST:PORT"),
            (["--shards", model_dir, "--listen", "pi1:99999"], 2, "HOST:PORT"),
            (["--shards", model_dir, "--listen", "no-such.invalid:0", "--tls", identity], 1, "no-such.invalid"),
            (["--shards", model_dir, "--listen", "0.0.0.0:0"], 2, "--tls FOLDER"),
            (["--shards", model_dir, "--listen", "127.0.0.1:0", "--tls", alone], 1, "ca.pem"),
            (["--shards", model_dir, "--ram", "lots"], 2, "--ram"),
            (["--shards", model_dir, "--name", "two words"], 2, "two words"),
        ]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "edgellm", "agent", *map(str, arguments)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path),
            )
            for arguments, _, _ in cases
        ]  # fmt: skip
        try:
            for process, (arguments, code, words) in zip(started, cases, strict=True):
                stdout, stderr = process.communicate(timeout=START_S)
                assert (process.returncode, stdout) == (code, ""), (arguments, stderr)
                assert stderr.count("\n") == 1 and stderr.startswith("edgellm: ") and words in stderr, stderr
        finally:
            for process in started:
                process.kill()
                process.communicate()
