"""A change of the plan that lets answers go on: the old stage ends with its last sequence, the new one takes the
next."""

import asyncio
import gc
import weakref
from contextlib import aclosing

import pytest

from edgellm.errors import BoardError
from edgellm.manager.client import ClusterClient
from edgellm.manager.connections import Connections
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from tests.agent import changing
from tests.agent.changing import Manager
from tests.agent.hostile import until
from tests.fakes import Boards, ask, generate, make_manifest, make_plan, run

PROMPT = [5, 17, 3, 42, 8, 1, 90]
LONG = 300  # takes longer than a change of the plan


@pytest.fixture(autouse=True)
def swept(monkeypatch):
    monkeypatch.setattr("edgellm.agent.serve._SWEEP_S", 0.02)


def plan_of(boards, cuts=(0, 6), **settings):
    return changing.plan_of(boards, cuts, context=512, **settings)


class Answer:
    """An answer that stands still after its first token until it is to go on."""

    def __init__(self, cluster, count=LONG):
        self.count = count
        self.stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=count, eos=())

    async def begin(self):
        self.tokens = [(await anext(self.stream)).token]
        return self

    async def end(self):
        async with aclosing(self.stream):
            self.tokens += [c.token async for c in self.stream]
        assert self.tokens == generate(PROMPT, self.count)


async def move(manager, plan, drain=True, replaces=1) -> dict:
    """Give b0 a plan, letting answers go on."""
    assert await manager.claim(replaces, plan.epoch) is None
    prepared = (await manager.board.ask(with_drain(manager.assign(plan)), m.Assigned)).content
    assert (prepared["error"], prepared["beside"]) == (None, True)
    return (await manager.board.ask(m.Commit({"epoch": plan.epoch, "drain": drain}), m.Committed)).content


def with_drain(assign: m.Assign) -> m.Assign:
    return m.Assign({**assign.content, "drain": True})


@pytest.mark.parametrize("slots", [2, 3])  # the very same section, too, has slots of its own
def test_answers_go_on_on_the_old_stage_and_new_ones_are_on_the_new_one(on_board, slots):
    async def go(boards, holding, manager):
        first = plan_of(boards)
        await manager.take(first)
        async with ClusterClient.dial(first, boards.addresses) as cluster:
            answers = [await Answer(cluster).begin() for _ in range(2)]
            old = holding.stage
            second = plan_of(boards, epoch=2, slots=slots)
            assert await move(manager, second) == {"error": None, "epoch": 2, "loaded_bytes": 0}
            assert holding.draining is old and holding.stage.epoch == 2 and not holding.claimed
            status = await manager.board.status()
            assert (status.epoch, status.plan, status.draining_sequences) == (2, second, 2)
            assert status.committed["plan"] == second.to_dict()
            with pytest.raises(BoardError, match="holds epoch 2, not epoch 1"):
                await ask(cluster, PROMPT)
            async with ClusterClient.dial(second, boards.addresses) as newer:
                assert [c.token for c in await ask(newer, PROMPT)] == generate(PROMPT, 10)
            for answer in answers:
                await answer.end()
            await until(lambda: holding.draining is None)
            async with ClusterClient.dial(second, boards.addresses) as newer:
                assert [c.token for c in await ask(newer, PROMPT)] == generate(PROMPT, 10)
        references = weakref.ref(old.engine), weakref.ref(old)
        assert not old.engine._thread.is_alive()
        del old, answers, answer
        boards.sections.clear()
        gc.collect()
        assert (await manager.board.status()).draining_sequences == 0 and references

    on_board(go)


def test_an_answer_over_two_boards_outlives_a_plan_with_three(tmp_path):
    """Each board sends the steps of both plans on one connection."""

    async def go():
        async with Boards(tmp_path, 3) as boards:
            first = await boards.form((0, 3, 6), context=512)
            async with ClusterClient.dial(first, boards.addresses) as cluster, Connections() as connections:
                answer = await Answer(cluster).begin()
                second = make_plan(boards.manifest, (0, 2, 4, 6), epoch=2, context=512)
                clients = await connections.to_all(boards.addresses)
                for client in clients:
                    claim = m.Claim({"replaces": 1, "epoch": 2})
                    assert (await client.ask(claim, m.Claimed)).content["error"] is None
                for client in clients:
                    content = {"plan": second.to_dict(), "addresses": boards.addresses, "board": client.name}
                    prepared = (await client.ask(m.Assign({**content, "drain": True}), m.Assigned)).content
                    assert (prepared["error"], prepared["beside"]) == (None, True)
                for client in clients:
                    said = await client.ask(m.Commit({"epoch": 2, "drain": True}), m.Committed)
                    assert said.content["error"] is None
                async with ClusterClient.dial(second, boards.addresses) as newer:
                    together = await asyncio.gather(ask(newer, PROMPT, 20), answer.end(), ask(newer, PROMPT, 20))
                    assert [c.token for c in together[0]] == generate(PROMPT, 20)
                peers = boards.agents[1].connections.peers
                assert sum(p.name == "b0" for p in peers) == 1
                for agent in boards.agents:
                    await until(lambda a=agent: a.holding.draining is None)

    run(go())


def test_a_change_that_does_not_drain_ends_both(on_board):
    async def go(boards, holding, manager):
        first = plan_of(boards)
        await manager.take(first)
        async with ClusterClient.dial(first, boards.addresses) as cluster:
            answer = await Answer(cluster).begin()
            await move(manager, plan_of(boards, epoch=2, slots=3))
            await manager.take(plan_of(boards, epoch=3), replaces=2)
            assert holding.draining is None and holding.stage.epoch == 3
            with pytest.raises(BoardError, match="moved on to epoch 3"):
                await answer.end()

    on_board(go)


def test_a_second_one_waits_for_the_first(on_board):
    async def go(boards, holding, manager):
        first, third = plan_of(boards), plan_of(boards, epoch=3)
        await manager.take(first)
        async with ClusterClient.dial(first, boards.addresses) as cluster:
            answer = await Answer(cluster).begin()
            await move(manager, plan_of(boards, epoch=2, slots=3))
            assert await manager.claim(2, 3) is None
            said = (await manager.board.ask(with_drain(manager.assign(third)), m.Assigned)).content
            assert (said["error"], said["beside"]) == (None, False)
            said = (await manager.board.ask(m.Commit({"epoch": 3, "drain": True}), m.Committed)).content
            assert "has not prepared epoch 3 beside the answers that run" in said["error"] and said["epoch"] == 2
            await answer.end()
            await until(lambda: holding.draining is None)
        assert (await move(manager, third, replaces=2))["error"] is None

    on_board(go)


def test_what_was_not_prepared_beside_can_not_drain(on_board, monkeypatch):
    async def go(boards, holding, manager):
        first, second = plan_of(boards), plan_of(boards, epoch=2, slots=3)
        await manager.take(first)
        async with ClusterClient.dial(first, boards.addresses) as cluster:
            answer = await Answer(cluster).begin()
            # As it is without the word, though it was loaded.
            assert await manager.claim(1, 2) is None
            assert (await manager.prepare(second))["beside"] is True
            said = (await manager.board.ask(m.Commit({"epoch": 2, "drain": True}), m.Committed)).content
            assert "has not prepared epoch 2 beside the answers that run" in said["error"] and said["epoch"] == 1
            # As it is with the word, and without room.
            monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 64 << 20)
            holding.offer_bytes = lambda: 1 << 30
            assert await manager.claim(1, 2) is None
            prepared = (await manager.board.ask(with_drain(manager.assign(second)), m.Assigned)).content
            assert (prepared["error"], prepared["beside"]) == (None, False)
            said = (await manager.board.ask(m.Commit({"epoch": 2, "drain": True}), m.Committed)).content
            assert "has not prepared epoch 2 beside the answers that run" in said["error"] and holding.claimed
            await answer.end()

    on_board(go, manifest=make_manifest(ram_bytes=4096))


def test_the_weights_of_both_count_though_mapped_files_are_free(on_board, monkeypatch):
    """1 MB a layer: b0 holds three, and would hold one other beside them."""

    async def go(boards, holding, manager):
        await manager.take(plan_of(boards, (0, 3, 6)))
        plan = plan_of(boards, (0, 2, 6))
        need = holding.room.need(plan)
        room = need.kv + need.activations + 3 * (1 << 20) + 8
        found = {}
        for free in (room, room + 1):
            monkeypatch.setattr("edgellm.agent.room.usable_bytes", lambda free_bytes, usable=free: usable)
            found[free] = holding.room.is_to_drain(plan, [holding.stage.plan])
        assert found == {room: False, room + 1: True}

    on_board(go, manifest=make_manifest(ram_bytes=1 << 20), count=2)


def test_a_board_that_loses_its_section_lets_its_answers_go_on(on_board):
    async def go(boards, holding, manager):
        first = plan_of(boards)
        await manager.take(first)
        async with ClusterClient.dial(first, boards.addresses) as cluster:
            answer = await Answer(cluster).begin()
            other = plan_of(boards, epoch=2).to_dict() | {"sections": [{"board": "b1", "start": 0, "end": 6}]}
            assert await manager.claim(1, 2) is None
            content = {"plan": other, "addresses": {"b1": ("127.0.0.1", 9)}, "board": "b0", "drain": True}
            assert (await manager.board.ask(m.Assign(content), m.Assigned)).content["error"] is None
            said = (await manager.board.ask(m.Commit({"epoch": 2, "drain": True}), m.Committed)).content
            assert said["error"] is None
            status = await manager.board.status()
            assert (status.epoch, status.section, status.draining_sequences) == (2, None, 1)
            assert status.committed["plan"]["sections"] == [{"board": "b1", "start": 0, "end": 6}]
            await answer.end()
            await until(lambda: not holding.stages)

    on_board(go, count=2)


def test_a_manager_that_is_gone_has_no_sequences_left_to_drain(on_board):
    async def go(boards, holding, manager):
        first = plan_of(boards)
        await manager.take(first)
        async with ClusterClient.dial(first, boards.addresses) as cluster:
            answer = await Answer(cluster).begin()
            await move(manager, plan_of(boards, epoch=2, slots=3))
            cluster.boards[0].peer._transport.abort()
            await until(lambda: holding.draining is None)
            with pytest.raises(BoardError):
                await answer.end()

    on_board(go)


def test_an_agent_that_stops_lets_both_end(on_board):
    async def go(boards, holding, manager):
        first = plan_of(boards)
        await manager.take(first)
        async with ClusterClient.dial(first, boards.addresses) as cluster:
            answer = await Answer(cluster).begin()
            await move(manager, plan_of(boards, epoch=2, slots=3))
            boards.agents[0].stop()
            await answer.end()
            await until(lambda: boards._tasks[0].done())

    on_board(go)


def test_what_was_committed_is_reported_as_it_came_and_forgotten_by_a_restart(on_board):
    async def go(boards, holding, manager):
        plan = plan_of(boards)
        tag = {"certificate": "-----BEGIN CERTIFICATE-----\nMII=", "signature": "c2ln"}
        assert (await manager.board.status()).committed is None
        assert await manager.claim(None, 1) is None
        addresses = {"b0": ["127.0.0.1", 9], "b9": ["pi9.lan", 7710]}
        content = {"plan": plan.to_dict(), "addresses": addresses, "board": "b0", **tag, "more": 1}
        for odd in ({"certificate": "é"}, {"certificate": 5}, {"signature": "x" * 257}, {"certificate": "x" * 9000}):
            said = (await manager.board.ask(m.Assign({**content, **odd}), m.Assigned)).content["error"]
            assert "the plan of epoch 1 came with" in said
        assert (await manager.board.ask(m.Assign(content), m.Assigned)).content["error"] is None
        assert (await manager.board.status()).committed is None
        await manager.commit(1)
        committed = (await manager.board.status()).committed
        assert committed == {"plan": plan.to_dict(), "addresses": addresses, **tag}
        await boards.stop(0)
        await boards.start(0)
        async with Manager.of(boards) as again:
            status = await again.board.status()
            assert (status.epoch, status.committed) == (None, None)

    on_board(go)
