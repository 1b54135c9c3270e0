"""Sampling: greedy, filters, penalty; and the same (seed, position) always gives the same token."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgellm.model.sampler
from edgellm.errors import ModelError, UsageError
from edgellm.model.draw import Ranking
from edgellm.model.sampler import Sampler, _uniform, logprobs, sample
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


def reference(logits, history, s):
    """Ids in the order of a draw and their probabilities, in float64, as docs/wire.md has the steps."""
    logits, seen = np.array(logits, np.float32), sorted(set(history))
    r = np.float32(s.repeat_penalty)
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / r, logits[seen] * r)
    scores = (logits.astype(np.float64) - float(logits.max())) / s.temperature
    order = np.lexsort((np.arange(len(scores)), -scores))
    if 0 < s.top_k < len(order):
        order = order[: s.top_k]
    p = np.exp(scores[order])
    p /= p.sum()
    if s.top_p < 1.0:
        keep = max(1, int(np.sum(np.cumsum(p) - p < s.top_p)))
        order, p = order[:keep], p[:keep]
    if s.min_p > 0.0:
        keep = p >= s.min_p * p[0]
        order, p = order[keep], p[keep]
    return order, p / p.sum()


def shares(monkeypatch, logits, history, sampling, count):
    """How often each id is chosen if the random number takes `count` evenly spaced values."""
    sampler, found = Sampler(sampling, len(logits)), np.zeros(len(logits), int)
    sampler.follow(history, len(history))
    for i in range(count):
        monkeypatch.setattr(edgellm.model.sampler, "_uniform", lambda seed, position, u=(i + 0.5) / count: u)
        found[sampler.choose(logits, 0)] += 1
    return found / count


OPTIONS = [
    {}, {"temperature": 0.3}, {"temperature": 3.0}, {"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.03},
    {"top_p": 0.9, "min_p": 0.02}, {"repeat_penalty": 0.7},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "repeat_penalty": 1.3},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_not_allowed_is_as_if_it_were_not_there(options):
    rng = np.random.default_rng(1)
    logits, history = rng.normal(0, 2, 20_000).astype(np.float32), [3, 5, 5, 120]
    for count in (1, 2, 50, 15_000):
        allowed = np.zeros(len(logits), bool)
        allowed[rng.choice(len(logits), count, replace=False)] = True
        (ids,) = np.nonzero(allowed)
        where = {int(token): at for at, token in enumerate(ids)}
        for seed in range(20):
            sampling = Sampling(**{"temperature": 1.0, **options}, seed=seed)
            sampler, alone = Sampler(sampling, len(logits)), Sampler(sampling, count)
            sampler.follow(history, len(history))
            alone.follow(left := [where[token] for token in history if token in where], len(left))
            assert sampler.choose(logits, 7, allowed) == ids[alone.choose(logits[ids], 7)]
    greedy = Sampler(Sampling(), len(logits)).choose(logits, 7, allowed)
    assert greedy == np.where(allowed, logits, -np.inf).argmax()


def test_nothing_allowed_and_nothing_finite_among_what_is_are_errors():
    logits, allowed = np.zeros(8, np.float32), np.zeros(8, bool)
    with pytest.raises(ModelError, match="no token may come at position 3"):
        Sampler(Sampling(), 8).choose(logits, 3, allowed)
    logits[2], allowed[[2, 3]] = np.nan, True
    with pytest.raises(ModelError, match="the logits at position 3 are not finite"):
        Sampler(Sampling(), 8).choose(logits, 3, allowed)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_token_has_the_share_of_random_numbers_that_its_probability_says(monkeypatch, options):
    rng = np.random.default_rng(0)
    logits, history = rng.normal(0, 2, 200).astype(np.float32).round(1), [3, 5, 5, 120]  # with many equal ones
    sampling = Sampling(**{"temperature": 1.0, **options})
    ids, expected = reference(logits, history, sampling)
    found, count = shares(monkeypatch, logits, history, sampling, 5000), 5000
    assert set(np.flatnonzero(found)) <= set(ids)
    assert np.abs(found[ids] - expected).max() < 1.01 / count


def test_transformers_filters_leave_the_same_tokens_with_the_same_probabilities(monkeypatch):
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    rng = np.random.default_rng(0)
    logits, history = rng.normal(0, 3, 200).astype(np.float32), [3, 5, 5, 120]
    s = Sampling(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02, repeat_penalty=1.3)
    theirs = LogitsProcessorList([
        RepetitionPenaltyLogitsProcessor(s.repeat_penalty), TemperatureLogitsWarper(s.temperature),
        TopKLogitsWarper(s.top_k), TopPLogitsWarper(s.top_p), MinPLogitsWarper(s.min_p),
    ])(torch.tensor([history]), torch.tensor(logits)[None])[0].softmax(-1).numpy()  # fmt: skip
    ours = shares(monkeypatch, logits, history, s, 5000)
    assert set(np.flatnonzero(ours)) == set(np.flatnonzero(theirs > 1e-3))
    assert np.abs(ours - theirs).max() < 1.01 / 5000


@st.composite
def cases(draw):
    """Logits of any spread, some with many equal ones, and options; some vocabularies are larger than any sort."""
    rng, size = np.random.default_rng(draw(st.integers(0, 1 << 32))), draw(st.sampled_from([1, 2, 50, 3000, 40000]))
    logits = rng.normal(0, draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, 30.0])), size).astype(np.float32)
    if draw(st.booleans()):
        logits = (logits * 8).round() / 8
    if draw(st.booleans()):
        logits[rng.integers(0, size)] += np.float32(draw(st.sampled_from([3.0, 12.0])))
    sampling = Sampling(
        temperature=draw(st.sampled_from([1e-3, 0.2, 0.8, 1.0, 2.0, 100.0])), seed=draw(st.integers(0, 99)),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.0, 0.5, 0.95, 0.9999])),
        top_k=draw(st.sampled_from([0, 0, 1, 20, 2000])), min_p=draw(st.sampled_from([0.0, 0.0, 1e-6, 0.05, 1.0])),
        repeat_penalty=draw(st.sampled_from([1.0, 1.3, 0.8])),
    )  # fmt: skip
    return logits, rng.integers(0, size, 30).tolist(), sampling


@settings(max_examples=150, deadline=None)
@given(case=cases(), position=st.integers(0, 1 << 20))
def test_a_choice_is_that_of_sorting_the_whole_vocabulary(case, position):
    logits, history, sampling = case
    u, possible = _uniform(sampling.seed, position), set()
    for nudge in (0.0, -1e-9, 1e-9):  # where a filter or a draw meets a border, rounding may decide
        top_p = min(1.0, max(0.0, sampling.top_p * (1 + nudge)))
        ids, p = reference(logits, history, replace(sampling, top_p=top_p, min_p=sampling.min_p * (1 - abs(nudge))))
        for border in (u - 1e-9, u, u + 1e-9):
            possible.add(int(ids[min(int(np.searchsorted(np.cumsum(p), border, side="right")), len(ids) - 1)]))
    assert sample(logits, history, sampling, position) in possible


@pytest.mark.parametrize("options", [{}, {"top_p": 0.95}, {"top_k": 20, "top_p": 0.8}, {"min_p": 0.05}], ids=str)
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_a_large_vocabulary_is_sampled_as_by_sorting_it(options, spread):
    logits = (np.random.default_rng(1).standard_normal(151936) * spread).astype(np.float32)
    sampling = Sampling(temperature=0.8, seed=5, **options)
    ids, p = reference(logits, (), sampling)
    sums = np.cumsum(p)
    for position in range(20):
        at = int(np.searchsorted(sums, _uniform(5, position), side="right"))
        assert sample(logits, (), sampling, position) == ids[at]


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("spread", [1.5, 4.0, 30.0])
def test_float32_tells_a_total_as_well_as_it_says(spread, temperature):
    logits = (np.random.default_rng(3).standard_normal(151936) * spread).astype(np.float32)
    ranking = Ranking(logits, float(logits.max()), temperature, share=0.01)
    low, high = ranking.total
    ranking.measure_exactly()
    assert low <= ranking.total[0] == ranking.total[1] <= high


class Grown(list):
    """A text that may only be read from position `read` on."""

    read = 0

    def __getitem__(self, i):
        assert i >= self.read, f"token {i} was read again"
        return super().__getitem__(i)

    def __iter__(self):
        raise AssertionError("the whole text was read again")


def test_the_repeat_penalty_reads_each_token_of_a_text_once():
    rng = np.random.default_rng(2)
    sampling = Sampling(temperature=1.0, repeat_penalty=1.5, seed=4)
    sampler, text = Sampler(sampling, 50), Grown(rng.integers(0, 50, 30).tolist())
    for position in range(30, 60):
        logits = rng.normal(0, 2, 50).astype(np.float32)
        sampler.follow(text, position)
        token = sampler.choose(logits, position)
        assert token == sample(logits, list.copy(text), sampling, position)
        text.read = position
        text.append(token)


def test_a_replayed_step_is_penalized_by_the_tokens_before_it_only():
    logits = np.array([4.0, 3.0, 2.0, -1.0], np.float32)
    sampler, text = Sampler(Sampling(repeat_penalty=4.0), 4), [0, 1, 0]
    answers = {}
    for position in (0, 1, 2, 3, 1, 0, 3, 2):
        sampler.follow(text, position)
        answers.setdefault(position, set()).add(sampler.choose(logits, position))
    assert answers == {0: {0}, 1: {1}, 2: {2}, 3: {2}}


def test_a_draft_that_was_accepted_counts_at_once():
    sampler = Sampler(Sampling(repeat_penalty=4.0), 4)
    logits = np.array([4.0, 3.0, 2.0, -1.0], np.float32)
    sampler.follow([], 0)
    chosen = []
    for position in range(3):
        chosen.append(sampler.choose(logits, position))
        sampler.append(chosen[-1])
    assert chosen == [0, 1, 2]


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ModelError, match="position 9 are not finite"):
        sample(np.array([1.0, np.nan], np.float32), (), Sampling(), 9)


BAD = [("temperature", -1), ("top_p", 1.5), ("top_k", -1), ("min_p", float("nan")), ("repeat_penalty", 0), ("seed", -1)]


@pytest.mark.parametrize("name, value", BAD)
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(UsageError, match="expected a"):
        Sampling(**{name: value})


def test_only_options_that_change_something_go_over_the_wire():
    assert Sampling().to_wire() == {}
    asked = Sampling(temperature=0.7, top_k=0, seed=3)
    assert asked.to_wire() == {"temperature": 0.7, "seed": 3} and Sampling.from_dict(asked.to_wire()) == asked


@pytest.mark.parametrize("value", [True, "1", None, [], 10**400, float("inf"), float("nan")])
def test_values_of_other_kinds_are_refused_in_one_line(value):
    for name in ("temperature", "seed"):
        with pytest.raises(UsageError) as error:
            Sampling(**{name: value})
        assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_tiny_temperature_is_greedy_and_no_garbage():
    assert set(draws(Sampling(temperature=1e-320, seed=1), 50)) == {1}


def test_top_k_keeps_the_lowest_ids_of_equal_scores():
    equal = np.zeros(100, np.float32)
    chosen = {sample(equal, (), Sampling(temperature=1.0, top_k=3, seed=2), p) for p in range(200)}
    assert chosen == {0, 1, 2}


# OpenAI's penalties and biases


def test_presence_and_frequency_penalties_are_for_tokens_of_the_answer_only():
    logits = np.array([1.0, 0.9, 0.5, 0.0], np.float32)
    text = [0, 0, 0, 1, 1, 2]  # the answer began at 3
    for options, expected in (
        ({"presence_penalty": 0.3}, 0),  # 1, 0.6, 0.2, 0
        ({"presence_penalty": -0.3}, 1),  # 1, 1.2, 0.8, 0
        ({"frequency_penalty": -0.6}, 1),  # 1, 2.1, 1.1, 0
        ({"presence_penalty": -0.2, "frequency_penalty": 0.2}, 0),  # 1, 0.7, 0.5, 0
        ({"presence_penalty": 2.0, "logit_bias": {0: -1.0, 3: 0.25}}, 3),
    ):
        assert sample(logits, text, Sampling(**options), 6, began=3) == expected
    assert sample(logits, text, Sampling(presence_penalty=2.0), 6, began=6) == 0
    assert sample(logits, text, Sampling(presence_penalty=2.0), 6, began=0) == 3


@pytest.mark.parametrize("repeat_penalty", [1.0, 1.3])
def test_penalties_and_biases_are_those_of_a_plain_reference_whatever_comes_again(repeat_penalty):
    rng = np.random.default_rng(7)
    began, bias = 5, {3: 2.5, 11: -100.0, 12: 100.0 / 64}
    sampling = Sampling(
        presence_penalty=0.7, frequency_penalty=-0.4, logit_bias=bias, repeat_penalty=repeat_penalty
    )  # fmt: skip
    text = [int(i) for i in rng.integers(0, 20, 40)]
    sampler = Sampler(sampling, 20, began)
    for position in [*range(5, 40), 12, 13, 6, 39, 5, 20, 0, 3, 40]:  # a step may be repeated
        logits = rng.normal(0, 3, 20).astype(np.float32)
        mu, answer = logits.copy(), text[began:position]
        for i in range(20):
            if i in text[:position]:
                mu[i] = mu[i] / np.float32(repeat_penalty) if mu[i] > 0 else mu[i] * np.float32(repeat_penalty)
            mu[i] -= np.float32(-0.4 * answer.count(i) + 0.7 * (answer.count(i) > 0))
            mu[i] += np.float32(bias.get(i, 0.0))
        sampler.follow(text, position)
        kept = logits.copy()
        assert sampler.choose(logits, position) == int(mu.argmax())
        assert np.array_equal(logits, kept)


def test_a_draft_that_was_accepted_is_penalized_at_once():
    sampler = Sampler(Sampling(presence_penalty=1.5), 4)
    logits, chosen = np.array([4.0, 3.0, 2.0, -1.0], np.float32), []
    sampler.follow([], 0)
    for position in range(3):
        chosen.append(sampler.choose(logits, position))
        sampler.append(chosen[-1])
    assert chosen == [0, 1, 0]


def test_a_bias_forbids_and_forces():
    logits = np.array([30.0, 3.0, 2.0, -30.0], np.float32)
    assert sample(logits, [], Sampling(logit_bias={0: -100}), 0) == 1
    assert sample(logits, [], Sampling(logit_bias=[(3, 100)]), 0) == 3
    assert {sample(logits, [], Sampling(temperature=1.0, seed=s, logit_bias={3: 100}), 0) for s in range(50)} == {3}


@pytest.mark.parametrize(
    "bias, said",
    [
        ({5: 101}, "logit-bias of token 5 is 101, expected a number from -100 to 100"),
        ({5: float("nan")}, "logit-bias of token 5 is nan"),
        ({-1: 1}, "a token id of logit-bias is -1, expected a whole number from 0"),
        ({"5": 1}, "a token id of logit-bias is '5'"),
        ([[5, 1], [5, 2]], "logit-bias has token 5 twice"),
        ([5], "logit-bias has 5, expected a token id and a bias"),
        (5, "logit-bias is 5, expected pairs"),
        ("51", "logit-bias is '51', expected pairs"),
        ({i: 1 for i in range(301)}, "logit-bias has over 300 tokens"),
    ],
)
def test_a_bias_that_makes_no_sense_is_refused(bias, said):
    with pytest.raises(UsageError, match=said):
        Sampling(logit_bias=bias)


def test_biases_survive_the_wire():
    sampling = Sampling(logit_bias={9: 1, 4: -2.5}, presence_penalty=0.5)
    assert sampling.to_wire() == {"logit_bias": ((4, -2.5), (9, 1.0)), "presence_penalty": 0.5}
    assert Sampling.from_dict(json.loads(json.dumps(sampling.to_wire()))) == sampling


# Probabilities that are told


def test_logprobs_are_those_of_the_logits_as_they_are():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 4, 1000).astype(np.float32).round(1)  # with many equal ones
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    order = np.lexsort((np.arange(1000), -logits))
    for count in (1, 5, 20):
        ids, values = logprobs(logits, 123, count)
        assert ids == (123, *order[:count])
        assert np.allclose(values, exact[list(ids)], rtol=0, atol=1e-12) and max(values) <= 0


def test_logprobs_of_few_tokens_and_of_one_that_is_certain():
    assert logprobs(np.array([0.0, 0.0], np.float32), 1, 20) == ((1, 0, 1), (-math.log(2),) * 3)
    ids, values = logprobs(np.array([0.0, -np.inf, 200.0], np.float32), 1, 2)
    assert ids == (1, 2, 0) and values == (-np.inf, 0.0, -200.0)
