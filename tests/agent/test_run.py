"""The engine: slots, order, fairness between prompts and running answers."""

import threading
import time

import numpy as np
import pytest

from edgellm.agent.run import Engine, Step
from edgellm.errors import BusyError


class Recorder:
    """A section that records what it is asked, and waits at `gate`."""

    def __init__(self, batches=False):
        self.batches = batches
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


def make(slots=2, congested=lambda: False, batches=False):
    section, delivered = Recorder(batches), []
    done = threading.Condition()

    def deliver(outcomes):
        with done:
            delivered.extend(outcomes)
            done.notify_all()

    engine = Engine(section, [f"slot{i}" for i in range(slots)], deliver, congested)

    def wait_for(count):
        with done:
            assert done.wait_for(lambda: len(delivered) >= count, 10), delivered

    return engine, section, delivered, wait_for


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
    assert [s.position for s, *_ in delivered] == [0, 2, 4]


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
    while engine.waiting != 2 or not engine._running:
        time.sleep(0.001)
    engine.close(1)
    with pytest.raises(BusyError):
        engine.open(2)
    section.gate.set()
    deadline = time.monotonic() + 5
    while engine.free_slots == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    engine.open(2)
    end(engine)
    assert len(section.calls) == 1  # the second chunk was dropped
    assert delivered == []


def test_a_long_prompt_and_a_running_answer_take_turns():
    engine, section, delivered, wait_for = make()
    engine.open(1)
    engine.open(2)
    engine.submit(step(1, 0, 1))
    engine.submit(step(1, 1))  # a decode step: sequence 1 is an answer under way
    wait_for(2)
    section.gate.clear()
    engine.submit(step(2, 0, 8))
    while not engine._running:
        time.sleep(0.001)
    for i in range(1, 4):
        engine.submit(step(2, 8 * i, 8))
        engine.submit(step(1, 1 + i))
    section.gate.set()
    wait_for(9)
    end(engine)
    kinds = [count for _, _, count in section.calls[3:]]
    assert kinds == [1, 8, 1, 8, 1, 8]


def test_a_congested_link_holds_prompt_chunks_and_lets_decode_steps_through():
    held = threading.Event()
    held.set()
    engine, section, delivered, wait_for = make(congested=held.is_set)
    engine.open(1)
    engine.open(2)
    engine.submit(step(2, 0, 8))
    time.sleep(0.02)
    assert section.calls == []
    held.clear()
    wait_for(1)
    held.set()
    engine.submit(step(2, 8))
    wait_for(2)
    end(engine)
    assert [c[2] for c in section.calls] == [8, 1]


def test_an_error_in_a_step_is_delivered_and_the_engine_goes_on():
    engine, _, delivered, wait_for = make()
    engine.open(1)
    engine.submit(step(1, 0, 2, value=666))
    engine.submit(step(1, 2))
    wait_for(2)
    end(engine)
    assert str(delivered[0][2]) == "broken" and delivered[0][1] is None
    assert delivered[1][2] is None


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


def test_a_job_that_waits_when_the_engine_stops_is_told():
    engine, section, _, _ = make()
    section.gate.clear()
    engine.open(1)
    engine.submit(step(1, 0, 4))
    while not engine._running:
        time.sleep(0.001)
    told = []
    engine.run_with_slot(lambda section, slot: told.append("ran"), lambda: told.append("dropped"))
    engine.stop()
    section.gate.set()
    engine.join()
    assert told == ["dropped"]
