"""Drafts: what followed the last tokens when they occurred before, and how many are worth it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.agent import lookup
from edgellm.agent.lookup import Lookup

IDS = st.lists(st.integers(0, 3) | st.sampled_from([256, 65536, (1 << 32) - 1]), min_size=1, max_size=40)


def expected(ids: list[int], most: int) -> tuple[int, ...]:
    """The definition, token by token: the longest suffix, its latest earlier place, and what follows it, round."""
    for length in range(lookup._LONGEST, lookup._SHORTEST - 1, -1):
        for at in range(len(ids) - length - 1, -1, -1):
            if ids[at : at + length] == ids[len(ids) - length :]:
                follows = ids[at + length :]
                return tuple(follows[i % len(follows)] for i in range(most))
    return ()


@pytest.mark.parametrize(
    "ids, drafts",
    [
        ([1, 2, 3, 4, 9, 1, 2, 3], (4, 9, 1, 2)),
        ([1, 2, 3, 4, 2, 3, 5, 2, 3], (5, 2, 3, 5)),  # the latest of two, and round
        ([7, 1, 2, 3, 8, 9, 2, 3, 6, 1, 2, 3], (8, 9, 2, 3)),  # the longest before the latest
        ([5, 5, 5], (5, 5, 5, 5)),
        ([1, 2, 3, 4], ()),
        ([1], ()),
        ([1 << 16, 0, 1], ()),  # 00000100 00000000 has the bytes of 1 in it, between two tokens
    ],
)
def test_what_followed_is_proposed(ids, drafts):
    assert Lookup(ids).propose(4) == drafts


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(IDS, IDS, st.integers(0, 4))
def test_any_text_gives_what_the_definition_does(first, more, most):
    drafts = Lookup(first)
    assert drafts.propose(most) == expected(first, most)
    drafts.extend(more)
    assert drafts.propose(most) == expected(first + more, most)


def test_more_is_drafted_after_success_and_less_after_failure():
    drafts = Lookup([5] * 20)
    assert len(drafts.propose(15)) == lookup._FIRST
    sizes = []
    for accepted in (4, 8, 15, 15, 3, 4, 0):
        count = len(drafts.propose(15))
        sizes.append(count)
        drafts.learn(count, min(accepted, count))
    assert sizes == [4, 8, 15, 15, 15, 4, 8] and len(drafts.propose(15)) == 4
    drafts.learn(0, 0)  # a step without drafts tells nothing
    assert len(drafts.propose(15)) == 4


def test_misses_in_a_row_make_it_pause_for_longer_each_time_until_a_draft_is_accepted():
    drafts, pauses = Lookup([5] * 20), []
    for _ in range(5):
        for _ in range(lookup._MISSES):
            count = len(drafts.propose(15))
            assert count
            drafts.learn(count, 0)
        pauses.append(0)
        while not drafts.propose(15):
            pauses[-1] += 1
    assert pauses == [8, 16, 32, 64, 64]
    drafts.learn(1, 1)
    for _ in range(lookup._MISSES):
        drafts.learn(1, 0)
    assert [len(drafts.propose(15)) for _ in range(9)] == [0] * 8 + [1]
