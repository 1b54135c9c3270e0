"""A model of arithmetic instead of weights, so that agents, wire and manager are tested without torch.

The embedding gives [id, position]; every layer adds its number to the hidden state (and 7 more in a pass that is longer
than a LongRoPE switch) and stores the id in its KV slot; the next token is a hash of all ids so far and of the sum that
the layers made: a lost, doubled, reordered or mixed-up step changes it.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgellm.agent.load import load_section
from edgellm.agent.pace import Pace
from edgellm.agent.serve import Agent, AgentOptions
from edgellm.errors import DialError, ManifestError
from edgellm.manager.board import BoardClient
from edgellm.manager.client import ClusterClient
from edgellm.manager.connections import Connections
from edgellm.manager.take import give
from edgellm.model.protocols import Memory
from edgellm.model.sampler import sample
from edgellm.plan import Plan, Section
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest, Shard
from edgellm.wire.credentials import client_credentials
from edgellm.wire.dial import connect
from edgellm.wire.signed import sign

VOCAB, HIDDEN, LAYERS = 97, 4, 6
GREEDY = Sampling()


def make_manifest(num_layers: int = LAYERS, rope_switch_len: int | None = None, ram_bytes: int = 8) -> Manifest:
    """A manifest of tiny shards; a layer's counts as `ram_bytes` in memory, and 8 + its number in its file."""
    shards = [Shard("embedding.safetensors", "embedding", None, 8, 8, "0" * 64)]
    shards += [
        Shard(f"layer-{i:04}.safetensors", "layer", i, 8 + i, ram_bytes, "0" * 64) for i in range(num_layers)
    ]
    shards += [Shard("head.safetensors", "head", None, 8, 8, "0" * 64)]
    return Manifest(
        "fake", "FakeForCausalLM", "fake", "none", num_layers, HIDDEN, VOCAB, 4096, (), (2,) * num_layers, 8,
        rope_switch_len, tuple(shards), (),
    )  # fmt: skip


def make_plan(
    manifest: Manifest, cuts: tuple[int, ...], *, epoch=1, context=64, slots=2, chunk=5, kv_dtype="float32", draft=None
) -> Plan:
    """Boards b0, b1, … with the sections between `cuts`."""
    sections = tuple(Section(f"b{i}", a, b) for i, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)))
    return Plan(
        epoch, manifest.model, manifest.sha256, manifest.num_layers, "throughput", context, slots, chunk, kv_dtype,
        sections, draft=draft,
    )  # fmt: skip


def next_token(ids: list[int], sampling: Sampling = GREEDY, switch: int | None = None, began: int = 0) -> int:
    """What the fake model answers to `ids`, of which the answer `began` there; `switch` is its `rope_switch_len`."""
    each = sum(range(LAYERS)) + (7 * LAYERS if switch is not None and len(ids) > switch else 0)
    logits = np.zeros(VOCAB, np.float32)
    logits[(sum((i + 1) * (k + 1) for k, i in enumerate(ids)) + len(ids) * each) % VOCAB] = 1.0
    return sample(logits, ids, sampling, len(ids), began)


def generate(ids: list[int], count: int, sampling: Sampling = GREEDY, switch: int | None = None) -> list[int]:
    """The fake model's answer of `count` tokens."""
    ids = list(ids)
    start = len(ids)
    for _ in range(count):
        ids.append(next_token(ids, sampling, switch, start))
    return ids[start:]


class NamedSlot(str):
    """A slot that is nothing but its name, and holds whatever it is said to."""

    earliest, checkpoint, filled = 0, 0, 1 << 20


class FakeSlot:
    """What each of the fake layers stores of each token, [layers, max_seq_len, 2]; `held` is that of the last one."""

    ram_bytes = earliest = checkpoint = 0

    def __init__(self, max_seq_len: int, layers: int = 1):
        self.kept, self.max_seq_len, self.filled = np.full((layers, max_seq_len, 2), np.nan), max_seq_len, 0
        self.held = self.kept[-1]

    def export(self, start, end, layers=None):
        return [
            kept[start:end].copy().reshape(-1).view(np.uint8) if layers is None or layer in layers else None
            for layer, kept in enumerate(self.kept)
        ]

    def restore(self, start, end, parts):
        assert start <= self.filled
        for kept, part in zip(self.kept, parts, strict=True):
            kept[start:end] = part.view(np.float64).reshape(-1, 2)
        self.filled = max(self.filled, end)


class FakeSection:
    """Layers [start, end) of the fake model. `gate`, if given, is awaited (threading.Event) in each step.

    `calls` has (position, tokens, pass_len) of each step, `together` how many ran at once each time.
    """

    path, ram_bytes, hidden_size, row_size, vocab_size, batches = "fake", 0, HIDDEN, HIDDEN, VOCAB, True
    reuses = reuses_any = True
    page_layout = "fake"

    def __init__(self, manifest: Manifest, start: int, end: int, gate=None):
        self.start, self.end, self.gate = start, end, gate
        self.is_first, self.is_last = start == 0, end == manifest.num_layers
        self.switch = manifest.rope_switch_len
        self.calls: list[tuple[int, int, int]] = []
        self.together: list[int] = []

    @property
    def memories(self):
        return [Memory()] * (self.end - self.start)

    def new_slot(self, max_seq_len: int, kv_dtype: str = "float32") -> FakeSlot:
        return FakeSlot(max_seq_len, self.end - self.start)

    def example(self):
        return np.zeros(1, np.int64) if self.is_first else np.zeros((1, HIDDEN), np.float32)

    def forward_many(self, steps):
        if self.gate is not None:
            assert self.gate.wait(20)
        self.together.append(len(steps))
        return [self.forward(s.x, s.position, s.slot, s.pass_len, s.logits) for s in steps]

    def forward(self, x, position, slot, pass_len, logits):
        count = len(x)
        self.calls.append((position, count, pass_len))
        if self.is_first:
            assert x.dtype == np.int64 and x.shape == (count,)
            hidden = np.zeros((count, HIDDEN), np.float32)
            hidden[:, 0] = x
        else:
            assert x.dtype == np.float32 and x.shape == (count, HIDDEN)
            hidden = x.copy()
        long = self.switch is not None and pass_len > self.switch
        for layer in range(self.start, self.end):
            hidden[:, 1] += layer + 7 * long
            slot.kept[layer - self.start, position : position + count] = hidden[:, :2]
        slot.filled = max(slot.filled, position + count)
        if not self.is_last:
            return hidden
        if not logits:
            return None
        last = position + count
        return np.stack([self._logits(slot.held[:end]) for end in range(last - logits + 1, last + 1)])

    def _logits(self, held):
        total = sum((i + 1) * (k + 1) for k, i in enumerate(held[:, 0])) + held[:, 1].sum()
        logits = np.zeros(VOCAB, np.float32)
        logits[int(total) % VOCAB] = 1.0
        return logits

    def embed(self, x, position, slot, pass_len):
        assert self.is_last
        self.forward(x, position, slot, pass_len, 0)
        held = slot.held[position : position + len(x)]
        return np.concatenate([held, np.zeros((len(x), HIDDEN - 2))], axis=1).astype(np.float32)

    def trace(self, x, position, slot, pass_len):
        self.forward(x, position, slot, pass_len, 0)
        if self.is_first:
            x = np.stack([x, *[np.zeros(len(x))] * (HIDDEN - 1)], axis=1)
        each = np.zeros((self.end - self.start, 1, HIDDEN))
        each[:, 0, 1] = np.cumsum(range(self.start, self.end))
        return (x + each).astype(np.float32)


class FakePace(Pace):
    """What steps are said to take: `layer_s` a token and layer, which a test may change. None: nothing."""

    layer_s: float | None = None

    def section(self, layers, has_head, wait_s=0.0):
        section = super().section(layers, has_head, wait_s)
        computed = section.computed

        def told(steps, took_s, now_s):
            if self.layer_s is not None:
                computed(steps, self.layer_s * layers * sum(len(step.x) for step in steps), now_s)

        section.computed = told
        return section


class Boards:
    """Agents on loopback, in this event loop. Use as `async with Boards(tmp_path, 3) as boards`.

    They serve the fake model, which is written to `folder`; or, with `real`, the split model that is there. `tls` is
    a folder with the cluster's certificates. `stored` has by board the layers (start, end) whose shards lie on its
    disk, the ends of the model with the first and the last one; the others have all. `broken` boards can't load. Each
    takes 1 ms for a layer and `head_s` for the head, or so it says; `start_s` has other boards' times for a layer.
    `paces` has by board what its steps are said to take, and `hops` says that links are measured. With
    `cache_bytes`, they keep pages of prompts in folders under `folder`, with `cache_ram_bytes` in RAM.
    `more` are further models, by the folders in which they are written; with `real`, they are there too.
    """

    def __init__(
        self, folder: Path, count: int, manifest: Manifest | None = None, gates: dict | None = None, real: bool = False,
        tls: Path | None = None, stored: dict[str, tuple[int, int]] | None = None, head_s: float = 0.002,
        start_s: dict[str, float] | None = None, hops: bool = False, cache_bytes: int = 0, cache_ram_bytes: int = 0,
        more: dict[Path, Manifest] | None = None,
    ):  # fmt: skip
        self.folder, self.count, self.gates, self.real = folder, count, gates or {}, real
        self.stored, self.head_s = stored or {}, head_s
        self.start_s, self.hops = start_s or {}, hops
        self.cache_bytes, self.cache_ram_bytes = cache_bytes, cache_ram_bytes
        self.paces: dict[str, FakePace] = {}
        if not real:
            (manifest or make_manifest()).write(folder)
        self.manifest = Manifest.read(folder)
        if not real:
            write_shards(folder, self.manifest, (0, self.manifest.num_layers))
        self.more = tuple(more or {})
        for other, its in () if real else (more or {}).items():
            other.mkdir(exist_ok=True)
            its.write(other)
            write_shards(other, its, (0, its.num_layers))
        self.tls = tls
        self.agents: list[Agent] = []
        self.sections: dict[str, FakeSection] = {}
        self.loads: list[tuple[str, int, int]] = []  # (board, start, end), in order
        self.broken: set[str] = set()
        self._tasks: list[asyncio.Task] = []

    async def __aenter__(self) -> "Boards":
        await asyncio.gather(*(self._start(f"b{i}") for i in range(self.count)))
        return self

    async def __aexit__(self, *exc) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def form(self, cuts: tuple[int, ...], **settings) -> Plan:
        """Have the boards take the sections between `cuts`."""
        plan = make_plan(self.manifest, cuts, **settings)
        async with Connections(self.client_tls) as connections:
            boards = await connections.to_all(self.addresses)
            await assign(plan, self.addresses, boards, self.tls and self.tls / "manager")
        return plan

    @property
    def client_tls(self):
        """What the manager dials with."""
        return client_credentials(self.tls / "manager") if self.tls else None

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        return {a.options.name: ("127.0.0.1", a.port) for a in self.agents}

    @property
    def running(self) -> list[Agent]:
        """Those that haven't died."""
        return [agent for agent, task in zip(self.agents, self._tasks, strict=True) if not task.done()]

    async def stop(self, i: int) -> None:
        """As if board i had died: its listener and its connections go away."""
        self._tasks[i].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks[i]

    async def start(self, i: int) -> None:
        """A new agent where board i died: it holds nothing. Or board i = count joins."""
        await self._start(f"b{i}", self.agents[i].port if i < len(self.agents) else 0)

    def cut(self, i: int) -> None:
        """End every connection of board i, as if the cable had been pulled; it may be dialled again."""
        agent = self.agents[i]
        links = [link for link in (agent.stage._next, agent.stage._first) if link] if agent.stage else []
        greeted, strangers = agent.connections.peers, agent.connections.strangers
        for peer in [*greeted, *strangers, *(link.peer for link in links if link.peer)]:
            if peer._transport is not None:  # it is only being made
                peer._transport.abort()

    async def _start(self, name: str, port: int = 0) -> None:
        folder = self.folder
        if name in self.stored:
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            self.manifest.write(folder)
            write_shards(folder, self.manifest, self.stored[name])
        options = AgentOptions(
            folder, "127.0.0.1", port, name, 1, ram_bytes=1 << 30, drain_s=5.0,
            tls=self.tls and self.tls / "boards" / name, kernels="dotprod",
            cache=self.folder / "cache" / name, cache_bytes=self.cache_bytes, cache_ram_bytes=self.cache_ram_bytes,
            more=self.more,
        )  # fmt: skip
        load = load_section if self.real else self._loader(name)
        pace = FakePace()
        pace.layer_s = self.paces[name].layer_s if name in self.paces else None
        self.paces[name] = pace
        agent = Agent(options, load, lambda *_: (self.start_s.get(name, 0.001), self.head_s), pace=pace)
        agent.holding.links.measures = self.hops
        listening, i = asyncio.Event(), int(name[1:])
        task = asyncio.create_task(agent.run(lambda _: listening.set()))
        # In the order of names, whoever is up first.
        self.agents[i : i + 1], self._tasks[i : i + 1] = [agent], [task]
        async with asyncio.timeout(10):
            await listening.wait()

    def _loader(self, name: str):
        def load(manifest, folder, start, end):
            self.loads.append((name, start, end))
            if name in self.broken:
                raise ManifestError(f"{folder}/layer-{start:04}.safetensors: SHA-256 differs. Deploy again.")
            self.sections[name] = FakeSection(manifest, start, end, self.gates.get(name))
            return self.sections[name]

        return load


def write_shards(folder: Path, manifest: Manifest, layers: tuple[int, int]) -> None:
    """Files of the right sizes for these layers."""
    for shard in manifest.section_shards(*layers):
        (folder / shard.name).write_bytes(bytes(shard.bytes))


def block(monkeypatch, *ways: str) -> set[str]:
    """Have boards that try to reach others fail on these ways ("b0>b1"), as behind a firewall that drops packets.
    Whoever takes a way out of the set that is returned opens it again."""
    closed = set(ways)

    async def dial(host, port, me, *args, board, **kwargs):
        if f"{me.name}>{board}" in closed:
            reason = "no answer within 2 s"
            raise DialError(f"board {board} ({host}:{port}): {reason}", board, "timeout", reason)
        return await connect(host, port, me, *args, board=board, **kwargs)

    monkeypatch.setattr("edgellm.agent.reaching.connect", dial)
    return closed


def claim(holding) -> None:
    """Have a manager of which nothing else is heard claim a board."""
    change = {"replaces": holding.epoch, "epoch": (holding.epoch or 0) + 1}
    holding._change.claim("another manager", change, holding.epoch)


def unclaim(holding) -> None:
    """Have that manager return its claim."""
    assert holding._change.end("another manager")


async def connect_all(addresses: dict[str, tuple[str, int]]) -> list[BoardClient]:
    """Connections to these boards, for the caller to close; BoardError if one can't be reached."""
    return await Connections().to_all(addresses)


async def assign(
    plan: Plan, addresses: dict[str, tuple[str, int]], boards: list[BoardClient], identity: Path | None = None
) -> dict[str, int]:
    """Have connected boards take a plan, whatever they hold. The bytes of shards that each loaded."""
    signed = sign(plan, {b: addresses[b] for b in plan.boards}, identity)
    return await give(plan, signed, boards, {b.name: (await b.status()).epoch for b in boards})


async def ask(cluster: ClusterClient, prompt: list[int], max_tokens: int = 10, eos=(), **kwargs) -> list:
    """Greedy answer as a list of `Chosen`."""
    stream = cluster.generate(list(prompt), sampling=Sampling(), max_tokens=max_tokens, eos=eos, **kwargs)
    return [c async for c in stream]


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition, and fail if it doesn't hold by then."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def run(coroutine, seconds: float = 30.0):
    """Run a test's coroutine, and never for longer than `seconds`."""

    async def bounded():
        async with asyncio.timeout(seconds):
            return await coroutine

    return asyncio.run(bounded())
