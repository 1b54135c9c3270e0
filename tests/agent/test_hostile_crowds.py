"""Too many peers, too much from one, and peers that read nothing or say nothing: they wait or go, and the answer that
is being made, the others and the memory notice nothing of it."""

import asyncio
import contextlib
import dataclasses
import socket

import numpy as np
import pytest

from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from edgellm.wire.frames import PREFIX
from tests.agent.hostile import (
    BEFORE,
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
from tests.fakes import VOCAB, Boards, ask, generate, make_manifest, run

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


def manager(name: str) -> m.Hello:
    return m.Hello("manager", name)


async def crowd(agent, hello: m.Hello, count: int) -> list[Stranger]:
    """So many connections of one identity, all of which have said something."""
    there = [await Stranger.dial(agent, hello, m.Ping(1)) for _ in range(count)]
    for stranger in there:
        assert isinstance(await stranger.next(), m.Pong)
    return there


def test_a_manager_has_its_share_of_connections_and_its_oldest_idle_one_gives_way(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.connections._SHARE", 5)

    async def go():
        async with mid_answer(tmp_path) as at:
            mine = await crowd(at.last, manager("anna"), 5)
            mine[0].send(m.Claim({"replaces": 1, "epoch": 2}))
            assert (await mine[0].next()).content["error"] is None
            (sixth,) = await crowd(at.last, manager("anna"), 1)
            said = "5 connections of admin anna are open already, and this was the oldest idle one"
            assert await mine[1].refused() == said
            # Another one isn't concerned; and neither is who has something to lose.
            (other,) = await crowd(at.last, manager("ben"), 1)
            for stranger in (mine[0], *mine[2:], sixth, other):
                stranger.send(m.Ping(2))
                assert (await stranger.next()).number == 2

    run(go())


def test_who_holds_something_on_all_its_connections_gets_no_further_one(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.connections._SHARE", 1)

    async def go():
        async with mid_answer(tmp_path) as at:  # whose manager is called edgellm
            stranger = await Stranger.dial(at.last, manager("edgellm"), m.Ping(1))
            assert await stranger.refused() == "1 connections of admin edgellm are open already"

    run(go())


def test_a_full_house_keeps_nobody_out(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.connections._MAX_PEERS", 12)

    async def go():
        async with mid_answer(tmp_path) as at:  # its manager and its board are two of them
            many = await crowd(at.last, manager("mallory"), 10)
            few = [(await crowd(at.last, hello, 1))[0] for hello in (manager("anna"), manager("ben"), manager("carl"))]
            for oldest in many[:3]:
                assert await oldest.refused() == "12 connections are open already, and this was the oldest idle one"
            for stranger in (*many[3:], *few):
                stranger.send(m.Ping(2))
                assert (await stranger.next()).number == 2
            assert len(at.last.connections.peers) == 12

    run(go())


def test_a_board_that_was_removed_takes_neither_memory_nor_places_with_256_connections(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at, growing_less_than(20 << 20):
            removed = m.Hello("board", "b7")
            quiet = [await Stranger.dial(at.last, removed) for _ in range(256)]
            await until(lambda: len(at.last.connections.strangers) == 64)
            loud = [await Stranger.dial(at.last, removed, m.Ping(1)) for _ in range(256)]
            await until(lambda: loud[-1].reader.at_eof() or len(at.last.connections.strangers) == 0)
            assert sum(p.name == "b7" for p in at.last.connections.peers) == 1
            stranger = await Stranger.dial(at.last, manager("anna"), m.AskStatus())
            assert (await stranger.next()).content["name"] == "b1"
            assert [await s.refused() for s in loud[:-1]] == ["board b7 has connected anew"] * 255
            assert quiet

    run(go())


def test_half_frames_of_one_identity_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.connections._HALF_SHARE_BYTES", 400_000)

    async def go():
        async with mid_answer(tmp_path) as at, growing_less_than(20 << 20):
            half = PREFIX.pack(1 + 100_000, m.Open.TYPE) + bytes(90_000)
            mine = [await Stranger.dial(at.last, manager("mallory"), m.Ping(1), half) for _ in range(30)]
            refused = 0
            for stranger in mine:
                assert isinstance(await stranger.next(), m.Pong)
            await until(lambda: sum(p.name == "mallory" for p in at.last.connections.peers) == 4)
            for stranger in mine:
                refused += stranger.reader.at_eof() or stranger.reader._buffer != b""
            assert refused == 26
            other = await Stranger.dial(at.last, manager("anna"), half)
            other.send(bytes(5_000))
            await until(lambda: any(p.name == "anna" and p.buffered > 90_000 for p in _all(at.last)))

    run(go())


def test_half_frames_of_all_together_have_a_limit_and_who_has_most_gives_way(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.connections._MAX_HALF_BYTES", 400_000)

    async def go():
        async with mid_answer(tmp_path) as at:
            half = PREFIX.pack(1 + 120_000, m.Open.TYPE) + bytes(90_000)
            for _ in range(4):
                await Stranger.dial(at.last, manager("mallory"), half)
            await until(lambda: sum(p.buffered for p in _all(at.last)) == 4 * 90_000)
            anna = await Stranger.dial(at.last, manager("anna"), half)
            await until(lambda: sum(p.name == "mallory" for p in _all(at.last)) == 3)
            assert any(p.name == "anna" for p in _all(at.last)) and not anna.reader.at_eof()

    run(go())


def _all(agent) -> list:
    return [*agent.connections.peers, *agent.connections.strangers]


def test_only_the_board_before_may_send_steps_of_a_chunk(tmp_path):
    """A hello as any board costs 64 KB at most, where hidden states may be large."""
    wide = dataclasses.replace(make_manifest(), hidden_size=3072)

    async def go():
        async with Boards(tmp_path, 2, wide) as boards:
            await boards.form((0, 3, 6), context=2048, slots=1, chunk=32)
            agent = boards.agents[1]
            for hello, most in ((BOARD, 64 << 10), (BEFORE, 32 * 4 * 3073)):
                allowed = await Stranger.dial(agent, hello, PREFIX.pack(1 + most + 28, 12), bytes(5_000))
                await until(lambda a=agent: any(p.buffered == 5_000 for p in _all(a)))
                beyond = await Stranger.dial(agent, hello, PREFIX.pack(2 + most + 28, 12))
                assert f"at most {most + 28} are allowed" in await beyond.refused()
                allowed.writer.transport.abort()
                await until(lambda a=agent: not a.connections.strangers)
            for type_, most in ((m.Open, (64 << 10) + (64 << 10)), (m.Ping, 8), (m.Assign, 1 << 20)):
                beyond = await Stranger.dial(agent, MANAGER, PREFIX.pack(2 + most, type_.TYPE))
                assert f"at most {most} are allowed" in await beyond.refused()
            await Stranger.hang_up()

    run(go())


@pytest.mark.parametrize("place", ["127.0.0.1", "127.0.0.2"])
def test_a_board_has_one_connection_the_newest_unless_the_plan_has_the_older_one(tmp_path, logged, place):
    """Two of one name: the thief of a certificate, and whom it was stolen from, can't both send steps."""

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=512)
            agent = boards.agents[1]
            twin = await Stranger.dial(agent, BEFORE, source=place)  # before the real one has anything to send
            await until(lambda: agent.connections.strangers)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=300, eos=())
                tokens = [(await anext(stream)).token for _ in range(5)]
                seq_id = next(iter(agent.stage._sequences))
                step = m.Hidden(plan.epoch, seq_id, 0, 4, 0, (1, 1, 1, 1), np.ones((4, 4), "<f4").tobytes())
                assert await twin.refused() == "board b0 has connected anew"
                if place != "127.0.0.1":
                    again = await Stranger.dial(agent, BEFORE, step, source=place)
                    assert await again.refused() == "board b0 is connected from 127.0.0.1, where the plan has it"
                    assert "another machine seems to use its certificate" in logged()
                tokens += [c.token async for c in stream]
            assert tokens == generate(PROMPT, 300)
            newest = await Stranger.dial(agent, BEFORE, step, m.Ping(5))
            assert (await newest.next()).number == 5
            assert [p.name for p in agent.connections.peers if p.name == "b0"] == ["b0"]
            await Stranger.hang_up()

    run(go())


def test_a_second_connection_that_says_nothing_goes_while_the_first_one_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.connections.HELLO_TIMEOUT_S", 0.1)
    monkeypatch.setattr("edgellm.agent.serve._SWEEP_S", 0.02)

    async def go():
        async with mid_answer(tmp_path) as at:
            quiet = await Stranger.dial(at.last, BEFORE)
            assert await quiet.refused() == "board b0 has another connection, and says nothing on this one"

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
                await until(lambda: boards.agents[0].stage._next.peer is None)  # the boards' own link, too
                assert [c.token for c in await ask(cluster, PROMPT)] == generate(PROMPT, 10)
            await Stranger.hang_up()

    run(go())


def test_announced_bytes_take_no_memory_until_they_come(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            before = rss_bytes()
            for _ in range(60):
                await Stranger.dial(at.last, MANAGER, PREFIX.pack(1 + (128 << 10), 10), bytes(100))
            await until(lambda: hello(at.last) == 60)
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
            greedy = {"plan": at.plan.digest, "max_tokens": 1500, "eos": [], "logits": True, "slot": 1}
            for agent in (at.last, at.first):
                sleeper = await Stranger.dial(agent, MANAGER, m.Open(1, 77, greedy, tuple(PROMPT)))
                assert isinstance(await sleeper.next(), m.Opened)
                sleeper.writer.transport.pause_reading()
            sleeper.send(m.Start(1, 77))
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
