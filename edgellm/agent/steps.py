"""A step: tokens of one sequence that are known and not computed yet, and the outcome of computing them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(slots=True)
class Step:
    """Positions [position, end) of a sequence, to be computed here: a prompt or a part of it, the last token of an
    answer, or that token with drafts behind it.

    `x` is what the section takes: int64 [tokens] in the first section, else float32 [tokens, row_size]. `ids` are
    the tokens at these positions. The pass that the step belongs to ends at `pass_len` tokens. The last board chooses
    a token after each of the last `logits` tokens. `long` says that the pass has the long rotary factors, `trace` that
    what each layer gives is asked for, `pool` that what the head would take is. The last board may send up to `drafts`
    drafts with the tokens that it chooses. The engine sets `slot`, the section's KV slot of this sequence.
    """

    seq_id: int
    x: np.ndarray = field(repr=False)
    position: int
    pass_len: int
    logits: int
    ids: Sequence[int] = field(repr=False)
    long: bool = False
    trace: bool = False
    pool: bool = False
    drafts: int = 0
    slot: Any = field(default=None, repr=False)

    @property
    def end(self) -> int:
        return self.position + len(self.x)

    @property
    def is_decode(self) -> bool:
        """Whether this is one token with the drafts behind it, somewhere behind the first position."""
        return self.position > 0 and len(self.x) == max(1, self.logits) and not self.alone

    @property
    def alone(self) -> bool:
        """Whether it's computed without others, because it asks for something else than they do."""
        return self.trace or self.pool

    def part(self, start: int, end: int) -> "Step":
        """Return tokens [start, end) of this step as a step. Only the part with the last token has logits, so it must
        not begin behind the first token that wants them."""
        logits = self.logits if end == len(self.x) else 0
        return Step(
            self.seq_id, self.x[start:end], self.position + start, self.pass_len, logits, self.ids[start:end],
            self.long, self.trace, self.pool, self.drafts, self.slot,
        )  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What the section gave for a step, or the exception that it raised; on the last board also the tokens `chosen`
    from these logits, and for each, where asked for, the ids and `logprobs` of the likeliest ones."""

    step: Step
    result: np.ndarray | None = field(default=None, repr=False)
    error: Exception | None = None
    chosen: list[int] = field(default_factory=list)
    logprobs: list[tuple[tuple[int, ...], tuple[float, ...]]] = field(default_factory=list)


@dataclass
class Stats:
    """What this board did for one sequence. Seconds are computing time; steps that ran together share it."""

    reused_tokens: int = 0  # of the prompt, that a slot held already
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_steps: int = 0
    decode_s: float = 0.0
    draft_tokens: int = 0  # in decode steps

    def add(self, step: Step, seconds: float) -> None:
        if step.is_decode:
            self.decode_steps += 1
            self.decode_s += seconds
            self.draft_tokens += len(step.x) - 1
        else:
            self.prefill_tokens += len(step.x)
            self.prefill_s += seconds
