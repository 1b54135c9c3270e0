"""Who gets which slot, on boards: in order, the same one everywhere, and free as soon as an answer has ended."""

import asyncio
import threading
from random import Random

import pytest

from edgellm.errors import BoardError, BusyError
from edgellm.manager.client import ClusterClient
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from tests.agent.managers_by_hand import PROMPT, anext_failure, managers
from tests.fakes import Boards, ask, generate, run, until

# The line


def test_two_askers_at_one_slot_are_both_answered_whoever_is_nearer_to_which_board(tmp_path):
    async def go():
        answers = []
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 2, 4, 6), slots=1)

            async def one(far):
                async with ClusterClient.dial(plan, boards.addresses) as cluster:
                    board, loop = cluster.boards[far], asyncio.get_running_loop()
                    send = board.send
                    board.send = lambda x: loop.call_later(0.003, send, x) if isinstance(x, m.Open) else send(x)
                    answers.append([c.token for c in await ask(cluster, PROMPT, 3)])

            for _ in range(10):
                await asyncio.gather(one(1), one(2))
        return answers

    assert run(go()) == [generate(PROMPT, 3)] * 20


def test_slots_are_given_in_the_order_of_the_line_and_positions_are_told(tmp_path):
    async def go():
        async with managers(tmp_path, 1, slots=1) as (_, manager):
            manager.subscribe(1, 2, 3, 4)
            told = []
            for seq_id in (1, 2, 3, 4):
                manager.open("b0", seq_id, wait_s=30)
            await manager.next(m.Opened, 1)
            for seq_id in (2, 3, 4):
                told.append((seq_id, (await manager.next(m.Queued, seq_id)).position))
            manager.close(3)  # was tired of waiting
            told.append((4, (await manager.next(m.Queued, 4)).position))
            manager.close(1)
            await manager.next(m.Opened, 2)
            told.append((4, (await manager.next(m.Queued, 4)).position))
            manager.close(2)
            await manager.next(m.Opened, 4)
            return told

    assert run(go()) == [(2, 1), (3, 2), (4, 3), (4, 2), (4, 1)]


def test_a_free_slot_is_not_for_who_comes_later_than_the_line(tmp_path):
    gate = threading.Event()

    async def go():
        async with managers(tmp_path, 1, slots=1, gates={"b0": gate}) as (boards, manager):
            manager.subscribe(1, 2, 3)
            manager.open("b0", 1)
            opened = await manager.next(m.Opened, 1)
            manager.open("b1", 1, slot=opened.slot)
            await manager.next(m.Opened, 1)
            manager.start(1)
            engine = boards.agents[0].stage.engine
            await until(lambda: engine.step_s)
            manager.open("b0", 2, wait_s=30)
            await manager.next(m.Queued, 2)
            manager.close(1)  # in mid-step: the slot is free when the engine says so
            gate.set()
            manager.open("b0", 3, wait_s=30)
            assert (await manager.next(m.Opened, 2)).slot == 0
            manager.close(2)
            await manager.next(m.Opened, 3)

    run(go())


def test_who_does_not_want_to_wait_or_has_waited_for_long_enough_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.stage._SWEEP_S", 0.01)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), slots=1)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=5, eos=(), logits=True)
                await anext(stream)
                boards.agents[0].stage.tokens = lambda message: None  # it goes on for long
                with pytest.raises(BusyError, match="board b0 is busy: all 1 slots are taken; ask again"):
                    await ask(cluster, PROMPT, wait_s=0)
                positions = []
                with pytest.raises(BusyError, match="none of 1 slots became free within 0.05 s"):
                    await ask(cluster, PROMPT, wait_s=0.05, queued=positions.append)
                del boards.agents[0].stage.tokens
                await stream.aclose()
                return positions, [c.token for c in await ask(cluster, PROMPT)]

    positions, tokens = run(go())
    assert positions == [1] and tokens == generate(PROMPT, 10)


def test_two_hundred_askers_at_four_slots_of_three_boards(tmp_path):
    """None is lost, doubled or overtaken."""

    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 2, 4, 6), slots=4)
            order, first = [], boards.agents[0].stage
            admit = first.admit

            def note(sequence):
                order.append(tuple(sequence.ids))
                admit(sequence)

            first.admit = note
            async with ClusterClient.dial(plan, boards.addresses) as cluster:

                async def one(i):
                    ids = [i % 90 + 1, i // 90, 3, *range(i % 7)]
                    return ids, [c.token for c in await ask(cluster, ids, 4 + i % 5)]

                answers = await asyncio.gather(*(one(i) for i in range(200)))
                await until(lambda: [a.stage.engine.free_slots for a in boards.agents] == [4, 4, 4])
            return answers, order

    answers, order = run(go(), 60)
    assert all(tokens == generate(ids, len(tokens)) for ids, tokens in answers)
    assert [len(tokens) for _, tokens in answers] == [4 + i % 5 for i in range(200)]
    assert order == [tuple(ids) for ids, _ in answers]


# The same slot everywhere


def test_all_boards_have_a_sequence_in_the_slot_of_the_same_number(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan, seen = await boards.form((0, 2, 4, 6), slots=3), []
            engines = [a.stage.engine for a in boards.agents]
            async with ClusterClient.dial(plan, boards.addresses) as cluster:

                async def one(i):
                    async for chosen in cluster.generate([i + 1, 2], sampling=Sampling(), max_tokens=6, eos=()):
                        if chosen.position == 4:
                            held = [{s: h.slot.number for s, h in engine._held.items()} for engine in engines]
                            common = held[0].keys() & held[1].keys() & held[2].keys()
                            seen.append(all(held[0][s] == held[1][s] == held[2][s] for s in common))

                await asyncio.gather(*(one(i) for i in range(30)))
            return seen

    assert run(go()) == [True] * 30


def test_what_one_slot_has_all_boards_reuse(tmp_path):
    """Whichever order closes reach the boards in: the first one chooses."""

    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 2, 4, 6), slots=3, context=200)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                texts = [[i, *range(50)] for i in range(3)]
                delayed = cluster.boards[1]
                send, loop = delayed.send, asyncio.get_running_loop()
                delays = iter([0.005, 0.0, 0.003] * 9)
                delayed.send = lambda x: loop.call_later(next(delays), send, x) if isinstance(x, m.Close) else send(x)
                for text in texts:
                    text += [c.token for c in await ask(cluster, text, 5)]
                reused = []
                for _ in range(3):

                    async def follow(text):
                        stats = {}
                        got = await ask(cluster, [*text, 9], 5, stats=stats)
                        assert [c.token for c in got] == generate([*text, 9], 5)
                        reused.extend(s.reused_tokens for s in stats.values())
                        text += [9, *(c.token for c in got)]

                    before = [len(text) for text in texts]
                    await asyncio.gather(*(follow(text) for text in texts))
                    assert sorted(reused) == sorted(n - 1 for n in before for _ in range(3))
                    reused.clear()

    run(go())


def test_the_slot_of_an_answer_that_has_ended_is_free_though_its_manager_sleeps(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.stage._SWEEP_S", 0.01)
    monkeypatch.setattr("edgellm.agent.admission._ASLEEP_S", 0.05)

    async def go():
        async with managers(tmp_path, 2, boards=3, cuts=(0, 2, 4, 6), slots=1) as (boards, sleepy, other):
            sleepy.subscribe(1)
            sleepy.open("b0", 1)
            opened = await sleepy.next(m.Opened, 1)
            for board in ("b1", "b2"):
                sleepy.open(board, 1, slot=opened.slot)
                await sleepy.next(m.Opened, 1, board)
            sleepy.start(1)
            while not (await sleepy.next(m.Tokens, 1)).finish:
                pass
            cluster = ClusterClient(other.plan, list(other.clients.values()))
            tokens = [c.token for c in await ask(cluster, PROMPT)]
            sleepy.close(1)  # it wakes up, and still gets what was done for it
            stats = {board: (await sleepy.next(m.Closed, 1, board)).stats for board in ("b0", "b1", "b2")}
            return tokens, {board: told.get("prefill_tokens") for board, told in stats.items()}

    tokens, stats = run(go())
    assert tokens == generate(PROMPT, 10) and stats == dict.fromkeys(("b0", "b1", "b2"), len(PROMPT))


def test_an_answer_that_goes_on_keeps_its_slot_whoever_asks_for_that(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.stage._SWEEP_S", 0.01)
    monkeypatch.setattr("edgellm.agent.admission.SLOT_TIMEOUT_S", 0.1)

    async def go():
        async with managers(tmp_path, 1, slots=2, context=2000) as (boards, wrong):
            wrong.subscribe(7)
            async with ClusterClient.dial(wrong.plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=1500, eos=())
                tokens = [(await anext(stream)).token]
                (taken,) = (h.slot.number for h in boards.agents[1].stage.engine._held.values())
                wrong.open("b1", 7, slot=taken)
                failed = await anext_failure(wrong, 7)
                tokens += [c.token async for c in stream]
                return failed, tokens

    failed, tokens = run(go())
    assert "is taken by another answer for over 0.1 s" in failed.reason and m.FAILURES[failed.code] == "busy"
    assert tokens == generate(PROMPT, 1500)


def test_who_wants_a_taken_slot_again_and_again_takes_a_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.door.MAX_LINE", 40)

    async def go():
        async with managers(tmp_path, 2, slots=1) as (boards, manager, greedy):
            manager.subscribe(1, 2)
            manager.open("b1", 1, slot=0)
            await manager.next(m.Opened, 1)
            greedy.subscribe(*range(100, 200))
            for seq_id in range(100, 200):
                greedy.open("b1", seq_id, slot=0)
            failed = await anext_failure(greedy, 140)
            waiting = boards.agents[1].stage._door._waiting
            lists = sum(len(sequence.ids) for sequence, _ in waiting.values())
            for seq_id in range(100, 140):
                greedy.close(seq_id, "b1")
            await until(lambda: not waiting)
            manager.close(1, "b1")
            manager.open("b1", 2, slot=0)
            await manager.next(m.Opened, 2)
            return failed.reason, lists

    reason, lists = run(go())
    assert "40 prompts of 280 tokens wait already" in reason and lists == 0


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "slot is None, expected a number from 0 to 1"),
        ({"slot": 2}, "slot is 2, expected a number from 0 to 1"),
        ({"slot": -1}, "slot is -1, expected a number from 0 to 1"),
        ({"slot": True}, "slot is True, expected a number from 0 to 1"),
        ({"slot": 0, "wait_s": -1}, "wait_s is -1, expected seconds from 0"),
        ({"slot": 0, "wait_s": "long"}, "wait_s is 'long', expected seconds from 0"),
        ({"slot": 0, "began": 8}, "began is 8, expected a number from 1 to 7"),
        ({"slot": 0, "began": 2}, "max_tokens is 5, and the answer has 5 tokens already"),
        ({"slot": 0, "logprobs": 21}, "logprobs is 21, expected a number from 0 to 20"),
        ({"slot": 0, "cache": 7}, "cache is 7, expected a text of at most 64 letters"),
        ({"slot": 0, "cache": "x" * 65}, "expected a text of at most 64 letters"),
        ({"slot": 0, "pool": "max"}, "pool is 'max', expected one of mean, last, cls, weighted_mean"),
        ({"slot": 0, "constraint": "json"}, "constraint is 'json', expected an object with kind and source"),
        ({"slot": 0, "constraint": {"kind": "xml", "source": "a"}}, "kind is 'xml', expected one of json, json_schema"),
        ({"slot": 0, "constraint": {"kind": "regex", "source": ""}}, "regex has the source '', expected a text"),
        ({"slot": 0, "constraint": {"kind": "regex", "source": "a" * 49153}}, "regex of 49153 bytes, at most 49152"),
    ],
)
def test_an_open_that_makes_no_sense_is_refused(tmp_path, options, said):
    async def go():
        async with managers(tmp_path, 1) as (_, manager):
            manager.subscribe(1)
            manager.open("b1", 1, **options)
            return await anext_failure(manager, 1)

    failed = run(go())
    assert said in failed.reason and m.FAILURES[failed.code] == "error"


@pytest.mark.parametrize("seed", range(6))
def test_whatever_managers_do_others_are_answered_and_every_slot_comes_back(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("edgellm.agent.stage._SWEEP_S", 0.01)
    monkeypatch.setattr("edgellm.agent.admission._ASLEEP_S", 0.05)
    monkeypatch.setattr("edgellm.agent.admission.SLOT_TIMEOUT_S", 0.5)

    async def go():
        random = Random(seed)
        async with managers(tmp_path, 3, boards=3, cuts=(0, 2, 4, 6), slots=3) as (boards, *wild):
            plan = wild[0].plan
            answers = asyncio.gather(*(answered(boards, plan, [i + 1, 2, 3], 12) for i in range(12)))
            for _ in range(300):
                manager, seq_id = random.choice(wild), random.randrange(1, 9)
                board = random.choice(plan.boards)
                match random.randrange(6):
                    case 0:
                        manager.open("b0", seq_id, PROMPT[: random.randrange(1, 7)], wait_s=random.choice([0, 0.01, 5]))
                    case 1:
                        manager.open(board, seq_id, slot=random.randrange(3), reuse=random.randrange(9))
                    case 2:
                        manager.start(seq_id, random.randrange(3))
                    case 3:
                        manager.close(seq_id, board)
                    case 4:
                        manager.close(seq_id)
                    case 5:
                        await asyncio.sleep(random.random() * 0.003)
            for manager in wild:
                for seq_id in range(1, 9):
                    manager.close(seq_id)
            said = await answers
            await until(lambda: [a.stage.engine.free_slots for a in boards.agents] == [3, 3, 3])
            doors = [a.stage._door for a in boards.agents]
            assert not any(door._waiting or len(door._door) or door._door._tokens for door in doors)
            return said

    assert run(go()) == [generate([i + 1, 2, 3], 12) for i in range(12)]


async def answered(boards, plan, prompt, count):
    """An answer on connections of its own, tried again where a slot was taken away."""
    async with ClusterClient.dial(plan, boards.addresses) as cluster:
        while True:
            try:
                return [c.token for c in await ask(cluster, prompt, count)]
            except BoardError as e:
                assert "slot" in str(e) and "was lost" not in str(e), e
