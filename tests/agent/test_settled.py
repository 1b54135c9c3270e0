"""The times that a board tells planners don't come and go."""

import pytest

from edgellm.agent.settled import HOLD_S, Settled

START = {"layer_s": 0.004, "head_s": 0.010, "prefill_layer_s": None}


def test_a_disturbance_that_passes_is_not_told():
    settled = Settled()
    assert settled.look(START, 0.0) == START
    for at_s in range(0, 3000, 200):  # busy at every other look
        slow = {**START, "layer_s": 0.012, "head_s": 0.030} if at_s % 400 else START
        assert settled.look(slow, float(at_s)) == START


@pytest.mark.parametrize(("name", "value"), [("layer_s", 0.006), ("head_s", 0.005), ("prefill_layer_s", 0.001)])
def test_what_stays_different_is_told_after_a_while(name, value):
    settled, present = Settled(), {**START, name: value}
    settled.look(START, 0.0)
    assert settled.look(present, 10.0) == START
    assert settled.look(present, 9.0 + HOLD_S) == START
    assert settled.look(present, 10.0 + HOLD_S) == present
    assert settled.look(START, 11.0 + HOLD_S) == present  # and that stays as long


def test_small_differences_are_noise():
    settled = Settled()
    settled.look(START, 0.0)
    for at_s in range(10):
        assert settled.look({**START, "layer_s": 0.0049, "head_s": 0.0081}, at_s * HOLD_S) == START
