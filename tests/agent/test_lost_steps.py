"""A step that is lost ends its own sequence, and soon; a long prompt, a full house and a slow reader end nothing."""

import asyncio
import socket
import threading
from contextlib import aclosing

import pytest

from edgellm.agent.sequence import Progress
from edgellm.errors import BoardError
from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from tests.agent.test_admission import PROMPT, managers
from tests.fakes import Boards, ask, generate, run, until


class Watch:
    """The first board's look at a sequence, once a second."""

    def __init__(self, known=100):
        self.progress, self.now_s, self.known, self.computed = Progress(), 1000.0, known, 0
        self.progress.begin(self.now_s, known)

    def look(self, seconds=1, *, tokens=0, computed=0, busy=False):
        """Whether it is stuck at any of these looks; each time so much more is known and computed."""
        stuck = False
        for _ in range(seconds):
            self.now_s += 1.0
            self.known, self.computed = self.known + tokens, self.computed + computed
            stuck = stuck or self.progress.is_stuck(self.now_s, self.known, self.computed, busy)
        return stuck


def test_a_token_that_stays_away_is_noticed():
    watch = Watch()
    assert not watch.look(50, tokens=1, computed=1)
    assert not watch.look(20)
    assert watch.look(1)


def test_what_the_first_board_has_not_done_yet_is_not_lost():
    watch = Watch()
    assert not watch.look(300, busy=True)  # behind others' prompts
    assert not watch.look(300, busy=True, computed=5)


def test_the_other_boards_may_take_longer_over_a_prompt_than_the_first():
    watch = Watch()
    assert not watch.look(60, busy=True, computed=32)
    assert not watch.look(4 * 60 + 20)
    assert watch.look(1)


def test_after_a_long_prompt_a_token_is_due_as_soon_as_any():
    watch = Watch()
    assert not watch.look(60, busy=True, computed=32)
    assert not watch.look(100)
    assert not watch.look(1, tokens=1, computed=1)
    assert not watch.look(20)
    assert watch.look(1)


def lose(stage, seq_ids):
    """Have a board lose the steps of these sequences."""
    hidden = stage.hidden
    stage.hidden = lambda peer, message: None if message.seq_id in seq_ids else hidden(peer, message)


def test_only_the_sequence_whose_step_was_lost_ends_and_others_never_idle(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.stage._SWEEP_S", 0.02)
    monkeypatch.setattr("edgellm.agent.sequence.STALL_TIMEOUT_S", 1.0)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), slots=3, context=4000)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                tokens: list[list[int]] = []

                async def others(goes_on) -> None:
                    while goes_on():
                        tokens.append([])
                        other = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=300, eos=(), speculate=False)
                        async with aclosing(other):
                            async for chosen in other:
                                tokens[-1].append(chosen.token)
                                if not goes_on():
                                    break

                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=30, eos=())
                await anext(stream)
                first = boards.agents[0].stage
                (seq_id,) = [s for s, q in first._sequences.items() if q.max_tokens == 30]
                lose(boards.agents[1].stage, {seq_id})

                async def ended():
                    with pytest.raises(BoardError, match="board b0 .*no token came back .*a step was lost") as caught:
                        async for _ in stream:
                            pass
                    assert boards.agents[1].stage.engine.steps > 0 and not cluster.boards[1].idle_s
                    return caught.value

                failing = asyncio.create_task(ended())
                await others(lambda: not failing.done())
                await failing
                await until(lambda: [a.stage.engine.free_slots for a in boards.agents] == [3, 3])
                return tokens

    tokens = run(go(), 60)
    assert tokens and all(some == generate(PROMPT, len(some)) for some in tokens)


def test_an_answer_whose_manager_does_not_read_waits_alone(tmp_path, monkeypatch):
    """And is dropped after the write timeout; until then it takes a bounded memory."""


    async def go():
        async with managers(tmp_path, 2, slots=2, context=4000) as (boards, asleep, awake):
            asleep.subscribe(1)
            asleep.open("b0", 1, max_tokens=3900, logits=True)
            opened = await asleep.next(m.Opened, 1)
            asleep.open("b1", 1, slot=opened.slot, max_tokens=3900, logits=True)
            await asleep.next(m.Opened, 1)
            (side,) = {s.owner for s in boards.agents[1].stage._sequences.values()}
            side._transport.set_write_buffer_limits(high=1000)
            side._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            reader = asleep.clients["b1"].peer._transport.get_extra_info("socket")
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            buffered, send = [], side.send

            def note(*messages):
                send(*messages)
                buffered.append(side._transport.get_write_buffer_size())

            side.send = note
            monkeypatch.setattr("edgellm.wire.peer.WRITE_TIMEOUT_S", 0.5)
            asleep.clients["b1"].peer.pause_reading()
            asleep.start(1)
            await until(lambda: side.congested)
            cluster = ClusterClient(awake.plan, list(awake.clients.values()))
            tokens = [c.token for c in await ask(cluster, PROMPT, 300)]
            await until(lambda: boards.agents[1].stage.engine.free_slots == 2)  # without any word of its manager
            return tokens, max(buffered)

    tokens, most = run(go())
    assert tokens == generate(PROMPT, 300)
    assert most < 5000  # a token's logits more than the limit, and its pongs


def test_a_full_house_and_a_line_are_not_taken_for_a_stall(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.manager.client.PING_EVERY_S", 0.01)
    monkeypatch.setattr("edgellm.manager.client.STALL_TIMEOUT_S", 0.2)
    monkeypatch.setattr("edgellm.manager.board.PING_EVERY_S", 0.01)

    async def go():
        async with managers(tmp_path, 1, slots=1) as (boards, idle):
            idle.subscribe(1)
            idle.open("b0", 1)  # holds the slot and does nothing: all boards are idle
            await idle.next(m.Opened, 1)
            async with ClusterClient.dial(idle.plan, boards.addresses) as cluster:
                queued = []
                answer = asyncio.create_task(ask(cluster, PROMPT, queued=queued.append))
                await until(lambda: queued and all(b.idle_s > 0.2 for b in cluster.boards))
                assert not answer.done()
                idle.close(1)
                return [c.token for c in await answer]

    assert run(go()) == generate(PROMPT, 10)


def test_tokens_of_a_board_that_is_not_the_last_change_nothing_and_are_told(tmp_path):
    gate = threading.Event()

    async def go():
        async with Boards(tmp_path, 3, gates={"b2": gate}) as boards:
            plan = await boards.form((0, 2, 4, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                told = []
                answer = asyncio.create_task(ask(cluster, PROMPT, 4, tell=told.append))
                await until(lambda: boards.agents[0].stage.engine.steps and boards.agents[1].stage._sequences)
                ((seq_id, sequence),) = boards.agents[1].stage._sequences.items()
                for finish in (0, 1):
                    sequence.owner.send(m.Tokens(plan.epoch, seq_id, len(PROMPT), finish, (7, 8)))
                sequence.owner.send(m.Logits(plan.epoch, seq_id, len(PROMPT), bytes(8)))
                await until(lambda: told)
                gate.set()
                return told, await answer

    told, answer = run(go())
    assert [c.token for c in answer] == generate(PROMPT, 4) and {c.logits for c in answer} == {None}
    assert told == ["board b1 sends tokens, which only board b2 may choose; they are ignored"]


def test_an_opened_of_a_board_that_was_not_asked_is_ignored(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), slots=1)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                holding = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=30, eos=())
                await anext(holding)
                answer = asyncio.create_task(ask(cluster, [9, 9]))
                await until(lambda: len(cluster.boards[1]._sequences) == 2)
                seq_id = list(cluster.boards[1]._sequences)[-1]
                agents_side = next(iter(boards.agents[1].stage._sequences.values())).owner
                agents_side.send(m.Opened(plan.epoch, seq_id, 2, True, 0))
                await cluster.boards[1].status()
                assert not answer.done()
                await holding.aclose()
                return [c.token for c in await answer]

    assert run(go()) == generate([9, 9], 10)


def test_where_an_answer_began_is_known_after_a_replay(tmp_path):
    """What counts the answer's tokens, such as its length or a penalty, counts those before the replay too."""

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            done = generate(PROMPT, 4)
            seen = []
            for agent in boards.agents:
                admit = agent.stage.admit

                def note(sequence, admit=admit):
                    seen.append((sequence.prompt_len, sequence.began, sequence.max_tokens))
                    admit(sequence)

                agent.stage.admit = note
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                got = await ask(cluster, PROMPT + done, 10, began=len(PROMPT))
            return [c.token for c in got], got[-1].finish, seen

    tokens, finish, seen = run(go())
    assert generate(PROMPT, 4) + tokens == generate(PROMPT, 10) and finish == "length"
    assert set(seen) == {(len(PROMPT) + 4, len(PROMPT), 10)} and len(seen) == 2
