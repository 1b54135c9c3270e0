"""The order of one answer's messages, without I/O: what is sent, byte by byte, and what counts of what comes back."""

import random

import pytest

from edgellm.errors import LocalProtocolError, RemoteProtocolError
from edgellm.wire import messages as m
from edgellm.wire.asking import Asking, Computed, Done, Failure, InLine, State, Stray, Token, Vector

BOARDS = ("a", "b", "c")
OPENED = m.Opened(1, 2, 3, True, slot=5)


def new(boards=BOARDS, ids=(7, 8, 9, 10)) -> Asking:
    return Asking(1, 2, boards, ids, {"max_tokens": 4})


def opened(asking: Asking) -> Asking:
    """One whose slots are reserved everywhere."""
    asking.open(wait_s=0)
    asking.receive("a", OPENED)
    for board in ("c", "b"):
        asking.receive(board, m.Opened(1, 2, 3, True, slot=5))
    assert asking.state is State.OPEN
    return asking


def started(boards=BOARDS) -> Asking:
    asking = new(boards)
    asking.open(wait_s=0)
    for board in boards:
        asking.receive(board, OPENED)
    asking.start(speculate=True)
    return asking


def frames(sends) -> list[tuple[str, str]]:
    return [(board, m.encode(message).hex(" ")) for board, message in sends]


def test_an_answer_over_two_boards_byte_by_byte():
    asking = Asking(1, 2, ("a", "b"), (5,), {"max_tokens": 1})
    head = "00 00 00 01 00 00 00 00 00 00 00 02"  # epoch and sequence, in every message
    assert frames(asking.open(wait_s=9)) == [
        ("a", f"00 00 00 34 0a {head} 00 00 00 1b 00 00 00 01 "
              "7b 22 6d 61 78 5f 74 6f 6b 65 6e 73 22 3a 31 2c 22 77 61 69 74 5f 73 22 3a 39 7d 05 00 00 00"),
    ]  # fmt: skip
    assert asking.receive("a", m.Queued(1, 2, 3)) == ([], [InLine(3)]) and asking.state is State.IN_LINE
    sends, events = asking.receive("a", m.Opened(1, 2, 0, True, slot=1))
    assert events == [] and frames(sends) == [
        ("b", f"00 00 00 3c 0a {head} 00 00 00 23 00 00 00 01 7b 22 6d 61 78 5f 74 6f 6b 65 6e 73 22 3a 31 2c "
              "22 72 65 75 73 65 22 3a 30 2c 22 73 6c 6f 74 22 3a 31 7d 05 00 00 00"),
    ]  # fmt: skip
    assert asking.receive("b", m.Opened(1, 2, 0, False, slot=1)) == ([], []) and asking.state is State.OPEN
    assert frames(asking.start(speculate=True)) == [("a", f"00 00 00 12 1a {head} 00 00 00 00 00")]  # b can't verify
    assert asking.receive("b", m.Tokens(1, 2, 1, 2, (66,))) == ([], [Token(1, 66, "length")])
    assert asking.state is State.ENDED
    assert frames(asking.close()) == [("a", f"00 00 00 0d 0e {head}"), ("b", f"00 00 00 0d 0e {head}")]
    assert asking.receive("b", m.Closed(1, 2, {"x": 1})) == ([], [Done("b", {"x": 1})]) and not asking.closed_by_all
    assert asking.receive("a", m.Closed(1, 2, {})) == ([], [Done("a", {})]) and asking.closed_by_all


def test_the_others_take_the_slot_of_the_first_and_the_least_that_all_hold_is_reused():
    asking = new()
    assert [board for board, _ in asking.open(wait_s=1.5)] == ["a"]
    sends, _ = asking.receive("a", OPENED)
    assert [(b, x.options) for b, x in sends] == [(b, {"max_tokens": 4, "reuse": 3, "slot": 5}) for b in ("b", "c")]
    asking.receive("c", m.Opened(1, 2, 1, True, slot=5))
    assert asking.state is State.RESERVING
    asking.receive("b", m.Opened(1, 2, 2, True, slot=5))
    assert (asking.state, asking.reuse, asking.batches) == (State.OPEN, 1, True)
    assert asking.start(speculate=False) == [("a", m.Start(1, 2, 1, False))]


@pytest.mark.parametrize("b, c, begins", [
    ((500, range(440, 501)), (480, ()), 480),  # c can begin anywhere
    ((500, range(440, 501)), (430, ()), 0),
    ((500, range(440, 501)), (490, range(430, 461)), 460),
    ((500, range(440, 501)), (450, range(400, 440)), 0),
    ((0, ()), (500, range(440, 501)), 0),
    ((500, ()), (510, ()), 490),
    ((500, (64, 128, 256, 512)), (500, (64, 128, 192)), 128),
])  # fmt: skip
@pytest.mark.parametrize("a", [(), (0,), range(64, 491, 2)])
def test_computing_begins_as_far_on_as_every_board_can(a, b, c, begins):
    asking = new()
    asking.open(wait_s=0)
    asking.receive("a", m.Opened(1, 2, 490, True, 5, tuple(a)))
    asking.receive("c", m.Opened(1, 2, c[0], True, 5, tuple(c[1])))
    asking.receive("b", m.Opened(1, 2, b[0], True, 5, tuple(b[1])))
    expected = begins if len(a) != 1 else 0
    assert (asking.state, asking.reuse) == (State.OPEN, expected)
    assert asking.start(speculate=False) == [("a", m.Start(1, 2, expected, False))]


def test_a_single_board_begins_where_it_can():
    asking = new(("a",))
    asking.open(wait_s=0)
    asking.receive("a", m.Opened(1, 2, 300, True, 5, (100, 200, 1000)))
    assert (asking.state, asking.reuse) == (State.OPEN, 200)


def test_a_single_board_is_open_at_once():
    asking = new(("a",))
    asking.open(wait_s=0)
    assert asking.receive("a", OPENED) == ([], []) and asking.state is State.OPEN


@pytest.mark.parametrize(
    "message",
    [m.Opened(1, 3, 3, True), m.Opened(2, 2, 3, True), m.Status({}), m.Pong(1, 2, 3)],
    ids=["another sequence", "another epoch", "of none", "a pong"],
)
def test_what_is_of_another_sequence_is_ignored(message):
    asking = new()
    asking.open(wait_s=0)
    assert asking.receive("a", message) == ([], []) and asking.state is State.OPENING


def test_an_opened_that_nobody_asked_for_is_ignored():
    asking = new()
    asking.open(wait_s=0)
    assert asking.receive("b", OPENED) == ([], []) and asking.state is State.OPENING
    asking.receive("a", OPENED)
    asking.receive("b", m.Opened(1, 2, 3, True))
    asking.receive("b", m.Opened(1, 2, 0, True))  # again
    asking.receive("c", m.Opened(1, 2, 3, True))
    assert asking.reuse == 3


@pytest.mark.parametrize(("board", "before"), [("a", []), ("b", [("a", OPENED)])])
def test_an_answer_to_open_that_is_none_is_refused(board, before):
    asking = new()
    asking.open(wait_s=0)
    for who, message in before:
        asking.receive(who, message)
    with pytest.raises(RemoteProtocolError, match="answered an open with tokens"):
        asking.receive(board, m.Tokens(1, 2, 4, 0, (1,)))


def test_tokens_count_once_in_order_and_only_from_the_last_board():
    asking = started()
    assert asking.receive("b", m.Tokens(1, 2, 4, 0, (66,))) == ([], [Stray("b")])
    assert asking.receive("b", m.Tokens(1, 2, 4, 0, (66,))) == ([], [])  # told once
    assert asking.receive("c", m.Tokens(1, 2, 5, 0, (1,))) == ([], [])  # behind a gap
    assert asking.receive("c", m.Tokens(1, 2, 4, 0, (1, 2)))[1] == [Token(4, 1, ""), Token(5, 2, "")]
    assert asking.receive("c", m.Tokens(1, 2, 5, 1, (2, 3)))[1] == [Token(6, 3, "eos")]  # 5 came again
    assert asking.state is State.ENDED
    assert asking.receive("c", m.Tokens(1, 2, 7, 0, (4,))) == ([], [])


def test_logits_and_logprobs_come_with_their_token_and_no_others_are_kept():
    asking = started()
    logprobs = m.Logprobs(1, 2, 4, (1, 9), (-0.5, -1.0))
    for message in (m.Logits(1, 2, 4, b"\0\0\x80?"), logprobs, m.Logits(1, 2, 99, b"1234")):
        assert asking.receive("c", message) == ([], [])
    (token,) = asking.receive("c", m.Tokens(1, 2, 4, 0, (1,)))[1]
    assert (token.logits, token.logprobs) == (b"\0\0\x80?", ((1, -0.5), (9, -1.0)))
    assert not asking._logits and not asking._logprobs


def test_the_last_board_tells_how_far_the_prompt_is():
    asking = started()
    assert asking.receive("c", m.Prefilled(1, 2, 2)) == ([], [Computed(2)])
    assert asking.receive("c", m.Prefilled(1, 2, 5)) == ([], [])  # beyond the prompt
    assert asking.receive("a", m.Prefilled(1, 2, 2)) == ([], [Stray("a")])


def test_an_embedding_ends_the_sequence_as_a_last_token_does():
    asking = started()
    assert asking.receive("c", m.Embedded(1, 2, b"\0\0\x80?")) == ([], [Vector(b"\0\0\x80?")])
    assert asking.state is State.ENDED


@pytest.mark.parametrize("how_far", ["opening", "in line", "reserving", "started"])
def test_a_failure_ends_it_wherever_it_is(how_far):
    asking = new()
    asking.open(wait_s=0)
    if how_far == "in line":
        asking.receive("a", m.Queued(1, 2, 1))
    if how_far in ("reserving", "started"):
        asking.receive("a", OPENED)
    if how_far == "started":
        asking = started()
    failed = m.Failed(1, 2, m.FAILURES.index("link"), "cut", "c")
    assert asking.receive("b", failed) == ([], [Failure("b", "link", "cut", "c")])
    assert asking.state is State.FAILED
    assert len(asking.close()) == 3 and asking.close() == []


def test_what_is_not_due_is_our_own_error():
    asking = new()
    with pytest.raises(LocalProtocolError, match="nothing is sent; expected: every board has the slot"):
        asking.start(speculate=True)
    assert asking.close() == []  # nobody has heard of it
    opened(asking)
    asking.start(speculate=True)
    with pytest.raises(LocalProtocolError, match="the first board has begun"):
        asking.start(speculate=True)
    with pytest.raises(LocalProtocolError):
        asking.open(wait_s=0)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_boards_say_tokens_are_in_order_and_nothing_grows(seed):
    rng = random.Random(seed)
    asking = new()
    asking.open(wait_s=0)
    got: list[int] = []

    def message():
        at = rng.randrange(3, 30)
        return rng.choice([
            m.Opened(1, 2, rng.randrange(5), True, rng.randrange(3)), m.Queued(1, 2, 1), m.Closed(1, 2, {}),
            m.Tokens(1, 2, at, rng.choice((0, 0, 0, 0, 1)), tuple(range(at, at + rng.randrange(1, 9)))),
            m.Logits(1, 2, at, b"1234"), m.Logprobs(1, 2, at, (1,), (0.0,)),
        ])  # fmt: skip

    for _ in range(300):
        if asking.state is State.OPEN:
            asking.start(speculate=True)
        try:
            _, events = asking.receive(rng.choice(BOARDS), message())
        except RemoteProtocolError:
            continue
        got += [event.position for event in events if isinstance(event, Token)]
        assert len(asking._logits) + len(asking._logprobs) <= 2 * m.MAX_CHOICES
    assert got == list(range(4, 4 + len(got)))
