"""What anyone can send to an agent's port while an answer is being made: that connection alone ends, with a sentence in
the log; the answer, the slots and the memory stay as they are."""

import asyncio
import contextlib
import logging
import random
import re
import socket
import struct
import threading
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.checkpoint.manifest import Manifest
from edgellm.config import Sampling
from edgellm.errors import BoardError
from edgellm.manager.client import BoardClient, ClusterClient, connect_all, status
from edgellm.wire import messages as m
from edgellm.wire.frames import PREFIX, FrameReader, encode_frame
from tests.fakes import HIDDEN, Boards, ask, generate, make_manifest, make_plan, run

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
        self._frames = FrameReader(lambda type_: 1 << 30)
        self._got: list = []

    @classmethod
    async def dial(cls, agent, *messages) -> "Stranger":
        """Connect, and send these (messages or bytes)."""
        stranger = cls(*await asyncio.open_connection("127.0.0.1", agent.port))
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
async def mid_answer(tmp_path: Path, **kwargs):
    """What happens inside must leave the answer, the agents and their slots alone."""
    gate = threading.Event()
    gate.set()
    async with Boards(tmp_path, 2, gates={"b1": gate}) as boards:
        try:
            plan = await boards.form((0, 3, 6), slots=3, **kwargs)
            async with ClusterClient(plan, boards.addresses) as cluster:
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
    return sum(p.protocol.peer is not None and p.name == "mallory" for p in [*agent._peers, *agent._strangers])


@pytest.fixture(autouse=True)
def logged(caplog):
    """The log as text; it must hold no traceback, whatever the peers did."""
    caplog.set_level(logging.INFO)
    yield lambda: caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info], caplog.text


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


BEFORE_HELLO = {
    "http": (b"GET / HTTP/1.1\r\nHost: pi1\r\n\r\n", "a frame of type 47 before a hello"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "a frame of type 0 before a hello"),
    "ssh": (b"SSH-2.0-OpenSSH_9.7\r\n", "a frame of type 50 before a hello"),
    "huge length": (b"\xff\xff\xff\xff\x01", "4294967294 bytes, at most 4096"),
    "length 0": (bytes(5), "a frame of length 0"),
    "another magic": (encode_frame(1, b"EDGF\0\1{}"), "hello starts with b'EDGF'"),
    "another version": (m.encode(m.Hello("manager", "x", 2)), "wire version 2, this edgellm speaks 1"),
    "no JSON": (encode_frame(1, b"EDGE\0\1{"), "no JSON"),
    "deep JSON": (encode_frame(1, b"EDGE\0\1" + b"[" * 4000), "no JSON"),
    "odd role": (encode_frame(1, b'EDGE\0\1{"role": [], "name": "x"}'), "role must be"),
    "a name that forges log lines": (encode_frame(1, b'EDGE\0\1{"role": "board", "name": "x\\nINFO"}'), "name"),
    "an order before hello": (m.encode(m.Ping(1)), "a frame of type 3 before a hello"),
}
AFTER_HELLO = {
    "hello again": ((MANAGER, MANAGER), "a frame of type 1 from a manager"),
    "hidden from a manager": ((MANAGER, m.Hidden(1, 1, 0, 1, 1, True, bytes(16))), "a frame of type 12 from a manager"),
    "open from a board": ((BOARD, m.Open(1, 1, {}, (1,))), "a frame of type 10 from a board"),
    "assign from a board": ((BOARD, m.Assign({})), "a frame of type 7 from a board"),
    "a listener's answer": ((MANAGER, m.Opened(1, 1)), "a frame of type 11 from a manager"),
    "unknown type": ((MANAGER, encode_frame(200, b"")), "a frame of type 200 from a manager"),
    "huge open": ((MANAGER, PREFIX.pack((1 << 32) - 1, 10)), "type 10 with 4294967294 bytes, at most"),
    "huge hidden": ((BOARD, PREFIX.pack(1 << 30, 12)), "type 12 with 1073741823 bytes, at most 1052"),
    "huge trace": ((MANAGER, PREFIX.pack(1 << 30, 18)), "type 18 with 1073741823 bytes, at most 1052"),
    "long ping": ((MANAGER, encode_frame(3, bytes(8) + b"x")), "at most 8"),
    "short ping": ((MANAGER, encode_frame(3, b"x")), "ping: 1 bytes, expected 8"),
    "open that is short of ids": ((MANAGER, encode_frame(10, struct.pack(">IQII", 1, 1, 2, 9) + b"{}")), "expected"),
    "open without JSON": ((MANAGER, encode_frame(10, struct.pack(">IQII", 1, 1, 2, 0) + b"{{")), "no JSON"),
    "hidden of another epoch": ((BOARD, m.Hidden(7, 1, 0, 1, 1, True, bytes(16))), "holds epoch 1, not epoch 7"),
    "token of another epoch": ((BOARD, m.Token(7, 1, 0, 1)), "holds epoch 1, not epoch 7"),
    "trace of another epoch": ((MANAGER, m.Trace(7, 3, 1, bytes(16))), "holds epoch 1, not epoch 7"),
    "hidden of no tokens": ((BOARD, m.Hidden(1, 1, 0, 0, 1, True, bytes(16))), "16 bytes of tensor for 0 tokens"),
    "hidden of another size": ((BEFORE, m.Hidden(1, 1, 0, 1, 1, True, bytes(20))), "size 5 .* expected size 4"),
    "hidden of a stranger": ((BOARD, m.Hidden(1, 1, 0, 1, 1, True, bytes(16))), "from mallory; board b1 .* from b0"),
    "token of a stranger": ((BOARD, m.Token(1, 1, 0, 1)), "a token from mallory; board b1 takes none"),
    "hidden past the context": ((BEFORE, m.Hidden(1, 1, 63, 2, 65, True, bytes(32))), "position 65.* at most 64"),
    "hidden past its own pass": ((BOARD, m.Hidden(1, 1, 9, 2, 10, True, bytes(32))), "positions up to 11"),
    "hidden of many tokens": ((BOARD, m.Hidden(1, 1, 0, 1 << 31, 1 << 31, True, bytes(16))), "16 bytes of tensor for"),
    "hidden with odd flags": ((BOARD, encode_frame(12, struct.pack(">IQIIIB3x", 1, 1, 0, 1, 1, 9) + bytes(16))), "fl"),
    "trace of a layer elsewhere": ((MANAGER, m.Trace(1, 0, 1, bytes(16))), "from layer 0; .* starts at layer 3"),
    "trace of an absurd layer": ((MANAGER, m.Trace(1, (1 << 32) - 1, 1, bytes(16))), "from layer 4294967295"),
    "trace of an absurd count": ((MANAGER, m.Trace(1, 3, (1 << 32) - 1, bytes(16))), "for 4294967295 tokens"),
    "trace past the context": ((MANAGER, m.Trace(1, 3, 65, bytes(65 * 4))), "trace of 65 tokens"),
    "trace of another size": ((MANAGER, m.Trace(1, 3, 1, bytes(20))), "20 bytes; expected 16"),
    "half a frame and the end": ((MANAGER, PREFIX.pack(100, 10), b"abc"), "stream ends after 3 bytes of a body, exp"),
}  # fmt: skip


def test_bytes_before_a_hello_end_their_connection_with_a_sentence(tmp_path, logged):
    async def go():
        async with mid_answer(tmp_path) as at:
            for name, (data, reason) in BEFORE_HELLO.items():
                for agent in at.boards.agents:
                    refusal = await (await Stranger.dial(agent, data)).refused()
                    assert reason in refusal, (name, refusal)
                    assert re.search(f"connection of .* ended: .*{re.escape(reason)}", logged()), name

    run(go())


def test_what_the_protocol_does_not_allow_after_a_hello_ends_the_connection_with_a_sentence(tmp_path, logged):
    async def go():
        async with mid_answer(tmp_path) as at:
            for name, (sent, reason) in AFTER_HELLO.items():
                stranger = await Stranger.dial(at.last, *sent)
                if name.endswith("the end"):
                    stranger.writer.write_eof()
                else:
                    refusal = await stranger.refused()
                    assert re.search(reason, refusal), (name, refusal)
                await until(lambda reason=reason: re.search(f"of (mallory|b0) .* ended: .*{reason}", logged()), name)
            refusal = await (await Stranger.dial(at.first, BOARD, m.Hidden(1, 1, 0, 1, 1, True, bytes(16)))).refused()
            assert refusal == "hidden states from mallory; board b0 takes them from nobody"

    run(go())


def test_random_garbage_with_and_without_a_hello(tmp_path):
    rng = random.Random(1)

    async def go():
        async with mid_answer(tmp_path) as at:
            for i in range(150):
                stranger = await Stranger.dial(at.boards.agents[i % 2], *([MANAGER], [BOARD], [])[i % 3])
                # Half of them claim a type and a length that are allowed, so that the body is looked at.
                data = rng.randbytes(rng.choice((3, 40, 5000)))
                stranger.send(data if i % 2 else encode_frame(rng.choice((3, 5, 10, 12, 13, 14, 18)), data[:1000]))
                with contextlib.suppress(OSError):
                    stranger.writer.write_eof()
                await stranger.refused()

    run(go())


def test_a_connection_that_stops_halfway_is_closed_in_time_and_one_that_goes_on_is_not(tmp_path, monkeypatch, logged):
    monkeypatch.setattr("edgellm.wire.peer.HELLO_TIMEOUT_S", 0.3)
    monkeypatch.setattr("edgellm.wire.peer.FRAME_TIMEOUT_S", 0.3)

    async def go():
        async with mid_answer(tmp_path) as at:
            silent = await Stranger.dial(at.last)
            half_hello = await Stranger.dial(at.last, m.encode(MANAGER)[:9])
            half_frame = await Stranger.dial(at.last, MANAGER, m.encode(m.Ping(1))[:7])
            half_prefix = await Stranger.dial(at.last, BOARD, b"\0\0")
            # Frames without a gap between them, none of which takes long.
            steady = await Stranger.dial(at.last, MANAGER)
            ping, began = m.encode(m.Ping(1)), asyncio.get_running_loop().time()
            steady.send(ping[:5])
            for _ in range(30):
                await asyncio.sleep(0.02)
                steady.send(ping[5:] + ping[:5])
            steady.send(ping[5:])
            assert asyncio.get_running_loop().time() - began > 0.6
            for _ in range(30):
                assert isinstance(await steady.next(), m.Pong)
            assert isinstance(await steady.next(), m.Pong) and not steady.reader.at_eof()
            assert await silent.refused() == "no hello within 0.3 s"
            assert await half_hello.refused() == "no hello within 0.3 s" in logged()
            assert await half_frame.refused() == "half a frame, and no more of it within 0.3 s" in logged()
            assert await half_prefix.refused() == "half a frame, and no more of it within 0.3 s"

    run(go())


def test_a_port_scan_and_hundreds_of_idle_connections(tmp_path, logged):
    async def go():
        async with mid_answer(tmp_path) as at:
            before = rss_bytes()
            for burst in range(4):
                scanners = [socket.create_connection(("127.0.0.1", at.last.port), DEADLINE_S) for _ in range(50)]
                for scanner in scanners:
                    scanner.close()
                await until(lambda seen=50 * (burst + 1): logged().count("before a hello") == seen)
            assert not at.last._strangers
            # All at once: more than are accepted in one go, and than are kept.
            idle = [socket.socket() for _ in range(300)]
            for i, sock in enumerate(idle, 1):
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", at.last.port))
                if i % 100 == 0:
                    await until(lambda n=i - 64: logged().count("too many connections without a hello") == n)
            assert len(at.last._strangers) == 64
            for sock in idle:
                sock.close()
            await until(lambda: not at.last._strangers)
            assert rss_bytes() - before < 30 << 20

    run(go())


def test_peers_that_said_hello_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.serve._MAX_PEERS", 20)

    async def go():
        async with mid_answer(tmp_path) as at:
            crowd = [await Stranger.dial(at.last, (MANAGER, BOARD)[i % 2], m.Ping(1)) for i in range(30)]
            replies = [await stranger.next() for stranger in crowd]
            refused = [r.reason for r in replies if isinstance(r, m.Refuse)]
            assert refused == ["20 connections are open already"] * 12

    run(go())


def test_peers_that_fell_silent_are_let_go_and_an_idle_cluster_still_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.serve.MANAGER_SILENCE_S", 1.0)
    monkeypatch.setattr("edgellm.agent.serve.BOARD_SILENCE_S", 1.2)
    monkeypatch.setattr("edgellm.manager.client.PING_EVERY_S", 0.1)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient(plan, boards.addresses) as cluster:
                assert [c.token for c in await ask(cluster, PROMPT)] == generate(PROMPT, 10)
                strangers = [await Stranger.dial(boards.agents[1], hello) for hello in (MANAGER, BOARD)]
                assert [await s.refused() for s in strangers] == ["silent for 1 s", "silent for 1.2 s"]
                await until(lambda: boards.agents[0].stage._next._peer is None)  # the boards' own link, too
                assert [c.token for c in await ask(cluster, PROMPT)] == generate(PROMPT, 10)
            await Stranger.hang_up()

    run(go())


def test_announced_bytes_take_no_memory_until_they_come(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            before = rss_bytes()
            for _ in range(150):
                await Stranger.dial(at.last, MANAGER, PREFIX.pack(m.Open.LIMIT + 1, 10), bytes(100))
            await until(lambda: hello(at.last) == 150)
            assert rss_bytes() - before < 30 << 20
            await Stranger.hang_up()
            await until(lambda: hello(at.last) == 0)

    run(go())


def test_an_order_that_follows_a_refused_one_reserves_nothing(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            orders = [m.Trace(7, 3, 1, bytes(16))]  # of another epoch: refused
            orders += [m.Open(1, 100 + i, {"sampling": {}, "max_tokens": 5, "eos": []}, (1, 2)) for i in range(5)]
            stranger = await Stranger.dial(at.last, b"".join(m.encode(x) for x in (MANAGER, *orders)))
            assert "not epoch 7" in await stranger.refused()
            assert at.last.stage.engine.free_slots == 2

    run(go())


def test_hidden_states_of_an_unknown_sequence_are_dropped(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            stranger = await Stranger.dial(at.last, BEFORE)
            for i in range(300):
                stranger.send(m.Hidden(1, i, 0, 64, 64, True, bytes(64 * HIDDEN * 4)))
            stranger.send(m.Ping(42))
            assert (await stranger.next()).number == 42
            assert at.last.stage.engine.waiting == 1

    run(go())


def test_close_and_token_for_another_manager_s_sequence_change_nothing(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            stranger = await Stranger.dial(at.last, MANAGER, m.Close(1, at.seq_id), m.Close(1, 5), m.Ping(1))
            answers = [await stranger.next(), await stranger.next()]
            assert answers[0] == m.Closed(1, 5, {}) and isinstance(answers[1], m.Pong)
            stranger.send(m.Open(1, at.seq_id, {"sampling": {}, "max_tokens": 5}, (1,)))
            assert "open here already" in (await stranger.next()).reason

    run(go())


GOOD = {"sampling": {}, "max_tokens": 3, "eos": []}
OPENS = {
    "eos is a number": ({**GOOD, "eos": 5}, (1,), "eos"),
    "eos is null": ({**GOOD, "eos": None}, (1,), "eos"),
    "eos is nested": ({**GOOD, "eos": [[1]]}, (1,), "eos"),
    "eos is text": ({**GOOD, "eos": "abc"}, (1,), "eos"),
    "max_tokens is true": ({**GOOD, "max_tokens": True}, (1,), "max_tokens is True"),
    "max_tokens is 0": ({**GOOD, "max_tokens": 0}, (1,), "max_tokens is 0"),
    "max_tokens is negative": ({**GOOD, "max_tokens": -1}, (1,), "max_tokens is -1"),
    "max_tokens is 1e9": ({**GOOD, "max_tokens": 1e9}, (1,), "max_tokens is 1000000000.0"),
    "max_tokens is a list": ({**GOOD, "max_tokens": ["é" * 3000]}, (1,), "max_tokens is"),
    "max_tokens is missing": ({}, (1,), "max_tokens"),
    "sampling is null": ({**GOOD, "sampling": None}, (1,), "sampling"),
    "sampling has more": ({**GOOD, "sampling": {"temprature": 1}}, (1,), "unknown fields"),
    "temperature is huge": ({**GOOD, "sampling": {"temperature": 10**4000}}, (1,), "temperature"),
    "temperature is text": ({**GOOD, "sampling": {"temperature": "é" * 5000}}, (1,), "temperature is"),
    "temperature is a surrogate": ({**GOOD, "sampling": {"temperature": "\ud800"}}, (1,), "temperature is"),
    "seed is huge": ({**GOOD, "sampling": {"seed": 10**4000}}, (1,), "seed is"),
    "seed is true": ({**GOOD, "sampling": {"seed": True}}, (1,), "seed is True"),
    "an id outside of the vocabulary": (GOOD, (1, 97), "token id 97; the vocabulary has 97"),
    "the highest id there is": (GOOD, ((1 << 32) - 1,), "token id 4294967295"),
    "no prompt": (GOOD, (), "a prompt of 0 tokens"),
    "a prompt longer than the context": (GOOD, (1,) * 65, "a prompt of 65 tokens; board"),
}  # fmt: skip


def test_an_open_with_odd_options_fails_with_a_sentence_and_takes_no_slot(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            for agent in at.boards.agents:
                stranger = await Stranger.dial(agent, MANAGER)
                for name, (options, ids, reason) in OPENS.items():
                    stranger.send(m.Open(1, 9, options, ids))
                    answer = await stranger.next()
                    assert isinstance(answer, m.Failed) and reason in answer.reason, (name, answer)
                    assert len(answer.reason) < 1000 and m.FAILURES[answer.code] == "error", (name, answer)
                    assert agent.stage.engine.free_slots == 2, name
                stranger.send(m.Open(7, 9, GOOD, (1,)))
                answer = await stranger.next()
                assert m.FAILURES[answer.code] == "epoch" and "holds epoch 1, not epoch 7" in answer.reason

    run(go())


# JSON of any kind, and, more often than chance has it, with the fields that an assignment and its plan have.
_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates, too
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_JSON = st.recursive(
    _SCALARS | st.sampled_from(["b1", "b0", 10**4000, -1, 1 << 64, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _odd_plan(manifest) -> st.SearchStrategy:
    good = make_plan(manifest, (0, 3, 6), epoch=1).to_dict()
    field = st.sampled_from([*good, "more"]).flatmap(lambda k: st.tuples(st.just(k), _JSON))
    return _JSON | field.map(lambda pair: {**good, pair[0]: pair[1]})


def test_assign_with_any_json_is_answered_with_a_sentence(tmp_path):
    """All examples go to agents that are in the middle of an answer, so they are drawn first and sent together."""
    make_manifest().write(tmp_path)
    manifest = Manifest.read(tmp_path)
    good = {"plan": make_plan(manifest, (0, 3, 6)).to_dict(), "board": "b1",
            "addresses": {"b0": ["127.0.0.1", 1], "b1": ["127.0.0.1", 2]}}  # fmt: skip
    contents = []

    @settings(max_examples=250, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        st.fixed_dictionaries(
            {}, optional={"plan": _odd_plan(manifest), "board": _JSON, "addresses": _JSON, "more": _JSON}
        ),
        st.dictionaries(st.sampled_from(["b0", "b1"]), _JSON | st.lists(_JSON, min_size=2, max_size=2)),
        st.booleans(),
    )
    def draw(content, addresses, keep):
        # A plan of epoch 1 that isn't the one held is refused at the latest for its epoch.
        contents.append({**good, **content} if keep else content)
        contents.append({**good, "plan": {**good["plan"], "chunk": 7}, "addresses": addresses})

    draw()

    async def go():
        async with mid_answer(tmp_path) as at:
            stage = at.last.stage
            stranger = await Stranger.dial(at.last, MANAGER)
            for content in contents:
                stranger.send(m.Assign(content))
                answer = await stranger.next()
                assert isinstance(answer, m.Assigned), (content, answer)
                assert answer.content["error"] or content["plan"] == good["plan"], (content, answer)
                assert len(answer.content["error"] or "") < 2000, answer
            assert at.last.stage is stage

    run(go())


def test_a_plan_with_an_address_that_can_not_be_one_fails_its_sequences_and_nothing_else(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            (_, client) = await connect_all(boards.addresses)
            for epoch, host in enumerate(("x" * 100, "a\0b", "\ud800", "..", "no such name.invalid"), 2):
                plan = make_plan(boards.manifest, (0, 3, 6), epoch=epoch)
                addresses = {"b0": (host, 1), "b1": boards.addresses["b1"]}
                content = {"plan": plan.to_dict(), "addresses": addresses, "board": "b1"}
                answer = await client.ask(m.Assign(content), m.Assigned, DEADLINE_S)
                if answer.content["error"]:
                    assert "address" in answer.content["error"]
                    continue
                queue = asyncio.Queue()
                client.subscribe(epoch, queue)
                client.send(m.Open(epoch, epoch, GOOD, (1,)))
                assert isinstance((await queue.get())[1], m.Opened)
                failed = (await client.receive(queue, DEADLINE_S, "nothing"))[1]
                assert m.FAILURES[failed.code] == "link" and "board b0" in failed.reason
                assert boards.agents[1].stage.engine.free_slots == 2
            client.close()

    run(go())


def test_a_flood_of_pings_and_of_questions_that_nobody_reads_the_answers_of(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.wire.peer.WRITE_TIMEOUT_S", 3.0)

    async def go():
        async with mid_answer(tmp_path) as at, growing_less_than(60 << 20):
            stranger = await Stranger.dial(at.last, MANAGER)
            stranger.writer.transport.pause_reading()
            await until(lambda: hello(at.last) == 1)
            flood = m.encode(m.AskStatus()) * 50_000 + m.encode(m.Ping(1)) * 10_000
            at.gate.set()  # the answer goes on meanwhile
            longest_s, clock = 0.0, asyncio.get_running_loop().time
            while hello(at.last):
                if stranger.writer.transport.get_write_buffer_size() < 1 << 20 and not stranger.reader.exception():
                    stranger.send(flood)
                began_s = clock()
                await asyncio.sleep(0.01)
                longest_s = max(longest_s, clock() - began_s)
            assert longest_s < 1.0, f"everybody else waited for {longest_s:.1f} s"

    run(go(), 60)


def test_a_manager_that_reads_no_logits_blocks_nobody_and_takes_no_memory(tmp_path, monkeypatch, logged):
    monkeypatch.setattr("edgellm.wire.peer.WRITE_TIMEOUT_S", 1.5)
    wide = 100_000  # logits as large as a real vocabulary's

    async def go():
        async with mid_answer(tmp_path, context=2000) as at, growing_less_than(60 << 20):
            section = at.boards.sections["b1"]
            section.forward = _wider(section.forward, wide)
            at.gate.set()
            greedy = {"sampling": {}, "max_tokens": 1500, "eos": [], "logits": True}
            for agent in (at.last, at.first):
                sleeper = await Stranger.dial(agent, MANAGER, m.Open(1, 77, greedy, tuple(PROMPT)))
                assert isinstance(await sleeper.next(), m.Opened)
                sleeper.writer.transport.pause_reading()
            stage = at.last.stage
            await until(lambda: stage._sequences[77].owner.congested)
            for _ in range(3):
                assert [c.token for c in await ask(at.cluster, PROMPT)] == generate(PROMPT, 10)
            await until(lambda: 77 not in stage._sequences)
            assert "reads nothing for 1.5 s" in logged()
            await Stranger.hang_up()
            del section.forward

    run(go(), 60)


def _wider(forward, count: int):
    import numpy as np

    def wide(*args):
        result = forward(*args)
        return result if result is None or result.ndim > 1 else np.pad(result, (0, count), constant_values=-1.0)

    return wide


def test_a_stranger_in_the_place_of_a_board_is_told_apart(tmp_path):
    """The manager's side: whoever listens at a board's address and is no board is named, with what it said."""

    async def http(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def go():
        server = await asyncio.start_server(http, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        with pytest.raises(BoardError, match=rf"board b9 \({host}:{port}\): a frame of type 47 before a hello"):
            await BoardClient("b9", host, port).connect()
        server.close()
        async with Boards(tmp_path, 1) as boards:
            (client,) = await connect_all(boards.addresses)
            assert (await status(client))["section"] is None
            client.close()

    run(go())
