"""Which steps to compute next: queues → a batch. Pure: it has no thread, no lock and no clock of its own.

There is no prefill and no decode here, only tokens that are known and not computed yet: a prompt, its tail behind a
cached prefix, the last token of an answer, that token with drafts. What matters is how many they are.

- A *short* step is the end of its pass and has at most 16 tokens. Short steps that wait run together, one of each
  sequence, because its next one builds on it, and together no more tokens than a chunk has.
- Everything else is computed in *chunks*, each alone: short steps in its batch would wait for it on every board.
- Between two chunks each sequence may have one short step, so neither kind stops the other.
- A chunk is due some turns after it began to wait: as many as its pass still has chunks, but at most four, or as many
  as there are prompts. So a short prompt overtakes long ones, however many take turns, and none is overtaken forever.
- On the first board short steps may wait for others to gather, see `_gather_s`.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from edgellm.agent.steps import Step
from edgellm.limits import MAX_CHOICES

_SHORT_TOKENS = MAX_CHOICES  # a token and its drafts are never more
_BATCH_STEPS = 16
_BATCH_TOKENS = 64  # at most: no more than a chunk, which is what the plan has reserved memory for (plan/needs.py)
_PATIENCE = 4  # turns until a chunk is due, at most, unless more prompts than these take turns
_LOOK_AGAIN_S = 0.005  # at a congested link
_LATE = 4  # a sequence that stays away for this many times its usual absence is silent


class Choice(NamedTuple):
    """Steps to run now, together. If there are none, `wait_s` says how long to wait before asking again, unless
    something changes earlier; None = until something changes."""

    steps: list[Step]
    wait_s: float | None = None


@dataclass(slots=True)
class _Queue:
    """The waiting steps of one sequence, in order, and when the sequence comes and goes."""

    steps: deque[Step] = field(default_factory=deque)
    taken: int = 0  # tokens of the first step that are computed already
    order: int = 0  # counts up whenever a step begins to wait at the head of a queue
    turn: int = 0  # of the scheduler, when the head began to wait
    served: int = -1  # the turn of its last short step
    left_s: float | None = None  # when its last step was done, while none waits
    absence_s: float | None = None  # how long it usually stays away; None = it has never come back

    @property
    def left(self) -> int:
        """Tokens of the first step that are not computed yet."""
        return len(self.steps[0].x) - self.taken


class Scheduler:
    """The queues of one section, one a sequence. Times are seconds of any clock that never goes back.

    `chunk` is in tokens. `batches` says that steps give the same bits together as alone, and that together is faster.
    `groups` is the number of groups of short steps that keep all boards busy, one a board; 0 where none gather. Chunks
    end at multiples of `cut` tokens of the sequence, unless it is 0.
    """

    def __init__(self, chunk: int, *, batches: bool, groups: int = 0, cut: int = 0):
        self.waiting = 0  # steps
        self.waiting_bytes = 0  # of their x
        self._chunk, self._batches, self._groups = chunk, batches, groups if batches else 0
        self._cut = cut
        self._batch_tokens = min(_BATCH_TOKENS, max(chunk, _SHORT_TOKENS))
        self._queues: dict[int, _Queue] = {}
        self._order = 0
        self._turn = 0  # chunks so far
        self._short_since_chunk = 0
        self._batch_s = 0.0  # what the last batch of short steps took
        self._gathers_until_s: float | None = None

    def add(self, step: Step, now_s: float) -> None:
        """Queue a step behind those of its sequence."""
        queue = self._queues.setdefault(step.seq_id, _Queue())
        if queue.left_s is not None:
            absence_s, queue.left_s = now_s - queue.left_s, None
            # One long absence, behind another sequence's prompt, isn't usual yet.
            queue.absence_s = absence_s if queue.absence_s is None else min(absence_s, 2 * queue.absence_s)
        queue.steps.append(step)
        if len(queue.steps) == 1:
            self._line_up(queue)
        self.waiting += 1
        self.waiting_bytes += step.x.nbytes

    def has(self, seq_id: int) -> bool:
        """Return whether a step of this sequence waits."""
        queue = self._queues.get(seq_id)
        return queue is not None and bool(queue.steps)

    def close(self, seq_id: int) -> None:
        """Forget a sequence and drop its steps."""
        queue = self._queues.pop(seq_id, None)
        if queue is None:
            return
        if queue.steps:
            self.waiting -= len(queue.steps)
            self.waiting_bytes -= sum(step.x.nbytes for step in queue.steps) - queue.steps[0].x[: queue.taken].nbytes
        if not self.waiting:
            self._gathers_until_s = None  # none is left that waited

    def next(self, now_s: float, congested: bool = False) -> Choice:
        """Choose what to run now. While `congested`, results can't be sent: chunks wait, short steps continue."""
        short: list[_Queue] = []
        long: list[_Queue] = []
        for queue in self._queues.values():
            if queue.steps:
                (short if self._is_short(queue) else long).append(queue)
        if long and not congested:
            # New sequences could come for ever, each with its one short step.
            more = self._short_since_chunk < len(self._queues)
            short = [queue for queue in short if more and queue.served < self._turn]
            if not short:
                patience = max(_PATIENCE, len(long))
                return Choice([self._take_chunk(min(long, key=lambda queue: self._due(queue, patience)))])
        elif short and (wait_s := self._gather_s(short, now_s)):
            return Choice([], wait_s)
        if short:
            return Choice(self._take_short(short))
        return Choice([], _LOOK_AGAIN_S if long else None)

    def done(self, steps: list[Step], now_s: float, took_s: float) -> None:
        """Record that `steps`, chosen by `next`, took `took_s` to compute, together."""
        for step in steps:
            queue = self._queues.get(step.seq_id)
            if queue is not None and not queue.steps:
                queue.left_s = now_s
        alone = steps[0]
        short = len(alone.x) <= _SHORT_TOKENS and alone.end == alone.pass_len and not alone.alone
        if len(steps) > 1 or short:
            self._batch_s = took_s

    # Inside

    def _line_up(self, queue: _Queue) -> None:
        """Put the head of a queue behind all others."""
        self._order += 1
        queue.order, queue.turn = self._order, self._turn

    def _chunk_of(self, queue: _Queue) -> int:
        """Return how many tokens to compute next: a chunk, but tokens that need logits stay together."""
        left, step = queue.left, queue.steps[0]
        count = left if left <= self._chunk else min(self._chunk, left - step.logits) or left
        if self._cut and not step.alone:
            until = self._cut - (step.position + queue.taken) % self._cut
            if until <= left - step.logits:
                return min(count, until)
        return count

    def _is_short(self, queue: _Queue) -> bool:
        step = queue.steps[0]
        if step.alone:  # of any size
            return False
        return step.end == step.pass_len and queue.left <= _SHORT_TOKENS and self._chunk_of(queue) == queue.left

    def _due(self, queue: _Queue, patience: int) -> tuple[int, int, int]:
        """Return the turn in which the next chunk is due, at most `patience` after it began to wait, and what decides
        between equals."""
        step = queue.steps[0]
        chunks_left = -(-(step.pass_len - step.position - queue.taken) // self._chunk)
        return queue.turn + min(chunks_left, patience), chunks_left, queue.order

    def _take_chunk(self, queue: _Queue) -> Step:
        self._turn += 1
        self._short_since_chunk = 0
        return self._take(queue, self._chunk_of(queue))

    def _take_short(self, queues: list[_Queue]) -> list[Step]:
        """Take one step off each queue, first those that wait for longest, as many as may run together."""
        self._gathers_until_s = None
        steps: list[Step] = []
        tokens = 0
        for queue in sorted(queues, key=lambda queue: queue.order):
            if tokens + queue.left > self._batch_tokens:
                continue
            tokens += queue.left
            queue.served = self._turn
            steps.append(self._take(queue, queue.left))
            if not self._batches or len(steps) == _BATCH_STEPS:
                break
        self._short_since_chunk += len(steps)
        return steps

    def _take(self, queue: _Queue, count: int) -> Step:
        """Take the next `count` tokens off a queue, as a step."""
        whole, start = queue.steps[0], queue.taken
        step = whole if count == len(whole.x) else whole.part(start, start + count)
        if start + count < len(whole.x):
            queue.taken += count
        else:
            queue.steps.popleft()
            queue.taken = 0
            self.waiting -= 1
        if queue.steps:
            self._line_up(queue)
        self.waiting_bytes -= step.x.nbytes
        return step

    def _gather_s(self, short: list[_Queue], now_s: float) -> float:
        """Return how much longer to wait for more short steps before running those that wait; 0 = run now.

        With more groups than boards, each group reads all weights for fewer tokens, and no board is busier. The wait
        is bounded by what the last batch took, because some may be delayed on their way. A sequence
        that is open and silent isn't waited for, and a new one doesn't wait.
        """
        if not self._groups or any(queue.absence_s is None for queue in short):
            return 0.0
        coming = sum(self._is_coming(queue, now_s) for queue in self._queues.values())
        if len(short) * self._groups >= len(short) + coming:
            return 0.0
        if self._gathers_until_s is None:
            self._gathers_until_s = now_s + self._batch_s
        return max(0.0, self._gathers_until_s - now_s)

    def _is_coming(self, queue: _Queue, now_s: float) -> bool:
        """Whether the next step of a sequence is on its way, judging by when the ones before it came."""
        if queue.left_s is None or queue.absence_s is None:
            return False
        return now_s - queue.left_s <= max(_LATE * queue.absence_s, self._batch_s)
