"""Sampling: greedy, filters, penalty; and the same (seed, position) always gives the same token."""

import numpy as np
import pytest

from edgellm.errors import ModelError, UsageError
from edgellm.model.sampler import sample
from edgellm.sampling import Sampling

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32))


def draws(sampling, count=400, history=()):
    return [sample(LOGITS, history, sampling, position) for position in range(count)]


def test_temperature_zero_takes_the_most_likely():
    assert sample(LOGITS, (), Sampling(), 3) == 1


def test_ties_go_to_the_lowest_id():
    assert sample(np.zeros(5, np.float32), (), Sampling(), 3) == 0


def test_the_same_seed_and_position_give_the_same_token_and_others_vary():
    once = draws(Sampling(temperature=1.0, seed=7))
    assert draws(Sampling(temperature=1.0, seed=7)) == once
    assert draws(Sampling(temperature=1.0, seed=8)) != once
    assert len(set(once)) == 5


def test_tokens_come_as_often_as_their_probability_says():
    counts = np.bincount(draws(Sampling(temperature=1.0, seed=1), 4000), minlength=5) / 4000
    assert np.abs(counts - np.exp(LOGITS)).max() < 0.03


@pytest.mark.parametrize(
    "options, possible",
    [
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 1}, {1}),
        ({"top_p": 0.5}, {1, 3}),  # 0.4 alone isn't half
        ({"top_p": 0.0}, {1}),
        ({"min_p": 0.3}, {1, 3, 4}),  # at least 0.12
        ({"top_k": 3, "top_p": 0.8}, {1, 3}),  # of 0.47, 0.35, 0.18
    ],
)
def test_filters_leave_just_the_likely(options, possible):
    assert set(draws(Sampling(temperature=1.0, seed=3, **options))) == possible


def test_a_repeat_penalty_makes_what_was_said_less_likely():
    assert sample(LOGITS, [1, 1, 3], Sampling(repeat_penalty=5.0), 0) == 4
    positive = np.array([3.0, 4.0, 1.0], np.float32)
    assert sample(positive, [1], Sampling(repeat_penalty=2.0), 0) == 0
    assert positive[1] == 4.0  # the logits themselves stay


def test_transformers_filters_leave_the_same_tokens_with_the_same_probabilities():
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    from edgellm.model.sampler import _nucleus, _penalize

    rng = np.random.default_rng(0)
    logits, history = rng.normal(0, 3, 200).astype(np.float32), [3, 5, 5, 120]
    s = Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02, repeat_penalty=1.3)
    theirs = LogitsProcessorList([
        RepetitionPenaltyLogitsProcessor(s.repeat_penalty), TemperatureLogitsWarper(s.temperature),
        TopKLogitsWarper(s.top_k), TopPLogitsWarper(s.top_p), MinPLogitsWarper(s.min_p),
    ])(torch.tensor([history]), torch.tensor(logits)[None])[0].softmax(-1).numpy()  # fmt: skip
    probabilities, tokens = _nucleus(_penalize(logits, history, s.repeat_penalty) / s.temperature, s)
    assert set(tokens) == set(np.flatnonzero(theirs))
    np.testing.assert_allclose(probabilities / probabilities.sum(), theirs[tokens], rtol=1e-4)


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ModelError, match="position 9 are not finite"):
        sample(np.array([1.0, np.nan], np.float32), (), Sampling(), 9)


BAD = [("temperature", -1), ("top_p", 1.5), ("top_k", -1), ("min_p", float("nan")), ("repeat_penalty", 0), ("seed", -1)]


@pytest.mark.parametrize("name, value", BAD)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(UsageError, match="expected a"):
        Sampling(**{name: value})


def test_a_tiny_temperature_is_greedy_and_no_garbage():
    assert set(draws(Sampling(temperature=1e-320, seed=1), 50)) == {1}


def test_top_k_keeps_the_lowest_ids_of_equal_scores():
    equal = np.zeros(100, np.float32)
    chosen = {sample(equal, (), Sampling(temperature=1.0, top_k=3, seed=2), p) for p in range(200)}
    assert chosen == {0, 1, 2}
