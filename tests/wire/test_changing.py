"""The order in which one board's plan is changed, without I/O."""

import pytest

from edgellm.errors import ClaimError, EdgellmError, PlanError
from edgellm.wire import messages as m
from edgellm.wire.changing import MAX_EPOCH, MAX_JUMP, Changing, State

ANNA, BEN = object(), object()
CLAIM = {"replaces": 1, "epoch": 2}


def claimed() -> Changing:
    change = Changing("pi1")
    change.claim(ANNA, CLAIM, 1)
    return change


def test_claim_assign_commit_as_the_bytes_come():
    change, states = Changing("pi1"), []
    frames = ['14 00 00 00 09 7b 22 72 65 70 6c 61 63 65 73 22 3a 31 2c 22 65 70 6f 63 68 22 3a 32 7d',
              '07 00 00 00 0a 7b 22 70 6c 61 6e 22 3a 7b 22 65 70 6f 63 68 22 3a 32 7d 7d',
              '16 00 00 00 0b 7b 22 65 70 6f 63 68 22 3a 32 7d']  # fmt: skip
    for frame in map(bytes.fromhex, frames):
        match m.BY_TYPE[frame[0]].decode(frame[1:]):
            case m.Claim(content):
                change.claim(ANNA, content, 1)
            case m.Assign(content):
                change.assign(ANNA, content["plan"]["epoch"])
                change.prepared(ANNA, content["plan"]["epoch"])
            case m.Commit(content):
                change.commit(ANNA, content["epoch"])
                assert change.end(ANNA)
        states.append(change.state)
    assert states == [State.CLAIMED, State.PREPARED, State.FREE]


@pytest.mark.parametrize("what", ["assign", "prepared", "commit"])
@pytest.mark.parametrize(("who", "epoch"), [(BEN, 2), (ANNA, 3), (ANNA, None), (ANNA, "2")])
def test_only_who_has_the_claim_goes_on_and_only_with_its_epoch(what, who, epoch):
    change = claimed()
    with pytest.raises(ClaimError, match="was not claimed for epoch"):
        getattr(change, what)(who, epoch)
    assert change.state is State.CLAIMED and change.has(ANNA)


def test_nothing_is_committed_that_was_not_prepared_or_was_committed_already():
    change = claimed()
    for _ in range(2):
        with pytest.raises(ClaimError, match="board pi1 has not prepared epoch 2"):
            change.commit(ANNA, 2)
        change.prepared(ANNA, 2)
        change.assign(ANNA, 2)  # another one begins
    change.prepared(ANNA, 2)
    change.commit(ANNA, 2)
    with pytest.raises(ClaimError, match="has not prepared"):
        change.commit(ANNA, 2)


def test_a_claim_that_ended_while_its_section_was_loaded_is_over():
    change = claimed()
    change.assign(ANNA, 2)
    assert change.end(ANNA) and not change.end(ANNA)
    with pytest.raises(ClaimError):
        change.prepared(ANNA, 2)
    assert change.state is State.FREE


def test_one_manager_at_a_time():
    change = claimed()
    with pytest.raises(ClaimError, match="another manager is giving board pi1 the plan of epoch 2"):
        change.claim(BEN, CLAIM, 1)
    change.prepared(ANNA, 2)
    change.claim(ANNA, {"replaces": 1, "epoch": 3}, 1)  # its own, anew
    assert change.state is State.CLAIMED
    change.claim(BEN, {"replaces": None, "epoch": None}, 1)  # returns nothing of anna's
    assert change.has(ANNA)
    change.claim(ANNA, {"epoch": None}, 1)
    change.claim(BEN, CLAIM, 1)
    assert change.has(BEN) and not change.has(ANNA)


@pytest.mark.parametrize(
    ("content", "held", "said"),
    [
        ({"replaces": None, "epoch": 2}, 1, "holds epoch 1; it was claimed for epoch 2 in place of no plan"),
        ({"replaces": 1, "epoch": 2}, None, "holds no plan; it was claimed for epoch 2 in place of epoch 1"),
        ({"replaces": 2, "epoch": 2}, 2, "holds epoch 2; it was claimed for epoch 2"),
        ({"replaces": 1, "epoch": 2 + MAX_JUMP}, 1, f"takes epochs up to {1 + MAX_JUMP}"),
        ({"replaces": None, "epoch": MAX_EPOCH + 1}, None, f"takes epochs up to {MAX_EPOCH}"),
    ],
)
def test_a_manager_that_is_wrong_about_the_board_is_told(content, held, said):
    change = Changing("pi1")
    with pytest.raises(ClaimError, match=said):
        change.claim(ANNA, content, held)
    assert change.state is State.FREE


@pytest.mark.parametrize("content", [{"epoch": "2"}, {"epoch": 2.0}, {"epoch": True}, {"epoch": 2, "replaces": "1"},
                                     {"epoch": [2]}, {"epoch": 2, "replaces": False}])  # fmt: skip
def test_a_claim_that_is_none_changes_nothing(content):
    change = Changing("pi1")
    with pytest.raises(PlanError) as e:
        change.claim(ANNA, content, 1)
    assert isinstance(e.value, EdgellmError) and change.state is State.FREE
