"""When the last board's drafters compute: what is asked for at once, the rest of a text while no step waits."""

import contextlib
import threading

import pytest

from edgellm.agent.drafters import Ask
from edgellm.agent.drafting import Drafting
from edgellm.agent.slots import ids_of
from tests.agent.hostile import DEADLINE_S


class Counting:
    """A drafter that counts on, and computes `chunk` tokens of a text at once."""

    name, takes_hidden, chunk = "model", False, 40

    def __init__(self):
        self.held, self.chunks, self.fails = 0, 0, False
        self.caught_up = threading.Event()

    def computed(self, slot, position, ids, hidden):
        raise AssertionError("it takes no hidden states")

    def behind(self, ask):
        if self.fails:
            raise RuntimeError("a broken model")
        return len(ask.ids) - min(self.held, len(ask.ids) - 1)

    def catch_up(self, ask):
        self.held, self.chunks = min(self.held + self.chunk, len(ask.ids) - 1), self.chunks + 1
        left = self.held < len(ask.ids) - 1
        if not left:
            self.caught_up.set()
        return left

    def drafts(self, asks):
        for ask in asks:
            self.held = len(ask.ids)
        return [tuple(range(ask.ids[-1] + 1, ask.ids[-1] + 1 + ask.most)) for ask in asks]


class Board:
    """The last board with one drafter; `soon` calls at once, in the drafting thread."""

    def __init__(self):
        self.drafter, self.steps_wait, self.sent, self.came = Counting(), False, [], threading.Event()
        self.drafting = Drafting(
            [self.drafter], contextlib.nullcontext, lambda: self.steps_wait, lambda f, *values: f(*values)
        )

    def begin(self, ids):
        self.said = self.drafting.begin(ids, self.ask, 1)
        self.said.acceptances[0].rate = 0.95

    def ask(self, ids):
        return Ask(0, ids, 0)

    def lap(self, fresh, drafts=(), accepted=0, most=4):
        """A pass ends; what is drafted then."""
        self.drafting.learn(self.said, fresh, 1 + len(drafts), len(drafts), accepted, 1.0)
        self.came.clear()

        def send(drafts):
            self.sent.append(drafts)
            self.said.sent_s = 0.0
            self.came.set()

        self.drafting.draft(self.said, most, self.ask, 1, send)
        assert self.came.wait(DEADLINE_S)
        return self.sent[-1]


@pytest.fixture
def board():
    board = Board()
    yield board
    board.drafting.stop()
    board.drafting.join()


def test_nothing_is_drafted_before_a_pass_was_timed_nor_while_steps_wait(board):
    board.begin([1, 2, 3])
    assert board.lap([4]) == ()
    assert board.lap([5]) == (6, 7, 8, 9)
    board.steps_wait = True
    assert board.lap([6, 7], (6, 7, 8, 9), 1) == ()
    board.steps_wait = False
    assert board.lap([8], most=0) == ()
    assert board.lap([9], most=2) == (10, 11)
    assert (board.drafting.tallies["model"].drafted, board.drafting.tallies["model"].accepted) == (4, 1)


def test_a_long_prompt_is_computed_in_chunks_while_no_step_waits(board):
    board.steps_wait = True
    board.begin(list(range(200)))
    assert board.lap([200]) == board.lap([201]) == () and not board.drafter.chunks
    board.steps_wait = False
    assert board.drafter.caught_up.wait(DEADLINE_S) and board.drafter.chunks in (5, 6)
    while board.drafting._worker.lacks(1, board.drafter):
        assert board.drafter.caught_up.wait(DEADLINE_S)
    assert board.lap([202]) == (203, 204, 205, 206)
    board.drafter.held = 0  # another sequence had its slot meanwhile
    assert board.lap([203], (203, 204), 0) == ()
    assert board.drafter.caught_up.wait(DEADLINE_S)


def test_a_drafter_that_fails_is_asked_no_more(board):
    board.begin([1, 2, 3])
    board.lap([4])
    board.drafter.fails = True
    assert board.lap([5]) == ()
    board.drafter.fails = False
    assert board.lap([6]) == () and board.drafting._worker.broken == {board.drafter}


def test_what_the_text_has_wins_over_a_drafter_whose_drafts_come_true_less_often(board):
    board.begin([7, 8, 9, 50, 51, 52, 53, 1])
    board.lap([7])
    board.said.looked_up.rate = 0.9
    board.said.acceptances[0].rate = 0.3
    assert board.lap([8, 9]) == (50, 51, 52, 53) and board.said.by is None
    board.said.acceptances[0].rate, board.said.looked_up.rate = 0.95, 0.2
    board.lap([60])
    assert board.lap([7, 8, 9]) == (10, 11, 12, 13) and board.said.by == 0
    board.said.acceptances[0].rate = 0.01
    assert board.lap([90]) == () and board.said.acceptances[0].rest == 16


def test_asks_of_several_sequences_run_together():
    asked, together = [ids_of([n]) for n in (5, 9)], []
    board = Board()
    drafts = board.drafter.drafts
    board.drafter.drafts = lambda asks: together.append(len(asks)) or drafts(asks)
    worker, made, done = board.drafting._worker, {}, threading.Semaphore(0)
    with worker._changed:  # both come while the thread can't look
        for n, ids in enumerate(asked):
            worker.ask(n, board.drafter, Ask(n, ids, 2), lambda found, each_s, n=n: (made.update({n: found}),
                                                                                    done.release()))  # fmt: skip
    assert all(done.acquire(timeout=DEADLINE_S) for _ in asked)
    assert made == {0: (6, 7), 1: (10, 11)} and together == [2]
    board.drafting.stop()
    board.drafting.join()
