"""What the tests of hostile peers share: a stranger's raw connection, an answer that stands still under it, and a look
at the memory."""

import asyncio
import contextlib
import threading
from pathlib import Path

import psutil

from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from edgellm.wire.frames import FrameReader
from tests.fakes import Boards, ask, generate

PROMPT = [5, 17, 3, 42, 8, 1, 90, 33, 2, 11, 64, 7]
ANSWER = 30
MANAGER, BOARD = m.Hello("manager", "mallory"), m.Hello("board", "mallory")
BEFORE = m.Hello("board", "b0")  # who the last board takes hidden states from
DEADLINE_S = 10.0


class Stranger:
    """A raw connection to an agent; `dialled` has all, for `hang_up`."""

    dialled: list["Stranger"] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer
        self._frames = FrameReader(lambda type_, size: 1 << 30)
        self._got: list = []

    @classmethod
    async def dial(cls, agent, *messages, source: str = "127.0.0.1") -> "Stranger":
        """Connect from an address of loopback, and send these (messages or bytes)."""
        stranger = cls(*await asyncio.open_connection("127.0.0.1", agent.port, local_addr=(source, 0)))
        stranger.send(*messages)
        cls.dialled.append(stranger)
        return stranger

    @classmethod
    async def hang_up(cls) -> None:
        """End them all."""
        for stranger in cls.dialled:
            stranger.writer.transport.abort()
        cls.dialled.clear()
        await asyncio.sleep(0)  # to be told of it

    def send(self, *messages) -> None:
        self.writer.write(b"".join(x if isinstance(x, bytes) else m.encode(x) for x in messages))

    async def next(self):
        """The next message of the agent, its hello left out; None when it has closed the connection."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                while self._got:
                    message = self._got.pop(0)
                    if not isinstance(message, m.Hello):
                        return message
                try:
                    data = await self.reader.read(1 << 16)
                except ConnectionError:
                    return None
                if not data:
                    return None
                self._got += [m.BY_TYPE[t].decode(body) for t, body in self._frames.feed(data)]

    async def refused(self) -> str:
        """Why the agent closed the connection, which it must."""
        reason = ""
        while (message := await self.next()) is not None:
            reason = message.reason if isinstance(message, m.Refuse) else reason
        return reason


class MidAnswer:
    """Two boards, and an answer between them that stands still within a step of the second board."""

    def __init__(self, boards, plan, cluster, stream, gate):
        self.boards, self.plan, self.cluster, self.stream, self.gate = boards, plan, cluster, stream, gate
        self.first, self.last = boards.agents
        (self.seq_id,) = boards.agents[0].stage._sequences


@contextlib.asynccontextmanager
async def mid_answer(tmp_path: Path, tls: Path | None = None, **kwargs):
    """What happens inside must leave the answer, the agents and their slots alone. `tls` as for `Boards`."""
    gate = threading.Event()
    gate.set()
    async with Boards(tmp_path, 2, gates={"b1": gate}, tls=tls) as boards:
        try:
            plan = await boards.form((0, 3, 6), slots=3, **kwargs)
            async with ClusterClient.dial(plan, boards.addresses, boards.client_tls) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=ANSWER, eos=())
                tokens = [(await anext(stream)).token]
                gate.clear()
                yield MidAnswer(boards, plan, cluster, stream, gate)
                gate.set()
                tokens += [c.token async for c in stream]
                assert tokens == generate(PROMPT, ANSWER)
                assert [c.token for c in await ask(cluster, PROMPT)] == generate(PROMPT, 10)
            for agent, task in zip(boards.agents, boards._tasks, strict=True):
                assert not task.done()
                await until(lambda a=agent: a.stage.engine.free_slots == 3 and a.stage.engine.waiting == 0)
        finally:
            gate.set()
            await Stranger.hang_up()


async def until(condition, what: str = "") -> None:
    """Wait for it, and fail after a while."""
    end_s = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < end_s, what or "waited in vain"
        await asyncio.sleep(0.005)


def hello(agent) -> int:
    """Connections of strangers that have said hello, and are there still."""
    there = [*agent.connections.peers, *agent.connections.strangers]
    return sum(p.protocol.peer is not None and p.name == "mallory" for p in there)


def rss_bytes() -> int:
    return psutil.Process().memory_info().rss


@contextlib.asynccontextmanager
async def growing_less_than(most_bytes: int):
    """At no time within may the process hold this much more than at the begin."""
    before = peak = rss_bytes()

    async def look():
        nonlocal peak
        while True:
            peak = max(peak, rss_bytes())
            await asyncio.sleep(0.02)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
    assert peak - before < most_bytes, f"grew by {(peak - before) / 1e6:.0f} MB"
