"""The line in front of the slots: who is next, what is told, who must go. Pure."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.agent import door as d
from edgellm.agent.door import Door
from edgellm.errors import BusyError


def enter(door, *seq_ids, who="anna", tokens=10, deadline_s=100.0):
    for seq_id in seq_ids:
        door.enter(seq_id, who, tokens, deadline_s)


def served(door):
    """All, in the order in which they are served."""
    order = []
    while (seq_id := door.next()) is not None:
        assert door.leave(seq_id)
        order.append(seq_id)
    return order


def test_who_came_first_is_served_first():
    door = Door()
    enter(door, 5, 3, 9)
    assert (len(door), 3 in door, 4 in door) == (3, True, False)
    assert served(door) == [5, 3, 9] and len(door) == 0 and door.next() is None


def test_positions_are_told_when_they_change_and_only_then():
    door = Door()
    enter(door, 5, 3, 9)
    assert door.moved() == [(5, 1), (3, 2), (9, 3)]
    assert door.moved() == []
    enter(door, 7)
    assert door.moved() == [(7, 4)]
    door.leave(3)
    assert door.moved() == [(9, 2), (7, 3)]


def test_who_leaves_is_gone_and_may_come_again_at_the_end():
    door = Door()
    enter(door, 1, 2)
    assert door.leave(1) and not door.leave(1)
    enter(door, 1)
    assert served(door) == [2, 1]


def test_those_whose_deadline_has_passed_are_known_in_order():
    door = Door()
    for seq_id, deadline_s in ((1, 30.0), (2, 10.0), (3, 20.0)):
        enter(door, seq_id, deadline_s=deadline_s)
    assert (door.late(9.9), door.late(10.0), door.late(20.0)) == ([], [2], [2, 3])


def test_a_full_line_is_busy():
    door = Door()
    for i in range(d.MAX_LINE):
        enter(door, i, who=i)
    with pytest.raises(BusyError, match="all slots are taken, and 256 prompts of 2560 tokens wait already"):
        enter(door, 999)
    door.leave(17)
    enter(door, 999)


def test_prompts_in_line_take_a_bounded_memory():
    door = Door()
    enter(door, 1, 2, tokens=d.MAX_LINE_TOKENS // 2)
    with pytest.raises(BusyError, match="8388608 tokens wait already"):
        enter(door, 3, tokens=1)
    door.leave(1)
    enter(door, 3, tokens=1)


def test_one_asker_alone_may_have_most_of_the_line_and_never_all_of_it():
    door = Door()
    with pytest.raises(BusyError, match="224 of the 224 prompts that wait are yours; the last 32 places"):
        enter(door, *range(999))
    assert len(door) == 224
    enter(door, *range(1000, 1032), who="otto")  # less than a share
    with pytest.raises(BusyError, match="256 prompts"):
        enter(door, 1032, who="otto")


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_whatever_comes_and_goes_the_order_stays(moves):
    door, line = Door(), []
    for comes, seq_id in moves:
        if comes and seq_id not in line:
            enter(door, seq_id)
            line.append(seq_id)
        elif not comes:
            assert door.leave(seq_id) == (seq_id in line)
            line = [x for x in line if x != seq_id]
        places = {seq_id: place.told for seq_id, place in door._line.items()}
        for seq, position in door.moved():
            assert places[seq] != position == line.index(seq) + 1
        assert door.next() == (line[0] if line else None)
    assert served(door) == line and door._tokens == 0
