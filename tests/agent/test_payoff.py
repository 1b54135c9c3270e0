"""When drafting pays, how many drafts, and whose."""

import pytest

from edgellm.agent import payoff
from edgellm.agent.payoff import Acceptance, DraftTime, Offer, Pass, Passes, best_count, choose, tokens_per_pass

TOOK = Pass(0.1, 0.01)


def test_tokens_per_pass_are_those_of_the_geometric_series():
    assert tokens_per_pass(0.5, 0) == 1 and tokens_per_pass(0.5, 3) == 1.875 and tokens_per_pass(1.0, 15) == 16
    assert tokens_per_pass(0.0, 15) == 1


@pytest.mark.parametrize(
    "most, acceptance, draft_s, took, count",
    [
        (15, 1.0, 0.0, TOOK, 15),
        (15, 0.0, 0.0, TOOK, 0),
        (3, 0.9, 0.01, TOOK, 3),
        (15, 0.5, 0.01, TOOK, 2),  # 1.5 / .12 = 12.5, 1.75 / .14 = 12.5, 1.875 / .16 = 11.7
        (15, 0.9, 0.1, TOOK, 0),  # 1.9 / .21 = 9.05 < 10: a draft takes as long as a pass
        (15, 0.9, 0.01, Pass(0.1, 0.1), 0),  # so does a further token in a pass
        (0, 1.0, 0.0, TOOK, 0),
    ],
)  # fmt: skip
def test_as_many_drafts_as_give_the_most_tokens_a_second(most, acceptance, draft_s, took, count):
    best = best_count(Offer(most, acceptance, draft_s), took)
    rates = [payoff.rate(Offer(most, acceptance, draft_s), n, took) for n in range(most + 1)]
    assert rates[best] == max(rates) and rates[best] == pytest.approx(rates[count])


def test_what_costs_time_has_to_beat_what_is_there_already():
    model, poor = Offer(15, 0.8, 0.01), Offer(15, 0.2, 0.01)
    assert choose([model], None, TOOK) == (0, best_count(model, TOOK))
    assert choose([poor, model], None, TOOK) == (1, best_count(model, TOOK))
    assert choose([poor], None, TOOK) is None
    assert choose([], None, TOOK) is None and choose([Offer(0, 1.0)], None, TOOK) is None
    assert choose([model], Offer(8, 0.9), TOOK) is None  # the text has it already
    assert choose([model], Offer(8, 0.1), TOOK) == (0, best_count(model, TOOK))
    assert choose([Offer(1, 0.15, 0.0)], None, TOOK) is None  # 4.5 % better is not clearly better
    assert choose([Offer(1, 0.16, 0.0)], None, TOOK) == (0, 1)


def test_drafts_that_never_come_true_switch_the_drafter_off_for_longer_each_time():
    drafts, rests, tried = Acceptance(), [], []
    for _ in range(4):
        tried.append(0)
        while choose([Offer(15, drafts.rate)], None, Pass(0.1, 0.0)):
            drafts.learn(4, 0)
            tried[-1] += 1
        drafts.switch_off()
        rests.append(0)
        while drafts.is_resting():
            rests[-1] += 1
    assert rests == [16, 32, 64, 128] and set(tried) == {19}  # .6 * (7/8)^19 < .05
    for _ in range(9):
        drafts.switch_off()
    assert drafts.rest == 512
    drafts.learn(3, 3)
    drafts.switch_off()
    assert drafts.rest == 16


def test_drafts_behind_a_wrong_one_tell_nothing():
    drafts = Acceptance(0.5)
    drafts.learn(15, 0)
    assert drafts.rate == pytest.approx(0.5 * 7 / 8)
    drafts.learn(0, 0)
    assert drafts.rate == pytest.approx(0.5 * 7 / 8)
    drafts.learn(2, 2)
    assert drafts.rate == pytest.approx(1 - (1 - 0.5 * 7 / 8) * (7 / 8) ** 2)


def test_a_pass_is_a_line_through_the_last_ones():
    passes = Passes()
    assert passes.now() is None
    for _ in range(3):
        passes.add(1, 0.11)
    alone = passes.now()
    assert (alone.lap_s, alone.token_s) == pytest.approx((0.11, 0.011))  # a guess, as long as all are of one token
    for tokens in (5, 1, 3, 9):
        passes.add(tokens, 0.11 + 0.02 * (tokens - 1))
    now = passes.now()
    assert (now.lap_s, now.token_s) == pytest.approx((0.11, 0.02))
    for _ in range(200):
        passes.add(1, 0.5)
        passes.add(9, 0.1)  # can't be: a pass of more tokens takes no less
    assert passes.now().token_s == 0.0 and passes.now().lap_s == pytest.approx(0.3, rel=0.1)


def test_a_drafts_time_follows_what_they_take():
    time = DraftTime()
    time.add(4, 0.4)
    assert time.seconds == pytest.approx(0.1)
    time.add(0, 1.0)
    time.add(1, 0.9)
    assert time.seconds == pytest.approx(0.2)
