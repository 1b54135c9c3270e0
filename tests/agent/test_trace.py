"""A trace in pieces: what each layer gives, as steps among others' steps, sent no faster than the manager reads."""

import asyncio

import numpy as np
import pytest

from edgellm.errors import AnswerError
from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from tests.agent.test_admission import PROMPT, managers
from tests.fakes import HIDDEN, Boards, ask, generate, run, until


def piece(manager, seq_id, board, position=0, count=2, pass_len=7, layer=None, request=1 << 30, data=None):
    """A part of PROMPT to trace, as the first board or one behind it takes it."""
    first = board == manager.plan.boards[0]
    layer = manager.plan.section_of(board).start if layer is None else layer
    if data is None:
        ids = np.asarray(PROMPT[position : position + count], "<u4")
        data = ids.tobytes() if first else np.ones((count, HIDDEN), "<f4").tobytes()
    return m.Trace(manager.plan.epoch, layer, count, data, seq_id, position, pass_len, request)


async def opened(manager, seq_id, *boards):
    manager.subscribe(seq_id)
    slot = 0
    for board in boards or ("b0", "b1"):
        manager.open(board, seq_id, slot=slot)
        slot = (await manager.next(m.Opened, seq_id, board)).slot


def test_every_layers_output_in_pieces_is_what_the_whole_gives(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster, cluster.hold(PROMPT) as held:
                x, found = np.asarray(PROMPT, "<u4"), []
                for section, board in zip(plan.sections, cluster.boards, strict=True):
                    rows = []
                    for start, end in ((0, 5), (5, 6), (6, 7)):
                        layers = (section.start, section.end)
                        data = await held.trace(board, layers, start, 7, end - start, x[start:end].tobytes())
                        rows.append([np.frombuffer(d, "<f4").reshape(-1, HIDDEN) for d in data])
                    found += [np.concatenate(each) for each in zip(*rows, strict=True)]
                    x = found[-1]
            await until(lambda: [a.stage.engine.free_slots for a in boards.agents] == [2, 2])
            return found

    found = run(go())
    assert len(found) == 6 and all(each.shape == (7, HIDDEN) for each in found)
    assert [each[:, 0].tolist() for each in found] == [PROMPT] * 6
    assert [set(each[:, 1].tolist()) for each in found] == [{sum(range(i + 1))} for i in range(6)]


def test_answers_go_on_beside_a_trace_and_are_what_they_would_be(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=300)
            async with ClusterClient.dial(plan, boards.addresses) as cluster, cluster.hold(PROMPT) as held:
                answer = asyncio.create_task(ask(cluster, PROMPT, 200))
                traced = 0
                while not answer.done():
                    data = np.asarray(PROMPT[:5], "<u4").tobytes()
                    await held.trace(cluster.boards[0], (0, 3), 0, 7, 5, data)
                    traced += 1
                return traced, [c.token for c in await answer]

    traced, tokens = run(go())
    assert traced > 3 and tokens == generate(PROMPT, 200)


def test_a_slot_that_was_traced_counts_as_empty(tmp_path):
    async def go():
        async with Boards(tmp_path, 1) as boards:
            plan = await boards.form((0, 6), slots=1)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                await ask(cluster, PROMPT)
                async with cluster.hold(PROMPT) as held:
                    await held.trace(cluster.boards[0], (0, 6), 0, 7, 1, bytes(4))
                stats = {}
                got = await ask(cluster, PROMPT, stats=stats)
                return stats["b0"].reused_tokens, [c.token for c in got]

    assert run(go()) == (0, generate(PROMPT, 10))


def test_a_trace_stands_in_line_like_an_answer(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), slots=1)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=9, eos=())
                await anext(stream)
                async with cluster.hold(PROMPT) as held:
                    data = await held.trace(cluster.boards[0], (0, 3), 0, 7, 1, bytes(4))
                await stream.aclose()
                return len(data)

    assert run(go()) == 3


@pytest.mark.parametrize(
    "options, said",
    [
        ({"count": 6}, "trace of 6 tokens at once, at most 5 of them"),
        ({"layer": 1}, "trace from layer 1; the section starts at layer 0"),
        ({"position": 6, "count": 2, "data": bytes(8)}, "trace up to position 8 of 7; a slot holds 64 tokens"),
        ({"pass_len": 65}, "trace up to position 2 of 65; a slot holds 64 tokens"),
        ({"data": bytes(16)}, "trace of 2 tokens with 16 bytes; expected 4 a token"),
        ({"data": b"\x61\0\0\0" * 2}, "trace of token id 97; the vocabulary has 97"),
        ({"seq_id": 2}, "trace of sequence 2, which isn't open for it"),
    ],
)
def test_a_piece_that_cannot_be_traced_is_refused(tmp_path, options, said):
    async def go():
        async with managers(tmp_path, 1) as (_, manager):
            await opened(manager, 1, "b0")
            manager.clients["b0"].send(piece(manager, **{"seq_id": 1, "board": "b0", **options}))
            async with asyncio.timeout(5):
                return str(await manager.clients["b0"].lost)

    assert said in run(go())


def test_a_piece_whose_layers_would_be_too_many_bytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.checks.MAX_STEP_BYTES", 2 * 3 * HIDDEN * 4)

    async def go():
        async with managers(tmp_path, 1) as (_, manager):
            await opened(manager, 1, "b0")
            manager.clients["b0"].send(piece(manager, 1, "b0", count=3))
            async with asyncio.timeout(5):
                return str(await manager.clients["b0"].lost)

    assert "trace of 3 tokens at once, at most 2 of them" in run(go())


def test_one_piece_at_a_time_and_none_of_an_answer_or_of_others(tmp_path):
    async def go():
        async with managers(tmp_path, 4) as (boards, greedy, answering, thief, owner):
            await opened(greedy, 1)
            greedy.clients["b0"].send(piece(greedy, 1, "b0"))
            greedy.clients["b0"].send(piece(greedy, 1, "b0", position=2))
            said = [str(await greedy.clients["b0"].lost)]
            for client in greedy.clients.values():
                client.close()
            await opened(answering, 2)
            answering.start(2)
            await answering.next(m.Tokens, 2)
            answering.clients["b0"].send(piece(answering, 2, "b0"))
            said.append(str(await answering.clients["b0"].lost))
            await opened(owner, 3, "b0")
            thief.clients["b0"].send(piece(thief, 3, "b0"))
            said.append(str(await thief.clients["b0"].lost))
            return said

    two, answer, stolen = run(go())
    assert "two pieces of a trace of sequence 1 at once" in two
    assert "trace of sequence 2, which isn't open for it" in answer
    assert "trace of sequence 3, which isn't open for it" in stolen


def test_a_gap_and_an_error_in_the_model_end_the_sequence_with_a_reason(tmp_path):
    async def go():
        async with Boards(tmp_path, 1) as boards:
            plan = await boards.form((0, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                async with cluster.hold(PROMPT) as held:
                    with pytest.raises(AnswerError, match="board b0 .*step at position 4, expected at most 0"):
                        await held.trace(cluster.boards[0], (0, 6), 4, 7, 1, bytes(4))
                async with cluster.hold(PROMPT) as held:
                    boards.sections["b0"].trace = None
                    with pytest.raises(AnswerError, match="board b0 .*TypeError"):
                        await held.trace(cluster.boards[0], (0, 6), 0, 7, 1, bytes(4))
                return [c.token for c in await ask(cluster, PROMPT)]

    assert run(go()) == generate(PROMPT, 10)


def test_layers_wait_until_the_manager_has_read_so_a_pong_never_stands_behind_many(tmp_path):
    """Each layer is 64 KB here; a manager that reads slowly has one of them before its pong, not all six."""
    wide = 16384

    async def go():
        async with managers(tmp_path, 1, boards=1, cuts=(0, 6)) as (boards, manager):
            await opened(manager, 1, "b0")
            section, client = boards.sections["b0"], manager.clients["b0"]
            section.trace = lambda x, position, slot, pass_len: np.zeros((6, len(x), wide), np.float32)
            (agents_side,) = (p for p in boards.agents[0].connections.peers if p.name == client.peer.protocol._me.name)
            agents_side._transport.set_write_buffer_limits(high=1000)
            sent, most = agents_side.send, []

            def note(*messages):
                if isinstance(messages[0], m.Traced):
                    most.append(agents_side._transport.get_write_buffer_size())
                sent(*messages)

            agents_side.send = note
            client.peer.pause_reading()
            client.send(piece(manager, 1, "b0", count=1))
            await until(lambda: most)
            await until(lambda: agents_side.congested or len(most) == 6)
            client.peer.resume_reading()
            async with asyncio.timeout(10):
                await client.ask(m.AskStatus(), m.Status)  # a board that hangs would be given up
                await until(lambda: len(most) == 6)
            return most

    assert max(run(go())) <= 1000
