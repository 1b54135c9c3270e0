"""A sequence as a stage knows it: its prompt, its answer so far, and which tokens may be chosen next."""

from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

import numpy as np

from edgellm.agent.constraint import Matching
from edgellm.agent.drafting import Speculation
from edgellm.agent.pooling import Pooling
from edgellm.config import STALL_TIMEOUT_S
from edgellm.model.sampler import Sampler
from edgellm.sampling import Sampling
from edgellm.structure import Constraint
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer

_SLOWER = 4  # a pass may take the other boards so many times as long as it took the first one


@dataclass
class Progress:
    """How far a sequence has come, as the first board sees it now and then, to notice a lost step."""

    known: int = 0  # tokens
    computed: int = 0  # tokens, on the first board
    pass_s: float = 0.0  # when the pass under way began
    last_s: float = 0.0  # when something was seen to go on

    def begin(self, now_s: float, known: int) -> None:
        """Record that the prompt's pass begins."""
        self.known, self.pass_s, self.last_s = known, now_s, now_s

    def is_stuck(self, now_s: float, known: int, computed: int, busy: bool) -> bool:
        """Return whether a step must be lost: a token is overdue, and the first board has done its part. `busy` says
        that it hasn't. The other boards may have a long prompt to compute yet, as it had."""
        if known != self.known:
            self.known, self.pass_s, self.last_s = known, now_s, now_s
        if busy or computed != self.computed:
            self.computed, self.last_s = computed, now_s
        return now_s - self.last_s > STALL_TIMEOUT_S + _SLOWER * (self.last_s - self.pass_s)


@dataclass
class Sequence:
    """An answer in the making. `ids` only grows on the first and the last board; the last one drafts.

    The answer began at position `began`; in a replay that is before the end of the prompt. `wait_s` is how long to wait
    for a slot on the first board; on the others `slot` says which one to take.
    """

    seq_id: int
    owner: Peer
    ids: list[int]
    prompt_len: int
    began: int
    max_tokens: int
    eos: frozenset[int]
    sampling: Sampling
    logits: bool = False
    logprobs: int = 0  # of so many likeliest tokens, beside the one that is chosen
    constraint: Constraint | None = None  # what the answer must match
    pool: str = ""  # how to make an embedding of the prompt, in place of an answer
    cache: str = ""  # whose prefixes it may reuse
    keep: bool = True  # on disk, what its slot holds at its end
    tells_progress: bool = False
    told_s: float = 0.0  # when the manager was told last
    reuse: int = 0  # at most this many tokens of the prompt
    wait_s: float = 0.0
    slot: int = 0
    reused: int = 0  # computing may begin here, or before; if there are `checkpoints`, only at these, or at 0
    checkpoints: tuple[int, ...] = ()
    opened_s: float = 0.0
    restoring: bool = False  # pages are being put into its slot
    start: m.Start | None = None  # that came meanwhile
    used: bool = False  # started, or traced
    started: bool = False  # on the first board
    traced: m.Trace | None = None  # the piece that is being traced, without its data
    speculates: bool = False  # on the first board: its steps may have drafts
    drafts: tuple[int, ...] = ()  # there, in the step under way
    speculation: Speculation | None = None  # on the last board
    sent_bytes: int = 0  # of decode steps, to other boards
    accepted: int = 0  # drafts that were chosen, as the last board knows
    ended: bool = False
    sampler: Sampler | None = None  # on the last board
    matching: Matching | None = None  # there, for a constraint
    pooling: Pooling | None = None  # there, for an embedding
    progress: Progress = field(default_factory=Progress)

    def most_drafts(self, length: int, context: int, rope_switch_len: int | None, running: int, count: int) -> int:
        """Return how many drafts the next step may carry behind `count` tokens, which end the text of `length`: within
        the answer, a slot of `context` tokens and one set of rotary factors, and so that the steps of `running`
        sequences together stay as small as one alone may be."""
        most = min(
            m.MAX_CHOICES // max(1, running) - count,
            self.max_tokens - (length - self.began) - 1,
            context - length,
        )
        if rope_switch_len is not None and length <= rope_switch_len:
            most = min(most, rope_switch_len - length)
        return max(0, most)

    def end_with(self, position: int, chosen: list[int], context: int) -> tuple[list[int], str]:
        """Return those of the tokens `chosen` for `position` and behind it that belong to the answer, and why the
        answer ends with the last of them; "" if it continues."""
        for count, token in enumerate(chosen, 1):
            if finish := self._finish_of(position + count - 1, token, context):
                return chosen[:count], finish
        return chosen, ""

    def _finish_of(self, position: int, token: int, context: int) -> str:
        if token in self.eos:
            return "eos"
        if position - self.began + 1 >= self.max_tokens:
            return "length"
        return "context" if position >= context else ""


def choose(
    sampler: Sampler, text: Ids[int], logits: np.ndarray, ids: Ids[int], end: int, matching: Matching | None = None,
    began: int = 0, forces: bool = True,
) -> list[int]:  # fmt: skip
    """Return the tokens that a step chooses, from `logits` [choices, vocab_size] after each of its last tokens.

    `ids` are the step's tokens, `end` is the position after them, and `text` the sequence at least up to the first
    choice's position. A row counts as long as the drafts before it were chosen. With `matching`, the constraint of an
    answer that `began` there, a token that it forces is taken whatever the logits are, and with `forces` also behind
    the last row, up to MAX_CHOICES in all. Raises ModelError for logits that are not finite, and what `matching` does.
    """
    drafts = ids[len(ids) - len(logits) + 1 :]
    chosen: list[int] = []
    position = end - len(drafts)
    sampler.follow(text, position)
    if matching is not None:
        matching.follow(text, began, position)
    for row, draft in zip(logits, (*drafts, None), strict=True):
        token = None if matching is None else matching.forced()
        if token is None:
            token = sampler.choose(row, position, None if matching is None else matching.allowed())
        chosen.append(token)
        if matching is not None:
            matching.append(token)
        if token != draft:
            break
        sampler.append(token)
        position += 1
    if matching is not None and forces:
        while len(chosen) < m.MAX_CHOICES and not matching.ended and (token := matching.forced()) is not None:
            chosen.append(token)
            matching.append(token)
    return chosen


def agreed(drafts: Ids[int], chosen: Ids[int]) -> int:
    """Return how many of the `drafts` were chosen; the last token that is chosen never counts, because nothing has been
    computed behind it."""
    count, most = 0, min(len(drafts), len(chosen) - 1)
    while count < most and drafts[count] == chosen[count]:
        count += 1
    return count
