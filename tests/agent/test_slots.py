"""Which slot a sequence gets, and that what a slot is said to hold is what was computed in it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.agent.slots import HeldSlot, Slots, common_prefix


def slots(*held: list[int]) -> Slots:
    """Free slots a, b, c, … that hold these."""
    made = Slots("abcdef"[: len(held)])
    for slot, ids in zip(made._free, held, strict=True):
        slot.ids = list(ids)
    return made


LONG = list(range(100))


@pytest.mark.parametrize(
    "held, ids, most, kv, reused",
    [
        (([], [], []), LONG, 99, "a", 0),  # nothing there: the oldest
        (([], LONG, []), LONG + [7], 101, "b", 100),  # a follow-up
        (([], LONG, []), LONG, 100, "b", 99),  # the same again: the last token is computed
        (([], LONG, []), LONG[:60] + [7], 61, "b", 60),  # a shared system prompt
        ((LONG[:40], LONG[:80], LONG[:60]), LONG, 100, "b", 80),  # the longest
        ((LONG[:50], LONG[:50]), LONG, 100, "a", 50),  # of equal ones the oldest
        (([], LONG), LONG[:12] + [7], 13, "b", 12),  # 12 saved, 88 lost
        (([], LONG), LONG[:11] + [7], 12, "a", 0),  # a long talk isn't given up for a greeting
        ((LONG, LONG), LONG[:20] + [7], 21, "a", 20),  # but where one must go, what it has is used
        (([], LONG), LONG, 30, "b", 30),  # the others hold less
        (([], LONG), LONG, 0, "a", 0),  # not wanted
        (([], [5]), [5], 1, "a", 0),
    ],
)
def test_a_sequence_gets_the_slot_that_has_most_of_it(held, ids, most, kv, reused):
    free = slots(*held)
    slot, got = free.take(ids, most)
    assert (slot.kv, got) == (kv, reused) and len(free) == len(held) - 1


def test_slots_are_handed_out_oldest_unused_first():
    free = Slots("abc")
    taken = [free.take()[0] for _ in range(3)]
    for i in (1, 2, 0):
        free.give_back(taken[i])
    assert [free.take()[0].kv for _ in range(3)] == ["b", "c", "a"]


def test_other_rotary_factors_are_another_sequence():
    free = slots(LONG, LONG)
    free._free[1].long = True
    assert free.take(LONG, 100, long=True)[0].kv == "b"
    assert free.take(LONG, 100, long=True)[1] == 0


def test_a_trace_leaves_nothing_that_counts():
    free = slots(LONG, LONG)
    slot = free.take_any()
    assert (slot.kv, slot.ids) == ("a", [])


def test_steps_change_what_a_slot_holds():
    slot = HeldSlot("a")

    def run(position, *ids, long=False):
        slot.begin(position, ids, long)
        slot.computed(position, ids)
        return slot.ids

    assert run(0, 1, 2, 3) == [1, 2, 3]
    assert run(3, 4, 5, 6) == [1, 2, 3, 4, 5, 6]  # 5 and 6 were drafts
    assert run(4, 5) == [1, 2, 3, 4, 5, 6]  # a step that comes again takes nothing away
    assert run(4, 7) == [1, 2, 3, 4, 7]  # 6 followed another token
    assert run(3, 4, 7, 8) == [1, 2, 3, 4, 7, 8]
    assert run(9, 9) == [1, 2, 3, 4, 7, 8]  # behind a gap
    assert run(0, 1, long=True) == [1]
    assert run(1, 2, long=False) == []  # never both


def test_what_is_being_computed_is_not_held_yet():
    slot = HeldSlot("a", [1, 2, 3])
    slot.begin(1, (9, 9), False)
    assert slot.ids == [1]


class Memory:
    """K and V as a section would have them: what was computed at each position, and after what."""

    def __init__(self):
        self.rows: list = []

    def run(self, position, ids, long):
        for at, token in enumerate(ids, position):
            del self.rows[at : at + 1]
            before = tuple(row[0] for row in self.rows[:at])
            self.rows.insert(at, (token, before, long))

    def right(self, ids, long) -> int:
        """How many positions are what computing `ids` anew would make."""
        for at, token in enumerate(ids):
            if at >= len(self.rows) or self.rows[at] != (token, tuple(ids[:at]), long):
                return at
        return len(ids)


STEPS = st.lists(
    st.tuples(st.integers(0, 8), st.lists(st.integers(0, 1), min_size=1, max_size=4), st.booleans()), max_size=12
)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(STEPS)
def test_whatever_steps_come_a_slot_claims_nothing_that_is_not_there(steps):
    slot, memory = HeldSlot("a"), Memory()
    for position, ids, long in steps:
        if position > len(memory.rows):  # the engine refuses gaps
            continue
        slot.begin(position, ids, long)
        memory.run(position, ids, long)
        slot.computed(position, ids)
        assert memory.right(slot.ids, slot.long) == len(slot.ids)


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_a_common_prefix_is_the_longest(a, b):
    n = common_prefix(a, b)
    assert a[:n] == b[:n] and (n in (len(a), len(b)) or a[n] != b[n])


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(0, 1), min_size=1, max_size=6), st.integers(0, 9),
)  # fmt: skip
def test_what_is_reused_is_shared_and_leaves_a_token_to_compute(held, ids, most):
    free = slots(*held)
    slot, reused = free.take(ids, most)
    assert reused <= min(most, len(ids) - 1) and slot.ids[:reused] == ids[:reused] and slot not in free._free
    assert reused >= min(most, len(ids) - 1, common_prefix(held[0], ids))
