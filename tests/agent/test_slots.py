"""Which slot a sequence gets, and that what a slot is said to hold is what was computed in it."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.agent.slots import HeldSlot, Slots, choose_slot, common_prefix, held_of, ids_of
from tests.fakes import NamedSlot


def slots(*held: list[int]) -> list[HeldSlot]:
    """Free slots a, b, c, … that hold these."""
    made = Slots([NamedSlot(name) for name in "abcdef"[: len(held)]]).free()
    for slot, ids in zip(made, held, strict=True):
        slot.ids = ids_of(ids)
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
    slot, got = choose_slot(free, ids_of(ids), most)
    assert (slot.kv, got) == (kv, reused)
    assert held_of(slot, ids_of(ids), most) == got  # as the other boards find, which are told its number


def test_slots_are_chosen_oldest_unused_first():
    held = Slots([NamedSlot(name) for name in "abc"])
    a, b, c = held.free()
    assert [slot.number for slot in (a, b, c)] == [0, 1, 2]
    for slot in (a, b, c):
        held.take(slot)
    assert len(held) == 0
    for slot in (b, c, a):
        held.give_back(slot)
    assert held.free() == [b, c, a] and choose_slot(held.free(), ids_of([]), 0) == (b, 0)


def test_a_slot_that_other_boards_may_not_have_free_yet_is_chosen_last():
    free = slots(LONG, [], [])
    assert choose_slot(free, ids_of(LONG), 100, avoid={0}) == (free[1], 0)
    assert choose_slot(free, ids_of(LONG), 100, avoid={0, 1, 2}) == (free[0], 99)


def test_other_rotary_factors_are_another_sequence():
    free = slots(LONG, LONG)
    free[1].long = True
    assert choose_slot(free, ids_of(LONG), 100, long=True) == (free[1], 99)
    assert choose_slot(free[:1], ids_of(LONG), 100, long=True) == (free[0], 0)
    assert held_of(free[0], ids_of(LONG), 100, long=True) == 0


def test_steps_change_what_a_slot_holds():
    slot = HeldSlot(NamedSlot("a"), 0)

    def run(position, *ids, long=False):
        slot.begin(position, ids, long)
        slot.computed(position, ids)
        return list(slot.ids)

    assert run(0, 1, 2, 3) == [1, 2, 3]
    assert run(3, 4, 5, 6) == [1, 2, 3, 4, 5, 6]  # 5 and 6 were drafts
    assert run(4, 5) == [1, 2, 3, 4, 5, 6]  # a step that comes again takes nothing away
    assert run(4, 7) == [1, 2, 3, 4, 7]  # 6 followed another token
    assert run(3, 4, 7, 8) == [1, 2, 3, 4, 7, 8]
    assert run(9, 9) == [1, 2, 3, 4, 7, 8]  # behind a gap
    assert run(0, 1, long=True) == [1]
    assert run(1, 2, long=False) == []  # never both


def test_a_slot_that_forgets_is_of_use_only_where_it_still_has_what_a_step_sees():
    free = slots(LONG, LONG[:40], [])
    free[0].kv.earliest, free[0].kv.filled = 90, 100
    for count, chosen, reused in ((101, 0, 100), (100, 0, 99), (91, 0, 90), (90, 1, 40), (50, 1, 40)):
        ids = ids_of([*LONG[: count - 1], 777])
        assert choose_slot(free, ids, count) == (free[chosen], reused), count
        assert held_of(free[chosen], ids, count) == reused
    assert held_of(free[0], ids_of(LONG), 89) == 0, "another board holds no more"


def test_a_step_before_that_begins_anew_and_whoever_copies_notices():
    slot = HeldSlot(NamedSlot("a"), 0, ids_of(LONG))
    slot.kv.earliest, slot.kv.filled = 90, 100
    before = slot.version
    slot.begin(95, LONG[95:], False)
    assert len(slot.ids) == 100 and slot.version == before
    slot.begin(0, LONG[:5], False)  # the same tokens, in the place of those behind
    assert not slot.ids and slot.version > before
    slot.kv.filled = 5
    slot.computed(0, LONG[:5])
    assert list(slot.ids) == LONG[:5]


def test_a_slot_goes_back_to_its_checkpoint():
    (slot, other) = free = slots(LONG, LONG[:40])
    slot.kv.earliest, slot.kv.filled, slot.kv.checkpoint = 90, 100, 64
    for count, chosen, reused in ((100, slot, 99), (90, slot, 64), (65, slot, 64), (60, other, 40)):
        ids = ids_of([*LONG[: count - 1], 777, 778][: count + 1])
        assert choose_slot(free, ids, count) == (chosen, min(reused, count - 1) if chosen is slot else reused), count
    before = slot.version
    slot.begin(64, LONG[64:70], False)
    assert list(slot.ids) == LONG[:64] and slot.version > before, "pages behind it are being changed"


def test_what_a_state_has_forgotten_does_not_count():
    slot = HeldSlot(NamedSlot("a"), 0, ids_of(LONG))
    slot.kv.filled = 97  # a step that came again ended there
    slot.begin(95, LONG[95:97], False)
    slot.computed(95, LONG[95:97])
    assert list(slot.ids) == LONG[:97]


def test_what_is_being_computed_is_not_held_yet():
    slot = HeldSlot(NamedSlot("a"), 0, ids_of([1, 2, 3]))
    slot.begin(1, (9, 9), False)
    assert list(slot.ids) == [1]


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
    slot, memory = HeldSlot(NamedSlot("a"), 0), Memory()
    for position, ids, long in steps:
        if position > len(memory.rows):  # the engine refuses gaps
            continue
        slot.begin(position, ids, long)
        memory.run(position, ids, long)
        slot.computed(position, ids)
        assert memory.right(slot.ids, slot.long) == len(slot.ids)


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_a_common_prefix_is_the_longest(a, b):
    n = common_prefix(ids_of(a), ids_of(b))
    assert a[:n] == b[:n] and (n in (len(a), len(b)) or a[n] != b[n])


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=4),
    st.lists(st.integers(0, 1), min_size=1, max_size=6), st.integers(0, 9),
)  # fmt: skip
def test_what_is_reused_is_shared_and_leaves_a_token_to_compute(held, ids, most):
    free, wanted = slots(*held), ids_of(ids)
    slot, reused = choose_slot(free, wanted, most)
    assert reused <= min(most, len(ids) - 1) and list(slot.ids[:reused]) == ids[:reused]
    assert reused >= min(most, len(ids) - 1, common_prefix(free[0].ids, wanted))


def reused_share(boards: int, seed: int) -> float:
    """The share of prompt tokens that needn't be computed when six chats go on, three at a time, over four slots; ends
    of answers reach each board but the first in an order of its own."""
    random = Random(seed)
    held = [Slots([NamedSlot()] * 4) for _ in range(boards)]
    texts = [[chat * 100_000 + i for i in range(200)] for chat in range(6)]
    reused = asked = 0
    for _ in range(60):
        running = []
        for chat in random.sample(range(6), 3):
            ids = ids_of(texts[chat])
            chosen, begin = choose_slot(held[0].free(), ids, len(ids))
            took = [next(s for s in each.free() if s.number == chosen.number) for each in held]
            begin = min(held_of(slot, ids, begin) for slot in took) if boards > 1 else begin
            reused, asked = reused + begin, asked + len(ids)
            text = texts[chat] + [random.randrange(10**6) for _ in range(30)]
            for each, slot in zip(held, took, strict=True):
                each.take(slot)
                slot.begin(begin, text[begin:], False)
                slot.computed(begin, text[begin:])
            question = [random.randrange(10**6) for _ in range(10)]
            texts[chat] = text + question if len(text) < 1200 else texts[chat][:200]
            running.append(took)
        for i, each in enumerate(held):
            for took in random.sample(running, 3) if i else running:
                each.give_back(took[i])
    return reused / asked


def test_three_boards_reuse_as_much_as_one_in_whatever_order_answers_end():
    one, three = ([reused_share(boards, seed) for seed in range(5)] for boards in (1, 3))
    assert sum(three) / 5 > 0.95 * sum(one) / 5 > 0.3
