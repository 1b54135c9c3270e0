"""The engine: slots, its thread, and what it makes of errors. Which steps run when: test_scheduler.py."""

import threading
import time

import numpy as np
import pytest

from edgellm.agent.engine import Engine
from edgellm.agent.steps import Step
from edgellm.errors import BusyError
from tests.fakes import NamedSlot

CHUNK = 32


class Recorder:
    """A section that records what it is asked, and waits at `gate`."""

    def __init__(self, batches=False, reuses=True):
        self.batches, self.reuses, self.memories, self.reuses_any = batches, reuses, (), True
        self.gate = threading.Event()
        self.gate.set()
        self.calls = []
        self.together = []

    def forward_many(self, steps):
        assert self.gate.wait(10)
        self.together.append(len(steps))
        if any(s.x[0] == 666 for s in steps):
            raise RuntimeError("broken")
        self.calls += [(s.slot, s.position, len(s.x)) for s in steps]
        return [s.x for s in steps]


def make(slots=2, congested=lambda: False, batches=False, groups=0, reuses=True):
    section, delivered = Recorder(batches, reuses), []
    done = threading.Condition()

    def deliver(outcomes):
        with done:
            delivered.extend(outcomes)
            done.notify_all()

    engine = Engine(section, [NamedSlot(f"slot{i}") for i in range(slots)], deliver, congested, groups, CHUNK)

    def wait_for(count):
        with done:
            assert done.wait_for(lambda: len(delivered) >= count, 10), delivered

    return engine, section, delivered, wait_for


def running(engine):
    """Wait until a step runs."""
    until(lambda: engine.step_s > 0)


def until(condition):
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.001)


def end(engine):
    engine.stop()
    engine.join()


def step(seq_id, position, count=1, value=0):
    return Step(seq_id, np.full(count, value), position, position + count, 1, (value,) * count)


def test_steps_of_a_sequence_run_in_order_in_its_own_slot():
    engine, section, delivered, wait_for = make()
    engine.open(1)
    engine.open(2)
    for s in (step(1, 0, 3), step(2, 0, 2), step(1, 3), step(2, 2)):
        assert engine.submit(s)
    wait_for(4)
    end(engine)
    by_slot = {}
    for slot, position, count in section.calls:
        by_slot.setdefault(slot, []).append((position, count))
    assert sorted(by_slot.values()) == [[(0, 2), (2, 1)], [(0, 3), (3, 1)]]
    assert engine.steps == 4


def test_a_full_board_says_busy_and_a_closed_sequence_makes_room():
    engine, *_ = make(slots=1)
    engine.open(1)
    with pytest.raises(BusyError, match="all 1 slots"):
        engine.open(2)
    engine.close(1)
    engine.open(2)
    end(engine)


def test_a_gap_is_refused_and_an_old_position_is_computed_again():
    engine, _, delivered, wait_for = make()
    engine.open(1)
    engine.submit(step(1, 0, 4))
    with pytest.raises(ValueError, match="position 5, expected at most 4"):
        engine.submit(step(1, 5))
    engine.submit(step(1, 2))
    engine.submit(step(1, 4))
    wait_for(3)
    end(engine)
    assert [o.step.position for o in delivered] == [0, 2, 4]


def test_a_step_of_an_unknown_sequence_is_not_taken():
    engine, *_ = make()
    assert engine.submit(step(9, 0)) is False
    end(engine)


def test_closing_in_mid_step_frees_the_slot_only_after_the_step():
    engine, section, delivered, _ = make(slots=1)
    section.gate.clear()
    engine.open(1)
    engine.submit(step(1, 0, 4))
    engine.submit(step(1, 4, 4))
    running(engine)
    assert engine.waiting == 2
    engine.close(1)
    with pytest.raises(BusyError):
        engine.open(2)
    section.gate.set()
    until(lambda: engine.free_slots)
    engine.open(2)
    end(engine)
    assert len(section.calls) == 1  # the second chunk was dropped
    assert delivered == []


def test_a_congested_link_holds_prompt_chunks_and_lets_decode_steps_through():
    held, asked = threading.Event(), threading.Semaphore(0)
    held.set()

    def congested():
        asked.release()
        return held.is_set()

    engine, section, delivered, wait_for = make(congested=congested)
    engine.open(1)
    engine.open(2)
    engine.submit(step(2, 0, 33))
    for _ in range(5):  # it looks again and again
        assert asked.acquire(timeout=10)
    assert section.calls == []
    engine.submit(step(1, 0))
    wait_for(1)
    held.clear()
    wait_for(3)
    end(engine)
    assert [c[2] for c in section.calls] == [1, 32, 1]


def test_steps_gather_until_they_are_enough():
    engine, section, _, wait_for = make(slots=2, batches=True, groups=1)
    for seq_id in (1, 2):
        engine.open(seq_id)
        engine.submit(step(seq_id, 0, 4))
    wait_for(2)
    engine._scheduler._batch_s = 60.0  # as if a batch took so long
    before = len(section.together)
    for seq_id in (1, 2):
        engine.submit(step(seq_id, 4))
    wait_for(4)
    engine._scheduler._batch_s = 60.0
    for seq_id in (1, 2):  # each waits for the other, however slowly it comes
        engine.submit(step(seq_id, 5))
    wait_for(6)
    end(engine)
    assert section.together[before:][-1] == 2


def test_an_error_in_a_step_is_delivered_and_the_engine_goes_on():
    engine, _, delivered, wait_for = make()
    engine.open(1)
    engine.submit(step(1, 0, 2, value=666))
    engine.submit(step(1, 2))
    wait_for(2)
    end(engine)
    assert str(delivered[0].error) == "broken" and delivered[0].result is None
    assert delivered[1].error is None and delivered[1].result is not None


def test_stats_tell_prefill_from_decode():
    engine, _, _, wait_for = make()
    engine.open(1)
    engine.submit(step(1, 0, 5))
    engine.submit(step(1, 5))
    engine.submit(step(1, 6))
    wait_for(3)
    stats = engine.close(1)
    end(engine)
    assert (stats.prefill_tokens, stats.decode_steps) == (5, 2)
    assert stats.prefill_s > 0 and stats.decode_s > 0


def test_results_that_cannot_be_delivered_end_their_sequences_and_nothing_else():
    engine, _, delivered, wait_for = make()
    deliver, failures = engine._deliver, [MemoryError("no room for the answer")]

    def fail_once(outcomes):
        if failures:
            raise failures.pop()
        deliver(outcomes)

    engine._deliver = fail_once
    engine.open(1)
    engine.open(2)
    engine.submit(step(1, 0, 2))
    wait_for(1)
    engine.submit(step(2, 0, 2))
    wait_for(2)
    assert engine.alive and engine.waiting == 0
    end(engine)
    assert (delivered[0].step.seq_id, str(delivered[0].error)) == (1, "no room for the answer")
    assert (delivered[1].step.seq_id, delivered[1].error) == (2, None)


def test_where_nobody_takes_results_the_engine_goes_on():
    engine, *_ = make()

    def gone(outcomes):
        raise RuntimeError("Event loop is closed")

    engine._deliver = gone
    engine.open(1)
    for position in range(3):
        engine.submit(step(1, position))
    until(lambda: engine.steps == 3)
    assert engine.alive
    end(engine)


def test_a_trace_that_fails_ends_its_sequence_and_nothing_else():
    engine, section, delivered, wait_for = make()

    def trace(x, position, slot, pass_len):
        raise MemoryError("no room for what the layers give")

    section.trace = trace
    engine.open(1)
    engine.open(2)
    piece = step(1, 0, 4)
    piece.trace = True
    engine.submit(piece)
    engine.submit(step(2, 0, 2))
    wait_for(2)
    assert engine.alive
    end(engine)
    assert {o.step.seq_id: type(o.error) for o in delivered} == {1: MemoryError, 2: type(None)}


def test_a_thread_that_ends_by_a_mistake_of_ours_is_seen_and_told():
    told = threading.Event()
    engine = Engine(Recorder(), [NamedSlot("slot0")], lambda outcomes: None, died=lambda error: told.set())

    def broken(now_s, congested):
        raise IndexError("a mistake")

    engine._scheduler.next = broken
    assert engine.alive
    engine.open(1)
    engine.submit(step(1, 0))
    assert told.wait(10)
    until(lambda: not engine.alive)
    assert engine.step_s == 0  # which tells nothing


def test_an_engine_that_was_told_to_end_has_not_died():
    engine, *_ = make()
    end(engine)
    assert engine.alive


def test_a_slot_that_becomes_free_is_told_at_once_or_when_its_step_has_ended():
    freed = threading.Semaphore(0)
    section = Recorder()
    engine = Engine(section, [NamedSlot("slot0"), NamedSlot("slot1")], lambda outcomes: None, freed=freed.release)
    engine.open(1)
    engine.close(1)
    assert freed.acquire(blocking=False)
    section.gate.clear()
    engine.open(2)
    engine.submit(step(2, 0))
    running(engine)
    engine.close(2)
    assert not freed.acquire(blocking=False) and not engine.is_free(1)
    section.gate.set()
    assert freed.acquire(timeout=10)
    end(engine)


def test_slots_have_numbers():
    engine, *_ = make(slots=3)
    assert engine.open(1, number=2) == (2, 0) and engine.open(2) == (0, 0)
    assert [engine.is_free(i) for i in range(3)] == [False, True, False]
    assert (engine.holder_of(2), engine.holder_of(1)) == (1, None)
    with pytest.raises(BusyError, match="slot 2 is taken"):
        engine.open(3, number=2)
    end(engine)


def queue_behind_a_step(engine, section, steps):
    """Have all of `steps` wait while the prompt of sequence 1 is computed."""
    section.gate.clear()
    engine.submit(step(1, 0, 4))
    running(engine)
    for s in steps:
        assert engine.submit(s)
    section.gate.set()


def test_decode_steps_that_wait_run_together_one_of_a_sequence_in_order():
    engine, section, delivered, wait_for = make(slots=4, batches=True)
    for seq_id in (1, 2, 3):
        engine.open(seq_id)
        engine.submit(step(seq_id, 0, 4))
    wait_for(3)
    before = len(section.together)
    queue_behind_a_step(engine, section, [step(1, 4), step(2, 4), step(1, 5), step(3, 4), step(1, 6), step(2, 5)])
    wait_for(10)
    end(engine)
    assert section.together[before:] == [1, 3, 2, 1]
    assert [(o.step.seq_id, o.step.position) for o in delivered[4:]] == [(1, 4), (2, 4), (3, 4), (1, 5), (2, 5), (1, 6)]
    assert all(o.result is o.step.x for o in delivered)


def test_an_error_in_a_batch_ends_only_the_sequence_whose_step_it_is():
    engine, section, delivered, wait_for = make(slots=4, batches=True)
    for seq_id in (1, 2, 3):
        engine.open(seq_id)
        engine.submit(step(seq_id, 0, 4))
    wait_for(3)
    before = len(section.together)
    queue_behind_a_step(engine, section, [step(1, 4), step(2, 4, value=666), step(3, 4)])
    wait_for(7)
    end(engine)
    assert section.together[before:] == [1, 3, 1, 1, 1]
    assert [(o.step.seq_id, str(o.error or "")) for o in delivered[4:]] == [(1, ""), (2, "broken"), (3, "")]


def test_a_batch_whose_results_do_not_match_is_an_error_of_its_steps():
    engine, section, delivered, wait_for = make()
    section.forward_many = lambda steps: []
    engine.open(1)
    engine.submit(step(1, 0, 2))
    wait_for(1)
    engine.open(2)
    end(engine)
    assert "0 results for 1 steps" in str(delivered[0].error)


def test_a_slot_is_reused_from_what_it_holds_and_an_error_leaves_nothing():
    engine, _, _, wait_for = make(slots=1)
    ids = (0,) * 6

    def again():
        _, reused = engine.open(2, ids, 6)
        engine.close(2)
        return reused

    engine.open(1, ids, 6)
    engine.submit(step(1, 0, 4))
    wait_for(1)
    engine.close(1)
    assert again() == 4 and engine.open(3, ids, 2) == (0, 2)
    engine.submit(step(3, 2, 2))  # it may begin there
    engine.submit(step(3, 1, 3))  # or before
    wait_for(3)
    assert engine.close(3).reused_tokens == 2
    engine.open(4, ids, 6)
    engine.submit(step(4, 4, 1, value=666))
    wait_for(4)
    engine.close(4)
    assert again() == 0
    end(engine)


def test_a_section_that_reuses_nothing_says_so():
    engine, section, _, wait_for = make(slots=1, reuses=False)
    engine.open(1, (0,) * 4, 4)
    engine.submit(step(1, 0, 4))
    wait_for(1)
    engine.close(1)
    assert engine.open(2, (0,) * 4, 4) == (0, 0)
    end(engine)


def test_bytes_that_wait_are_counted_until_they_run_or_are_dropped():
    engine, section, _, wait_for = make(slots=2)
    engine.open(1)
    engine.open(2)
    queue_behind_a_step(engine, section, [])
    wait_for(1)
    section.gate.clear()
    engine.submit(step(1, 4, 4))
    running(engine)
    engine.submit(step(2, 0, 5))
    engine.submit(step(1, 8))
    assert engine.waiting_bytes == 6 * 8
    engine.close(2)
    assert engine.waiting_bytes == 8
    section.gate.set()
    wait_for(3)
    end(engine)
    assert engine.waiting_bytes == 0
