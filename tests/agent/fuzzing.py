"""Frames that were valid once: changed, cut short, doubled, mixed up, in the right role and the wrong one, sent to
boards that answer meanwhile. The same seed gives the same frames."""

import asyncio
import contextlib
import json
import logging
import random
import ssl
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from edgellm.wire.credentials import client_credentials
from edgellm.wire.frames import PREFIX
from tests.certificates import make_cluster
from tests.fakes import HIDDEN, Boards, generate

PROMPT = [5, 17, 3, 42, 8, 1, 90, 33, 2, 11, 64, 7]
_ANSWER = 60
_FRAMES = (1, 24)  # of a connection
_PATIENCE_S = 0.02  # for what the agent says
_ODD_NUMBERS = (0, 1, 2, 77, -1, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 64, 0.5, -1e308)
_ODD_VALUES = (None, True, "", "x" * 300, "\x1b[2J\n", "\ud800", [], {}, [[[[]]]], {"a": {"b": []}}, *_ODD_NUMBERS)


@dataclass
class Outcome:
    """What came of it. `crashes` are what agents logged as errors; `answers` went on meanwhile and were right."""

    frames: int = 0
    connections: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    answers: int = 0
    grown_bytes: int = 0

    @property
    def unharmed(self) -> bool:
        """Whether nothing crashed and answers went on."""
        return not self.crashes and self.answers > 0


class Corpus:
    """Frames for a board, made with one source of chance."""

    def __init__(self, rng: random.Random, plan, seq_ids: list[int]):
        self.rng, self.plan, self.seq_ids = rng, plan, seq_ids

    def valid(self, role: str) -> m.Message:
        """A message that this role may send, with fields that may even fit."""
        rng = self.rng
        seq_id = rng.choice([*self.seq_ids, *range(5), rng.getrandbits(64)])
        epoch = rng.choice([self.plan.epoch] * 6 + [0, 2, (1 << 32) - 1])
        count, position = rng.choice([1, 2, 5, 16]), rng.choice([0, 1, 7, 60])
        ids = tuple(rng.randrange(100) for _ in range(count))
        options = {
            "plan": self.plan.digest, "max_tokens": rng.choice([1, 5, 1 << 20]), "eos": [2], "slot": rng.randrange(4),
            "reuse": 3, "wait_s": rng.choice([0, 1, 60]), "logits": rng.random() < 0.3, "logprobs": rng.choice([0, 5]),
        }  # fmt: skip
        signed = {
            "plan": {**self.plan.to_dict(), "epoch": 78}, "addresses": {b: ["127.0.0.1", 9] for b in self.plan.boards},
            "board": rng.choice(self.plan.boards), "certificate": None, "signature": None, "drain": True,
        }  # fmt: skip
        states = np.ones((count, HIDDEN), "<f4").tobytes()
        request = rng.getrandbits(32)
        manager = (
            lambda: m.Ping(rng.getrandbits(64)), lambda: m.AskStatus(request),
            lambda: m.Claim({"replaces": 77, "epoch": 78}, request),  # never what is held, so no plan is changed
            lambda: m.Assign(signed, request), lambda: m.Commit({"epoch": 78, "drain": True}, request),
            lambda: m.Reach({"boards": {"b9": ["127.0.0.1", 1]}}, request),
            lambda: m.Open(epoch, seq_id, options, ids), lambda: m.Start(epoch, seq_id, 0, True),
            lambda: m.Close(epoch, seq_id),
            lambda: m.Trace(epoch, rng.choice([0, 3]), count, rng.choice([states, states[: 4 * count]]), seq_id,
                            position, position + count, request),
        )  # fmt: skip
        board = (
            lambda: m.Ping(rng.getrandbits(64)), lambda: m.Tokens(
                epoch, seq_id, position, rng.randrange(4), ids, ids[: rng.choice([0, 1, 15])]
            ),
            lambda: m.Hidden(epoch, seq_id, position, position + count, 1, ids, states),
        )  # fmt: skip
        listener = (
            lambda: m.Refuse("no"), lambda: m.Pong(1, 2, 3), lambda: m.Status({}, request),
            lambda: m.Opened(epoch, seq_id), lambda: m.Failed(epoch, seq_id, 0, "x"),
            lambda: m.Queued(epoch, seq_id, 1),
        )  # fmt: skip
        wrong = rng.random() < 0.08
        kinds = listener if wrong else manager if role == "manager" else board
        return rng.choice(kinds)()

    def frames(self, role: str, count: int) -> list[bytes]:
        """So many frames, most of which begin as valid ones."""
        found: list[bytes] = []
        while len(found) < count:
            frame = m.encode(self.valid(role if self.rng.random() < 0.9 else self.rng.choice(["manager", "board"])))
            found += self.changed(frame, found)
        return found[:count]

    def changed(self, frame: bytes, before: list[bytes]) -> list[bytes]:
        """A frame, or what chance makes of it."""
        rng = self.rng
        body = bytearray(frame[PREFIX.size :])
        match rng.randrange(16):
            case 0 if body:  # some bits
                for _ in range(rng.choice([1, 2, 20])):
                    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
            case 1:  # cut short, with a length that fits
                del body[rng.randrange(len(body) + 1) :]
            case 2:  # cut short in the middle of the frame: what follows is taken for its rest
                return [frame[: rng.randrange(1, len(frame))]]
            case 3:  # longer
                body += rng.randbytes(40)
            case 4:  # of another type
                return [PREFIX.pack(len(body) + 1, rng.choice([*m.BY_TYPE, 0, 9, 99, 255])) + body]
            case 5:  # of another length
                return [PREFIX.pack(rng.choice([0, 1, 5, len(body), 1 << 20, 1 << 26, (1 << 32) - 1]), frame[4]) + body]
            case 6:  # doubled
                return [frame, frame]
            case 7 if before:  # two in one
                other = rng.choice(before)
                return [frame[: rng.randrange(len(frame))] + other[rng.randrange(len(other)) :]]
            case 8:  # odd JSON, where there is some
                return [self.odd_json(frame)]
            case 9 if before:  # again, later
                return [frame, rng.choice(before)]
            case 10:  # whole numbers at their ends
                at = rng.randrange(max(1, len(body) - 4))
                body[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
            case _:
                return [frame]
        return [PREFIX.pack(len(body) + 1, frame[4]) + bytes(body)]

    def odd_json(self, frame: bytes) -> bytes:
        """The frame with one value of its JSON in place of another, if it carries JSON."""
        rng = self.rng
        message = m.BY_TYPE[frame[4]].decode(frame[PREFIX.size :])
        content = getattr(message, "content", None) or getattr(message, "options", None)
        if not isinstance(content, dict) or not content:
            return frame
        holder, key = content, rng.choice(list(content))
        while isinstance(holder[key], dict) and holder[key] and rng.random() < 0.7:
            holder[key] = dict(holder[key])
            holder = holder[key]
            key = rng.choice(list(holder))
        holder[key] = rng.choice(_ODD_VALUES)
        return m.encode(message)


class Crashes(logging.Handler):
    """Keeps what is logged as an error, or with a traceback, asyncio's own reports included."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if record.levelno >= logging.ERROR or record.exc_info:
            self.found.append(logging.Formatter("%(name)s: %(message)s").format(record)[-3000:])


async def fuzz(folder: Path, frames: int, seed: int, tls: bool) -> Outcome:
    """Send so many frames to two boards that answer one question after another, by certificates of a board and of a
    manager of the cluster, or over plain loopback."""
    rng, out, crashes = random.Random(seed), Outcome(), Crashes()
    certificates = make_cluster(folder / "tls", ["b0", "b1", "b2"]) if tls else None
    logging.getLogger().addHandler(crashes)
    try:
        async with Boards(folder, 2, tls=certificates) as boards:
            plan = await boards.form((0, 3, 6), slots=3)
            async with ClusterClient.dial(plan, boards.addresses, boards.client_tls) as cluster:
                before = peak = psutil.Process().memory_info().rss
                answering = asyncio.create_task(_answer(cluster, out))
                while out.frames < frames:
                    seq_ids = [s for a in boards.agents for s in a.stage._sequences]
                    await _connect(boards, certificates, Corpus(rng, plan, seq_ids), out, frames)
                    peak = max(peak, psutil.Process().memory_info().rss)
                done = out.answers
                async with asyncio.timeout(60):
                    while out.answers <= done and not answering.done():  # one more, and all of it after the last frame
                        await asyncio.sleep(0.01)
                if answering.done():
                    answering.result()
                answering.cancel()
                out.grown_bytes = peak - before
                await asyncio.gather(answering, return_exceptions=True)
            async with asyncio.timeout(20):
                while any(a.stage.engine.free_slots < 3 or a.stage.engine.waiting for a in boards.agents):
                    await asyncio.sleep(0.01)
            assert [agent.stage.epoch for agent in boards.agents] == [plan.epoch] * 2
            assert not any(task.done() for task in boards._tasks)
    finally:
        logging.getLogger().removeHandler(crashes)
        out.crashes = crashes.found
    return out


async def _answer(cluster: ClusterClient, out: Outcome) -> None:
    """Ask again and again; each answer must be what it would be alone."""
    while True:
        stream = cluster.generate(list(PROMPT), sampling=Sampling(), max_tokens=_ANSWER - len(PROMPT), eos=())
        tokens = [chosen.token async for chosen in stream]
        assert tokens == generate(PROMPT, _ANSWER - len(PROMPT)), "an answer was changed"
        out.answers += 1


async def _connect(boards: Boards, tls: Path | None, corpus: Corpus, out: Outcome, most: int) -> None:
    """One connection: a hello, mostly a right one, then frames, at once or in pieces; then the end, or silence."""
    rng = corpus.rng
    role = rng.choice(["manager", "board"])
    # Never one of the plan's own boards: it would be taken for the real one.
    name = "b2" if role == "board" else "anna"
    context = _context(tls, "boards/b2" if role == "board" else "asker") if tls else None
    frames = corpus.frames(role, min(rng.randint(*_FRAMES), most - out.frames))
    hello = m.encode(m.Hello(role, name))
    if rng.random() < 0.05:
        hello = b"".join(corpus.changed(hello, frames))
    host, port = boards.addresses[rng.choice(["b0", "b1"])]
    reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="" if context else None)
    data = hello + b"".join(frames)
    with contextlib.suppress(OSError):
        while data:
            size = rng.choice([len(data), 7, 100, 4096])
            writer.write(data[:size])
            data = data[size:]
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        if rng.random() < 0.2 and context is None:
            writer.write_eof()
        with contextlib.suppress(TimeoutError, ssl.SSLError):
            async with asyncio.timeout(_PATIENCE_S if rng.random() < 0.5 else 0):
                while received := await reader.read(1 << 16):
                    out.replies["refused" if b"not part of this protocol" in received else "answered"] += 1
    writer.transport.abort()
    await asyncio.sleep(0)
    out.frames += len(frames)
    out.connections += 1
    out.sent[role] += len(frames)


_contexts: dict[Path, ssl.SSLContext] = {}


def _context(tls: Path, who: str) -> ssl.SSLContext:
    folder = tls / who
    if folder not in _contexts:
        _contexts[folder] = client_credentials(folder).context
    return _contexts[folder]


def told(out: Outcome) -> str:
    """The counts as JSON."""
    return json.dumps({
        "frames": out.frames, "connections": out.connections, "by": dict(out.sent), "replies": dict(out.replies),
        "answers": out.answers, "grown_mb": round(out.grown_bytes / 1e6, 1), "crashes": len(out.crashes),
    })  # fmt: skip
