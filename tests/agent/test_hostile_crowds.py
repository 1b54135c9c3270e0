"""Too many peers, too much from one, and peers that read nothing or say nothing: they wait or go, and the answer that
is being made, the others and the memory notice nothing of it."""

import asyncio
import contextlib
import socket

import pytest

from edgellm.manager.client import ClusterClient
from edgellm.wire import messages as m
from edgellm.wire.frames import PREFIX
from tests.agent.hostile import (
    BOARD,
    DEADLINE_S,
    MANAGER,
    PROMPT,
    Stranger,
    growing_less_than,
    hello,
    mid_answer,
    rss_bytes,
    until,
)
from tests.fakes import VOCAB, Boards, ask, generate, run

pytestmark = pytest.mark.usefixtures("logged")


def test_a_port_scan_and_hundreds_of_idle_connections(tmp_path, logged):
    async def go():
        async with mid_answer(tmp_path) as at:
            before = rss_bytes()
            for burst in range(4):
                scanners = [socket.create_connection(("127.0.0.1", at.last.port), DEADLINE_S) for _ in range(50)]
                for scanner in scanners:
                    scanner.close()
                await until(lambda seen=50 * (burst + 1): logged().count("before a hello") == seen)
            assert not at.last.connections.strangers
            # All at once: more than are accepted in one go, and than are kept.
            idle = [socket.socket() for _ in range(300)]
            for i, sock in enumerate(idle, 1):
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", at.last.port))
                if i % 100 == 0:
                    await until(lambda n=i - 64: logged().count("too many connections without a hello") == n)
            assert len(at.last.connections.strangers) == 64
            for sock in idle:
                sock.close()
            await until(lambda: not at.last.connections.strangers)
            assert rss_bytes() - before < 30 << 20

    run(go())


def test_peers_that_said_hello_are_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.connections._MAX_PEERS", 20)

    async def go():
        async with mid_answer(tmp_path) as at:
            crowd = [await Stranger.dial(at.last, (MANAGER, BOARD)[i % 2], m.Ping(1)) for i in range(30)]
            replies = [await stranger.next() for stranger in crowd]
            refused = [r.reason for r in replies if isinstance(r, m.Refuse)]
            assert refused == ["20 connections are open already"] * 12

    run(go())


def test_peers_that_fell_silent_are_let_go_and_an_idle_cluster_still_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.connections.MANAGER_SILENCE_S", 1.0)
    monkeypatch.setattr("edgellm.agent.connections.BOARD_SILENCE_S", 1.2)
    monkeypatch.setattr("edgellm.agent.serve._SWEEP_S", 0.05)
    monkeypatch.setattr("edgellm.manager.client.PING_EVERY_S", 0.1)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
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


def test_a_flood_of_pings_and_of_questions_that_nobody_reads_the_answers_of(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.wire.peer.WRITE_TIMEOUT_S", 1.5)

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
            # Handled at a go, the flood would take 10 s.
            assert longest_s < 3.0, f"everybody else waited for {longest_s:.1f} s"

    run(go(), 60)


def test_a_manager_that_reads_no_logits_blocks_nobody_and_takes_no_memory(tmp_path, monkeypatch, logged):
    monkeypatch.setattr("edgellm.wire.peer.WRITE_TIMEOUT_S", 1.5)
    wide = 100_000  # logits as large as a real vocabulary's

    async def go():
        async with mid_answer(tmp_path, context=2000) as at, growing_less_than(60 << 20):
            section = at.boards.sections["b1"]
            section.forward = _wider(section.forward, wide)
            at.gate.set()
            greedy = {"plan": at.plan.digest, "max_tokens": 1500, "eos": [], "logits": True}
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
        if result is None or result.shape[1] != VOCAB:
            return result
        return np.pad(result, ((0, 0), (0, count)), constant_values=-1.0)

    return wide
