"""The board's speed by its engine's own steps: what counts, and what is ignored."""

import numpy as np
import pytest

from edgellm.agent.pace import Pace, Speed
from edgellm.agent.steps import Step

START = Speed(layer_s=0.003, head_s=0.006)


def steps(*tokens: int, prompt: bool = False, trace: bool = False) -> list[Step]:
    """Steps of so many tokens each; of a `prompt`, chunks that more chunks follow."""
    return [
        Step(i, np.zeros(n, np.int64), 8, 8 + n + 100 * prompt, 0 if prompt else n, range(n), trace=trace)
        for i, n in enumerate(tokens)
    ]


def computed(section, what, took_s, times=40, begin_s=0.0):
    for i in range(times):
        section.computed(what, took_s, begin_s + i)


def warm(pace, layers=10, has_head=True):
    section = pace.section(layers, has_head)
    computed(section, steps(1), 9.0, times=3)  # weights come from the disk
    return section


def test_until_steps_are_computed_it_is_the_starts_speed():
    pace = Pace(START)
    section = warm(pace)
    assert section.predicted_s == pytest.approx(0.036)
    computed(section, steps(1), 0.012, times=15)
    assert pace.now() == START
    computed(section, steps(1), 0.012, times=1)
    assert pace.now().layer_s == pytest.approx(0.001)


def test_layers_and_head_share_what_a_step_takes_as_at_the_start():
    pace = Pace(START)
    computed(warm(pace), steps(1), 0.012)
    assert (pace.now().layer_s, pace.now().head_s) == (pytest.approx(0.001), pytest.approx(0.002))
    assert (pace.now().batch_layer_s, pace.now().prefill_layer_s) == (None, None)


def test_it_is_a_median_that_forgets():
    pace = Pace(START)
    section = warm(pace, has_head=False)
    for i in range(65):
        section.computed(steps(1), 0.5 if i % 3 == 0 else 0.010, i)  # a third of them disturbed
    assert pace.now().layer_s == pytest.approx(0.001)
    computed(section, steps(1), 0.020, times=40, begin_s=100)  # the heat comes
    assert pace.now().layer_s == pytest.approx(0.002)
    computed(section, steps(1), 0.010, times=16, begin_s=1000)  # what was ten minutes before doesn't count
    assert pace.now().layer_s == pytest.approx(0.001)


def test_batches_tell_what_a_further_token_adds():
    pace = Pace(START)
    section = warm(pace, has_head=False)
    computed(section, steps(1), 0.010)
    for i in range(60):
        section.computed(steps(*[1] * (2 + i % 3)), 0.010 + 0.004 * (1 + i % 3), 50 + i)
    assert pace.now().batch_layer_s == pytest.approx(0.0004)
    drafts = Pace(START)
    section = warm(drafts, has_head=False)
    computed(section, steps(1), 0.010)
    computed(section, steps(5), 0.018)  # one sequence's token with four drafts
    assert drafts.now().batch_layer_s == pytest.approx(0.0002)


def test_a_board_that_never_computes_a_token_alone_is_measured_by_its_batches():
    pace = Pace(START)
    computed(warm(pace, has_head=False), steps(1, 1, 1, 1), 0.020)
    assert pace.now().layer_s == pytest.approx(0.001)  # further tokens take a third until more is known


def test_chunks_tell_a_prompt_tokens_time():
    pace = Pace(START)
    section = warm(pace, has_head=False)
    computed(section, steps(32, prompt=True), 0.064, times=3)
    assert pace.now().prefill_layer_s == pytest.approx(0.0002)
    assert pace.now().layer_s == START.layer_s
    computed(section, steps(7, prompt=True), 9.0)  # too short to tell
    computed(section, steps(32, trace=True), 9.0)
    assert pace.now().prefill_layer_s == pytest.approx(0.0002)


@pytest.mark.parametrize(("took_s", "layer_s"), [(1e-9, 0.003 / 16), (1e9, 0.003 * 16)])
def test_what_is_far_from_the_start_is_not_believed(took_s, layer_s):
    pace = Pace(START)
    section = warm(pace, has_head=False)
    computed(section, steps(1), took_s)
    computed(section, steps(32, prompt=True), took_s)
    assert pace.now().layer_s == pytest.approx(layer_s)
    assert pace.now().prefill_layer_s <= 0.003 * 16


def test_the_next_section_begins_with_what_the_last_one_told():
    pace = Pace(START)
    section = warm(pace, layers=10)
    computed(section, steps(1), 0.012)
    computed(section, steps(32, prompt=True), 0.064)
    told = pace.now()
    following = pace.section(5, False)
    assert pace.now() == told and following.predicted_s == pytest.approx(0.005)
    computed(following, steps(1), 0.010, times=60)
    assert pace.now().layer_s == pytest.approx(0.002)
    assert pace.now().prefill_layer_s == pytest.approx(told.prefill_layer_s)


def test_steps_that_wait_for_the_disk_dont_tell_how_fast_the_board_computes():
    pace = Pace(START)
    section = pace.section(10, True, wait_s=0.5)
    assert section.predicted_s == pytest.approx(0.536) and pace.served
    computed(section, steps(1), 0.7)
    assert section.token_s() == pytest.approx(0.7) and pace.now() == START
    computed(warm(pace), steps(1), 0.072)
    assert pace.now().layer_s == pytest.approx(0.006), "the next section fits, and tells again"
