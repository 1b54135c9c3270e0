"""What a keeper remembers of failures, and for how long: tables of times, no clock."""

import pytest

from edgellm.manager.failures import Failures


def test_a_load_that_fails_again_waits_twice_as_long_each_time_but_not_for_ever():
    failures, now_s, waits = Failures(), 0.0, []
    for _ in range(9):
        failures.load_failed("b2", (3, 6), "SHA-256 differs", now_s)
        assert failures.cannot_load(now_s) == {"b2": "SHA-256 differs"}
        wait_s = next(s for s in range(1, 700) if not failures.cannot_load(now_s + s))
        waits.append(wait_s)
        now_s += wait_s
    assert waits == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    failures.load_failed("b2", (0, 2), "SHA-256 differs", now_s)  # another section begins anew
    assert not failures.cannot_load(now_s + 5)
    failures.load_failed("b2", (0, 2), "SHA-256 differs", now_s)
    failures.load_worked("b2")
    assert failures.cannot_load(now_s) == {}


def test_a_way_counts_as_broken_from_the_second_failure_in_a_row_or_at_once_if_a_dial_failed():
    failures, pair = Failures(), ("b0", "b1")
    failures.way_failed(pair, "lost", 0.0)
    assert failures.broken(0.0) == {}
    failures.ways_worked([pair])
    failures.way_failed(pair, "lost", 5.0)
    assert failures.broken(5.0) == {}
    failures.way_failed(pair, "lost", 6.0)
    assert failures.broken(6.0) == {pair: "lost"}
    assert failures.broken(6.0 + 9.0) == {pair: "lost"} and failures.broken(6.0 + 10.0) == {}
    other = ("b1", "b2")
    failures.way_failed(other, "no route to host", 6.0, certain=True)
    assert failures.broken(7.0) == {pair: "lost", other: "no route to host"}


@pytest.mark.parametrize(
    ("losses", "up_s", "wait_s"),
    [
        (0, None, 0.0), (0, 3.0, 7.0), (0, 10.0, 0.0), (0, 1e9, 0.0),
        (1, None, 20.0), (1, 5.0, 20.0), (2, 1e9, 40.0), (3, 1e9, 80.0), (6, 1e9, 600.0), (99, 1e9, 600.0),
    ],
)  # fmt: skip
def test_a_board_waits_twice_as_long_for_every_time_it_was_lost(losses, up_s, wait_s):
    failures = Failures()
    for _ in range(losses):
        failures.lost("b1", 100.0)
    assert failures.steady_in_s("b1", up_s, 100.0) == wait_s
    if up_s is not None:
        assert failures.steady_in_s("b1", up_s + 600, 700.0) == 0.0
    assert failures.steady_in_s("b0", 1e9, 100.0) == 0.0
    assert failures.steady_in_s("b1", None, 100.0 + 3601) == 0.0  # long ago


def test_a_board_that_flaps_is_named_until_it_has_been_up_for_a_while():
    failures = Failures()
    up = {"b0": None, "b1": 30.0, "b2": 1e9}
    for i in range(3):
        failures.lost("b1", 10.0 * i)
        assert failures.flapping(up, 10.0 * i) == ({"b1"} if i == 2 else set())
    assert failures.flapping({**up, "b1": 90.0}, 20.0 + 79.0) == {"b1"}
    assert failures.flapping({**up, "b1": 90.0}, 20.0 + 80.0) == set()


def test_a_board_that_says_it_is_claimed_while_no_other_one_is_is_left_out_after_a_while():
    failures = Failures()
    failures.claimed_alone({"b1"}, 100.0)
    failures.claimed_alone({"b1"}, 119.0)
    assert failures.unwilling(119.0) == {}
    failures.claimed_alone({"b1", "b2"}, 120.0)
    assert list(failures.unwilling(120.0)) == ["b1"]
    failures.claimed_alone(set(), 121.0)
    assert failures.unwilling(200.0) == {}


def test_a_board_that_refuses_claim_after_claim_is_left_out_for_a_while():
    failures = Failures()
    for now_s in (0.0, 1.0, 2.0):
        failures.claim_refused("b1", now_s)
    assert failures.unwilling(2.0) == {}
    failures.claim_refused("b1", 3.0)
    assert failures.unwilling(3.0) == {"b1": "board b1 refuses every change of its plan"}
    assert failures.unwilling(3.0 + 40.0) == {}
    failures.claim_refused("b1", 50.0)
    failures.claims_worked()
    assert failures.unwilling(50.0) == {}
