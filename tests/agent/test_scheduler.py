"""The scheduler: which steps run next, and with which others. Time is an argument, so nothing here waits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.agent.scheduler import Choice, Scheduler
from edgellm.agent.steps import Step

CHUNK = 32


def step(seq_id, position, count=1, logits=1, pass_len=None):
    """Tokens of a sequence, the last of its pass unless `pass_len` says more; each token's id is its position."""
    ids = tuple(range(position, position + count))
    return Step(seq_id, np.array(ids), position, pass_len or position + count, logits, ids)


class Clock:
    """A scheduler and its time: each run takes as long as it is told to."""

    def __init__(self, batches=True, groups=0, chunk=CHUNK, cut=0):
        self.scheduler = Scheduler(chunk, batches=batches, groups=groups, cut=cut)
        self.now_s = 100.0

    def add(self, *steps):
        for one in steps:
            self.scheduler.add(one, self.now_s)

    def next(self, congested=False):
        return self.scheduler.next(self.now_s, congested)

    def wait_s(self):
        """How long it is to wait before the next look; nothing may run now."""
        steps, wait_s = self.next()
        assert steps == []
        return wait_s

    def run(self, took_s=0.01, congested=False):
        """Run one batch; return its (sequence, position, tokens)."""
        steps = self.next(congested).steps
        if steps:
            self.now_s += took_s
            self.scheduler.done(steps, self.now_s, took_s)
        return [(s.seq_id, s.position, len(s.x)) for s in steps]

    def run_all(self):
        """Run until nothing waits; return the batches."""
        batches = []
        while batch := self.run():
            batches.append(batch)
        assert self.next() == Choice([], None)
        assert (self.scheduler.waiting, self.scheduler.waiting_bytes) == (0, 0)
        return batches


def order(batches):
    """The sequences, where each ran alone."""
    return "".join(str(seq_id) for ((seq_id, _, _),) in batches)


# Tokens that are known and not computed yet are cut into chunks


@pytest.mark.parametrize(
    "position, count, logits, chunk, expected",
    [
        (0, 1, 1, 32, [1]),  # a prompt of one token
        (0, 100, 1, 32, [32, 32, 32, 4]),
        (0, 32, 1, 32, [32]),
        (0, 33, 1, 32, [32, 1]),
        (90, 10, 1, 32, [10]),  # a tail behind a cached prefix
        (90, 40, 1, 32, [32, 8]),
        (50, 1, 1, 32, [1]),  # the last token of an answer
        (50, 16, 16, 32, [16]),  # with drafts
        (50, 16, 16, 5, [16]),  # which stay together whatever a chunk is
        (50, 20, 8, 5, [5, 5, 2, 8]),
        (0, 12, 1, 5, [5, 5, 2]),
        (0, 64, 0, 32, [32, 32]),  # a larger step than a chunk in mid-pass
    ],
)
def test_known_tokens_are_computed_in_chunks(position, count, logits, chunk, expected):
    clock = Clock(chunk=chunk)
    whole = step(3, position, count, logits)
    clock.add(whole)
    parts = []
    while steps := clock.next().steps:
        clock.scheduler.done(steps, 0.0, 0.01)
        parts += steps
    assert [len(p.x) for p in parts] == expected
    assert [i for p in parts for i in p.ids] == list(whole.ids) == [int(i) for p in parts for i in p.x]
    assert [p.position for p in parts] == [position + sum(expected[:i]) for i in range(len(expected))]
    assert [p.logits for p in parts] == [0] * (len(parts) - 1) + [logits]
    assert {p.pass_len for p in parts} == {whole.pass_len}


@pytest.mark.parametrize(
    "position, count, logits, expected",
    [
        (0, 130, 1, [32, 32, 32, 4, 30]),
        (90, 40, 1, [10, 30]),
        (95, 10, 1, [5, 5]),  # a short tail, too
        (99, 2, 1, [1, 1]),
        (99, 1, 1, [1]),
        (95, 10, 10, [10]),  # not drafts, which stay together
        (100, 40, 1, [32, 8]),
        (180, 40, 0, [20, 20]),
    ],
)
def test_chunks_end_where_states_are_kept(position, count, logits, expected):
    clock = Clock(cut=100)
    clock.add(step(1, position, count, logits))
    parts = []
    while steps := clock.next().steps:
        clock.scheduler.done(steps, 0.0, 0.01)
        parts += steps
    assert [len(p.x) for p in parts] == expected
    assert [p.logits for p in parts] == [0] * (len(parts) - 1) + [logits]


def test_steps_of_a_sequence_run_in_order():
    clock = Clock()
    clock.add(step(1, 0, 40), step(1, 40), step(1, 41, 4, 4), step(1, 40))
    batches = clock.run_all()
    assert batches == [[(1, 0, 32)], [(1, 32, 8)], [(1, 40, 1)], [(1, 41, 4)], [(1, 40, 1)]]


# Which run together


def test_short_steps_run_together_one_of_a_sequence_in_order():
    clock = Clock()
    clock.add(step(1, 4), step(2, 4), step(1, 5), step(3, 4), step(1, 6), step(2, 5))
    assert clock.run_all() == [[(1, 4, 1), (2, 4, 1), (3, 4, 1)], [(1, 5, 1), (2, 5, 1)], [(1, 6, 1)]]


def test_a_short_prompt_and_a_short_tail_run_with_the_answers():
    clock = Clock()
    clock.add(step(1, 50), step(2, 0, 10), step(3, 100, 16), step(4, 70, 5, 5))
    assert clock.run_all() == [[(1, 50, 1), (2, 0, 10), (3, 100, 16), (4, 70, 5)]]


def test_a_few_tokens_in_mid_pass_are_a_chunk():
    clock = Clock()
    clock.add(step(1, 50), step(2, 0, 5, 0, pass_len=12))
    assert clock.run_all() == [[(1, 50, 1)], [(2, 0, 5)]]


@pytest.mark.parametrize(
    "chunk, tokens, expected",
    [
        (32, [1] * 20, [16, 4]),
        (5, [1] * 20, [16, 4]),
        (32, [16] * 6, [2, 2, 2]),
        (64, [16] * 6, [4, 2]),
        (128, [16] * 6, [4, 2]),
        (5, [16] * 3, [1, 1, 1]),
        (32, [16, 16, 15, 4, 1], [2, 3]),
        (64, [16, 16, 16, 15, 4, 1], [5, 1]),  # the one that doesn't fit lets the next one pass
    ],
)
def test_a_batch_is_bounded_in_steps_and_in_tokens(chunk, tokens, expected):
    clock = Clock(chunk=chunk)
    clock.add(*(step(i, 40, n, n) for i, n in enumerate(tokens)))
    batches = clock.run_all()
    assert [len(batch) for batch in batches] == expected


def test_a_section_that_does_not_batch_gets_one_step_at_a_time():
    clock = Clock(batches=False)
    clock.add(step(1, 4), step(2, 4), step(1, 5))
    assert order(clock.run_all()) == "121"


# Chunks and short steps take turns


@pytest.mark.parametrize("batches", [True, False])
def test_a_long_prompt_and_a_running_answer_take_turns(batches):
    clock = Clock(batches)
    clock.add(step(2, 0, 128))
    ran = [clock.run()]
    for i in range(3):
        clock.add(step(1, 7 + i))
        ran += [clock.run(), clock.run()]
    assert [len(batch) and batch[0][2] for batch in ran] == [32, 1, 32, 1, 32, 1, 32]


def test_a_batch_and_a_long_prompt_take_turns_one_step_a_sequence():
    clock = Clock()
    clock.add(step(4, 0, 96))
    for i in range(3):
        clock.add(*(step(seq_id, 9 + i) for seq_id in (1, 2, 3)))
    together = [len(batch) for batch in clock.run_all()]
    assert together == [3, 1, 3, 1, 3, 1]


def test_sequences_that_are_open_and_silent_give_no_turns_to_others():
    clock = Clock()
    for seq_id in (1, 2, 3):  # they have run before
        clock.add(step(seq_id, 9))
        clock.run()
    clock.add(step(4, 0, 64))
    clock.add(*(step(1, 10 + i) for i in range(3)))
    assert order(clock.run_all()) == "41411"


def test_new_sequences_that_keep_coming_do_not_stop_a_prompt():
    clock = Clock()
    clock.add(step(0, 0, 64))
    ran = []
    for seq_id in range(1, 9):  # each asks, is answered and goes
        clock.add(step(seq_id, 0, 3))
        ran.append(clock.run()[0][0])
        clock.scheduler.close(seq_id - 1 or 99)
    assert ran.count(0) == 2 and ran.index(0) <= 3


def test_chunks_wait_for_a_congested_link_and_short_steps_go_on():
    clock = Clock()
    clock.add(step(1, 0, 64), step(2, 9))
    assert clock.run(congested=True) == [(2, 9, 1)]
    assert clock.next(congested=True) == Choice([], 0.005)  # nobody tells when it is free again
    assert clock.run() == [(1, 0, 32)]


# Chunks of several prompts


def test_a_short_prompt_overtakes_a_long_one():
    clock = Clock()
    clock.add(step(1, 0, 2048))
    clock.run()
    clock.add(step(2, 0, 20))
    assert clock.run() == [(2, 0, 20)]
    assert clock.run() == [(1, 32, 32)]


def test_on_the_boards_behind_the_first_a_short_prompt_overtakes_too():
    clock = Clock()
    clock.add(*(step(1, p, 32, 0, pass_len=2048) for p in range(0, 320, 32)), step(2, 0, 20))
    assert clock.run() == [(2, 0, 20)]


@pytest.mark.parametrize("long", [1, 3, 8, 15])
@pytest.mark.parametrize("cut", [True, False])
def test_a_prompt_of_a_chunk_waits_for_three_chunks_at_most_whatever_is_before_it(long, cut):
    clock = Clock()
    for seq_id in range(long):  # as the first board has them, and as those behind it get them
        starts = range(0, 2048, CHUNK) if cut else [0]
        clock.add(*(step(seq_id, p, 2048 // len(starts), 0, pass_len=2048) for p in starts))
    for _ in range(5 * long):
        clock.run()
    clock.add(step(99, 0, 20))
    ran = [clock.run()[0][0] for _ in range(4)]
    assert 99 in ran[:3]


@pytest.mark.parametrize(
    "prompts, expected",
    [
        ({1: 640, 2: 640}, "12" * 16 + "1111" + "2222"),  # the last chunks of one run in a row
        ({1: 320, 2: 640}, "12" * 6 + "1111" + "2" * 14),
        ({1: 640, 2: 64}, "22" + "1" * 20),
        ({1: 320, 2: 160, 3: 20}, "32" + "1" + "2222" + "1" * 9),
    ],
)
def test_prompts_take_turns_and_short_ones_go_first(prompts, expected):
    clock = Clock()
    clock.add(*(step(seq_id, 0, count) for seq_id, count in prompts.items()))
    ran = order(clock.run_all())
    assert {int(s): ran.count(s) for s in set(ran)} == {i: -(-n // CHUNK) for i, n in prompts.items()}
    assert ran == expected


def test_a_long_prompt_is_overtaken_by_a_few_short_ones_only():
    clock = Clock()
    clock.add(step(0, 0, 640))
    clock.run()
    ran = []
    for seq_id in range(1, 40):
        if clock.scheduler.waiting < 4:  # slots are bounded
            clock.add(step(seq_id, 0, 20))
        ran.append(clock.run()[0][0])
    turns = [i for i, seq_id in enumerate(ran) if seq_id == 0]
    assert max(b - a for a, b in zip([-1, *turns], turns, strict=False)) <= 7, ran
    assert len(turns) < 20  # the short ones go first


# Gathering


def four_that_decode(groups=1):
    """Four sequences that have come back once, 5 ms after their last step; a batch takes 20 ms."""
    clock = Clock(groups=groups)
    clock.add(*(step(seq_id, 0, 2) for seq_id in range(4)))
    clock.run()
    clock.now_s += 0.005
    clock.add(*(step(seq_id, 2) for seq_id in range(4)))
    assert len(clock.run(0.02)) == 4
    return clock


@pytest.mark.parametrize("groups, enough", [(0, 1), (1, 4), (2, 2), (3, 2), (4, 1), (8, 1)])
def test_steps_wait_until_they_are_a_group(groups, enough):
    clock = four_that_decode(groups)
    for seq_id in range(enough - 1):
        clock.add(step(seq_id, 3))
        assert clock.next() == Choice([], pytest.approx(0.02))
    clock.add(step(enough - 1, 3))
    assert len(clock.run()) == enough


def test_nobody_waits_longer_than_a_batch_takes():
    clock = four_that_decode()
    clock.add(step(0, 3))
    assert clock.wait_s() == pytest.approx(0.02)
    clock.now_s += 0.015
    clock.add(step(1, 3))
    assert clock.wait_s() == pytest.approx(0.005)
    clock.now_s += 0.006
    assert clock.run() == [(0, 3, 1), (1, 3, 1)]


def test_a_sequence_that_is_silent_is_not_waited_for_until_it_comes_back():
    clock, waited = four_that_decode(), []
    for i in range(10):  # 1, 2 and 3 say nothing more
        clock.now_s += 0.005
        clock.add(step(0, 3 + i))
        batch = clock.run(0.02)
        if not batch:
            waited.append(i)
            clock.now_s += clock.wait_s()
            batch = clock.run(0.02)
        assert batch == [(0, 3 + i, 1)]
    assert waited == [0]
    clock.add(step(1, 3), step(0, 13))
    assert len(clock.run(0.02)) == 2
    clock.now_s += 0.001
    clock.add(step(0, 14))
    assert clock.wait_s() > 0  # for 1, which is back


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("away_s", [0.0, 0.001, 0.02, 0.06])
@pytest.mark.parametrize("silent", [1, 2, 3])
def test_sequences_that_are_open_and_silent_cost_the_others_a_twentieth_at_most(groups, away_s, silent):
    def seconds(silent):
        clock = Clock(groups=groups)

        def run(one):
            clock.add(one)
            while not clock.run(0.02):
                clock.now_s += clock.wait_s()
            clock.now_s += away_s

        for seq_id in range(silent + 1):  # each answers once; then their managers sleep, but the first one's
            run(step(seq_id, 0, 2))
            run(step(seq_id, 2))
        began_s = clock.now_s
        for i in range(20):
            run(step(0, 3 + i))
        return clock.now_s - began_s

    assert seconds(silent) <= 1.05 * seconds(0) + 1e-9


def test_one_long_absence_is_not_taken_for_usual():
    clock = four_that_decode()
    clock.now_s += 10.0  # all of them were held up
    clock.add(*(step(seq_id, 3) for seq_id in range(4)))
    assert len(clock.run(0.02)) == 4
    clock.now_s += 0.039
    clock.add(step(0, 4))
    assert clock.wait_s() > 0  # 10 ms count as usual now, twice the 5 ms of before, and four times that aren't over
    clock.now_s += 0.002
    assert clock.run() == [(0, 4, 1)]


def test_closing_those_who_are_waited_for_ends_the_wait():
    clock = four_that_decode(groups=2)
    clock.add(step(0, 3))
    assert clock.wait_s()
    clock.scheduler.close(1)
    clock.scheduler.close(2)
    assert clock.run() == [(0, 3, 1)]


def test_a_gathering_whose_last_sequence_was_closed_is_over():
    clock = four_that_decode()
    clock.add(step(0, 3))
    assert clock.wait_s()
    clock.now_s += 0.015
    clock.scheduler.close(0)
    clock.add(step(1, 3))
    assert clock.wait_s() == pytest.approx(0.02)  # anew


def test_a_new_sequence_and_a_waiting_chunk_end_a_gathering():
    clock = four_that_decode()
    clock.add(step(0, 3))
    assert clock.wait_s()
    clock.add(step(9, 0, 10))
    assert clock.run() == [(0, 3, 1), (9, 0, 10)]
    clock.now_s += 0.001
    clock.add(step(1, 3))
    assert clock.wait_s()
    clock.add(step(8, 0, 64))
    assert clock.run() == [(8, 0, 32)] and clock.run() == [(1, 3, 1)]


# Traces


def test_a_piece_of_a_trace_runs_alone_and_in_its_turn():
    clock = Clock()
    piece = step(7, 0, 4, 0)
    piece.trace = True
    clock.add(step(1, 9), piece, step(2, 0, 2048), step(3, 9))
    ran = [clock.run() for _ in range(3)]
    assert ran == [[(1, 9, 1), (3, 9, 1)], [(7, 0, 4)], [(2, 0, 32)]]


# What waits is counted


def test_bytes_that_wait_are_counted_until_they_run_or_are_dropped():
    clock = Clock()
    clock.add(step(1, 0, 40), step(1, 40), step(2, 0, 50))
    assert (clock.scheduler.waiting, clock.scheduler.waiting_bytes) == (3, 91 * 8)
    assert clock.run() == [(1, 0, 32)]
    assert (clock.scheduler.waiting, clock.scheduler.waiting_bytes) == (3, 59 * 8)
    clock.scheduler.close(1)
    assert (clock.scheduler.waiting, clock.scheduler.waiting_bytes) == (1, 50 * 8)
    clock.scheduler.close(1)
    assert clock.run_all() == [[(2, 0, 32)], [(2, 32, 18)]]


@settings(max_examples=60, database=None, derandomize=True, deadline=None)
@given(st.data())
def test_whatever_comes_each_token_is_computed_once_and_in_order(data):
    clock = Clock(data.draw(st.booleans()), data.draw(st.integers(0, 3)), data.draw(st.integers(1, 40)))
    added, ran, ends = {}, {}, {}
    for _ in range(data.draw(st.integers(1, 40))):
        seq_id = data.draw(st.integers(0, 4))
        match data.draw(st.sampled_from(["add", "add", "run", "run", "wait", "close"])):
            case "add":
                count = data.draw(st.integers(1, 100))
                logits = data.draw(st.integers(0, min(count, 16)))
                begin = ends.get(seq_id, 0)
                more = data.draw(st.sampled_from([0, 0, 50]))
                clock.add(step(seq_id, begin, count, logits, pass_len=begin + count + more))
                ends[seq_id] = begin + count
                added.setdefault(seq_id, []).extend(range(begin, begin + count))
            case "run":
                for which, position, count in clock.run(congested=data.draw(st.booleans())):
                    ran.setdefault(which, []).extend(range(position, position + count))
            case "wait":
                clock.now_s += data.draw(st.floats(0, 0.1))
            case "close":
                clock.scheduler.close(seq_id)
                for mine in (added, ran, ends):
                    mine.pop(seq_id, None)
    while clock.scheduler.waiting:
        batch = clock.run()
        if not batch:
            assert clock.wait_s() > 0
            clock.now_s += clock.wait_s()
        for which, position, count in batch:
            ran.setdefault(which, []).extend(range(position, position + count))
    assert ran == added and clock.scheduler.waiting_bytes == 0
