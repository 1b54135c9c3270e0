"""Agents of the fake model on loopback: the answer crosses splits, and nothing a peer does disturbs it."""

import asyncio
import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from edgellm.errors import AnswerError, BoardError, BusyError
from edgellm.manager.board import BoardClient
from edgellm.manager.client import ClusterClient
from edgellm.plan import Section
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from tests.agent.hostile import BEFORE, Stranger, until
from tests.fakes import HIDDEN, VOCAB, Boards, ask, assign, connect_all, generate, make_manifest, make_plan, run

PROMPT = [5, 17, 3, 42, 8, 1, 90, 33, 2, 11, 64, 7]  # longer than a chunk of 5


@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 1, 5, 6), (0, 1, 2, 3, 6)])
def test_the_split_answers_as_one(tmp_path, cuts):
    async def go():
        async with Boards(tmp_path, len(cuts) - 1) as boards:
            plan = await boards.form(cuts)
            stats = {}
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                chosen = await ask(cluster, PROMPT, stats=stats, speculate=False)
            return chosen, stats, boards

    chosen, stats, boards = run(go())
    assert [c.token for c in chosen] == generate(PROMPT, 10)
    assert [c.position for c in chosen] == list(range(12, 22))
    assert [c.finish for c in chosen] == [""] * 9 + ["length"]
    assert set(stats) == set(boards.sections)
    assert {(s.prefill_tokens, s.decode_steps) for s in stats.values()} == {(12, 9)}
    # Chunks of 5, 5, 2 of a pass of 12, then one token at a time.
    assert boards.sections["b0"].calls[:4] == [(0, 5, 12), (5, 5, 12), (10, 2, 12), (12, 1, 13)]


def test_several_sequences_at_once_do_not_mix(tmp_path):
    async def go():
        prompts = [[i, 2 * i + 1, 7] * (i + 1) for i in range(4)]
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 2, 4, 6), slots=4)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                answers = await asyncio.gather(*(ask(cluster, p, 20) for p in prompts))
            return prompts, answers

    prompts, answers = run(go())
    for prompt, answer in zip(prompts, answers, strict=True):
        assert [c.token for c in answer] == generate(prompt, 20)


def test_eos_context_and_stop_end_an_answer(tmp_path):
    expected = generate(PROMPT, 60)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=20)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                eos = await ask(cluster, PROMPT, eos=(expected[4],))
                context = await ask(cluster, PROMPT, max_tokens=100)
                one = await ask(cluster, PROMPT, max_tokens=1)
            return eos, context, one

    eos, context, one = run(go())
    assert [c.token for c in eos] == expected[: expected.index(expected[4]) + 1] and eos[-1].finish == "eos"
    assert [c.token for c in context] == expected[:9] and context[-1].finish == "context"
    assert [c.finish for c in one] == ["length"]


def test_a_full_board_is_busy_and_free_again_when_the_answer_is_left(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), slots=1)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                running = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=40, eos=())
                first = await anext(running)
                with pytest.raises(BusyError, match="board b0 is busy: all 1 slots are taken"):
                    await ask(cluster, PROMPT, wait_s=0)
                await running.aclose()  # as Ctrl-C does
                again = await ask(cluster, PROMPT)
            return first, again

    first, again = run(go())
    assert [c.token for c in again] == generate(PROMPT, 10) and first.token == again[0].token


def test_a_manager_that_disappears_frees_its_slots(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), slots=1)
            gone = ClusterClient(plan, await connect_all({b: boards.addresses[b] for b in plan.boards}))
            stream = gone.generate(PROMPT, sampling=Sampling(), max_tokens=50, eos=())
            await anext(stream)
            for board in gone.boards:
                board.peer._transport.abort()
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                answer = await ask(cluster, PROMPT)
            with pytest.raises(BoardError, match="board b"):
                while True:
                    await anext(stream)
            for board in gone.boards:
                board.close()
            return answer

    assert [c.token for c in run(go())] == generate(PROMPT, 10)


def test_a_section_is_reassigned_between_two_questions(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            answers = []
            for epoch, cuts in ((1, (0, 3, 6)), (2, (0, 1, 6)), (3, (0, 2, 4, 6))):
                plan = await boards.form(cuts, epoch=epoch)
                async with ClusterClient.dial(plan, boards.addresses) as cluster:
                    answers.append([c.token for c in await ask(cluster, PROMPT)])
            return answers

    assert run(go()) == [generate(PROMPT, 10)] * 3


def test_another_epoch_is_refused_with_both_numbers(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            old = await boards.form((0, 3, 6), epoch=1)
            await boards.form((0, 2, 6), epoch=2)
            async with ClusterClient.dial(old, boards.addresses) as cluster:
                with pytest.raises(BoardError, match="holds epoch 2, not epoch 1"):
                    await ask(cluster, PROMPT)
            with pytest.raises(BoardError, match="b0 holds epoch 2; it was claimed for epoch 1 in place of epoch 2"):
                await boards.form((0, 3, 6), epoch=1)

    run(go())


def test_a_long_rope_sequence_is_replayed_from_the_start_when_it_crosses_the_switch(tmp_path):
    async def go():
        async with Boards(tmp_path, 2, make_manifest(rope_switch_len=15)) as boards:
            plan = await boards.form((0, 3, 6), chunk=8)
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                chosen = await ask(cluster, PROMPT, speculate=False)
            return chosen, boards.sections["b1"].calls

    chosen, calls = run(go())
    assert [c.token for c in chosen] == generate(PROMPT, 10, switch=15) != generate(PROMPT, 10)
    # positions 12, 13, 14 are decoded; token 15 makes the sequence 16 long: all again under the other factors
    assert calls == [(0, 8, 12), (8, 4, 12), (12, 1, 13), (13, 1, 14), (14, 1, 15), (0, 8, 16), (8, 8, 16)] + [
        (p, 1, p + 1) for p in range(16, 21)
    ]


def test_a_board_that_dies_in_mid_answer_is_named_and_the_others_free_the_sequence(tmp_path):
    gate = threading.Event()
    gate.set()

    async def go():
        async with Boards(tmp_path, 3, gates={"b2": gate}) as boards:
            plan = await boards.form((0, 2, 4, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=50, eos=())
                await anext(stream)
                await boards.stop(1)
                with pytest.raises(BoardError, match="board b1") as caught:
                    while True:
                        await anext(stream)
                await until(lambda: [boards.agents[i].stage.engine.free_slots for i in (0, 2)] == [2, 2])
                return caught.value.board

    assert run(go()) == "b1"


def test_a_board_whose_loop_hangs_is_named_within_the_pong_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.manager.board.PONG_TIMEOUT_S", 0.3)
    monkeypatch.setattr("edgellm.manager.board.PING_EVERY_S", 0.1)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=50, eos=())
                await anext(stream)
                boards.agents[1].connections._on_message = lambda peer, message: None
                for peer in boards.agents[1].connections.peers:
                    peer._on_message = lambda peer, message: None
                with pytest.raises(BoardError, match="board b1 .* has not answered for 0.3 s"):
                    while True:
                        await anext(stream)

    run(go())


def test_a_board_whose_section_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.manager.board.STEP_TIMEOUT_S", 0.3)
    monkeypatch.setattr("edgellm.manager.board.PING_EVERY_S", 0.05)
    gate = threading.Event()

    async def go():
        async with Boards(tmp_path, 2, gates={"b1": gate}) as boards:
            try:
                plan = await boards.form((0, 3, 6))
                async with ClusterClient.dial(plan, boards.addresses) as cluster:
                    with pytest.raises(BoardError, match="board b1 .* has finished no step for 0.3 s"):
                        await ask(cluster, PROMPT)
            finally:
                gate.set()

    run(go())


def test_stopping_lets_a_running_answer_end_and_takes_no_new_one(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(), max_tokens=30, eos=())
                tokens = [(await anext(stream)).token]
                boards.agents[0].stop()
                with pytest.raises(BoardError, match="b0 .*stopping"):
                    await ask(cluster, PROMPT)
                tokens += [c.token async for c in stream]
            async with asyncio.timeout(5):
                await boards._tasks[0]  # run() returned: exit 0
            return tokens

    assert run(go()) == generate(PROMPT, 30)


def test_status_tells_capacity_and_section(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            before = [await c.status() for c in await connect_all(boards.addresses)]
            await boards.form((0, 3, 6), slots=3)
            return before, [await c.status() for c in await connect_all(boards.addresses)]

    before, after = run(go())
    assert [b.section for b in before] == [None, None]
    assert before[0].capacity.board == "b0" and before[0].capacity.layer_s == 0.001
    held = [s.section for s in after]
    assert [(h.start, h.end, h.free_slots) for h in held] == [(0, 3, 3), (3, 6, 3)]


def test_a_plan_for_other_shards_or_another_board_is_refused(tmp_path):
    async def go():
        async with Boards(tmp_path, 1) as boards:
            plan = make_plan(boards.manifest, (0, 6))
            (client,) = await connect_all(boards.addresses)
            with pytest.raises(BoardError, match="Push the same shards"):
                await assign(replace(plan, manifest_sha256="f" * 64), boards.addresses, [client])
            (client,) = await connect_all(boards.addresses)
            client.name = "b7"
            with pytest.raises(BoardError, match="this is board b0"):
                plan = replace(plan, sections=(Section("b7", 0, 6),))
                await assign(plan, {"b7": boards.addresses["b0"]}, [client])
            client.close()

    run(go())


def test_logprobs_come_with_each_token_and_are_those_of_the_logits(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                sampling = Sampling(presence_penalty=1.5)
                stream = cluster.generate(PROMPT, sampling=sampling, max_tokens=12, eos=(), logprobs=2, logits=True)
                return [c async for c in stream]

    chosen = run(go())
    assert [c.token for c in chosen] == generate(PROMPT, 12, Sampling(presence_penalty=1.5))
    total = math.log(math.e + VOCAB - 1)  # of a logit of 1, and zeros
    for c in chosen:
        logits = np.frombuffer(c.logits, "<f4")
        best = int(logits.argmax())
        assert [token for token, _ in c.logprobs] == [c.token, best, int(best == 0)]
        assert [p for _, p in c.logprobs] == pytest.approx([float(logits[c.token]) - total, 1 - total, -total])


def test_a_bias_of_a_token_that_the_model_has_not_is_refused(tmp_path):
    async def go():
        async with Boards(tmp_path, 1) as boards:
            plan = await boards.form((0, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                stream = cluster.generate(PROMPT, sampling=Sampling(logit_bias={97: 1}), max_tokens=2, eos=())
                with pytest.raises(AnswerError, match="logit-bias of token 97; the vocabulary has 97"):
                    await anext(stream)

    run(go())


class Turnstile:
    """A gate that lets a given number of steps through."""

    def __init__(self, steps):
        self._steps = threading.Semaphore(steps)

    def let(self, steps):
        for _ in range(steps):
            self._steps.release()

    def wait(self, timeout):
        return self._steps.acquire(timeout=timeout)


def test_the_next_board_works_on_a_chunk_while_this_one_works_on_the_next(tmp_path):
    gate = Turnstile(1)

    async def go():
        async with Boards(tmp_path, 2, gates={"b0": gate}) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                answer = asyncio.create_task(ask(cluster, PROMPT))
                await until(lambda: boards.sections["b1"].calls)  # b0 is at its second chunk
                seen = list(boards.sections["b0"].calls), list(boards.sections["b1"].calls)
                gate.let(30)
                return seen, [c.token for c in await answer]

    (first, second), tokens = run(go())
    assert first == [(0, 5, 12)] and second == [(0, 5, 12)]
    assert tokens == generate(PROMPT, 10)


def test_a_step_that_is_larger_than_a_chunk_is_computed_in_chunks(tmp_path):
    """No plan reserves memory for more, and the board before may be any program."""

    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6), context=64, chunk=5)
            board = await BoardClient("b1", *boards.addresses["b1"]).connect()
            events = asyncio.Queue()
            board.subscribe(9, events)
            board.send(m.Open(plan.epoch, 9, {"plan": plan.digest, "max_tokens": 3, "slot": 0}, tuple(PROMPT)))
            assert isinstance((await board.receive(events, 5.0, "nothing"))[1], m.Opened)
            stranger = await Stranger.dial(boards.agents[1], BEFORE)
            x = np.zeros((64, HIDDEN), "<f4")
            stranger.send(m.Hidden(plan.epoch, 9, 0, 64, 1, (1,) * 64, x.tobytes()))
            assert isinstance((await board.receive(events, 5.0, "nothing"))[1], m.Tokens)
            await Stranger.hang_up()
            board.close()
            return boards.sections["b1"].calls

    calls = run(go())
    assert [(position, count) for position, count, _ in calls] == [(p, min(5, 64 - p)) for p in range(0, 64, 5)]


def test_a_cancelled_answer_stops_the_boards(tmp_path):
    gate = Turnstile(10)

    async def go():
        async with Boards(tmp_path, 2, gates={"b1": gate}) as boards:
            plan = await boards.form((0, 3, 6), context=2000)
            engines = [a.stage.engine for a in boards.agents]
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                answer = asyncio.create_task(ask(cluster, PROMPT, 1900))
                await until(lambda: engines[1].steps == 10 and engines[1].step_s > 0)
                answer.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await answer
                await until(lambda: not any(a.stage.running for a in boards.agents))
                gate.let(100)
                await until(lambda: not any(e.waiting for e in engines))
                before = [e.steps for e in engines]
                again = await ask(cluster, PROMPT, speculate=False, reuse=False)
                await until(lambda: not any(e.waiting for e in engines))
                return before, [e.steps for e in engines], [c.token for c in again]

    before, after, again = run(go())
    assert before[1] == 11  # the step that ran came to its end
    assert [b - a for a, b in zip(before, after, strict=True)] == [12, 12]  # 3 chunks, 9 tokens, and nothing else
    assert again == generate(PROMPT, 10)
