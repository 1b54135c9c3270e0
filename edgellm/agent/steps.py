"""A step: as it waits at a board, as a section takes it, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Work(NamedTuple):
    """A step as a section takes it: positions [position, position + len(x)) of the sequence in `slot`, in a pass that
    ends at `pass_len` tokens; the last section gives logits after the last `logits` tokens."""

    x: np.ndarray
    position: int
    slot: object
    pass_len: int
    logits: int


@dataclass(frozen=True)
class Step:
    """Positions [position, position + len(x)) of a sequence, to be computed here; `ids` are their tokens. After each of
    the last `logits` tokens one is to be chosen."""

    seq_id: int
    x: np.ndarray
    position: int
    pass_len: int
    logits: int
    ids: Sequence[int]
    long: bool = False  # with long rotary factors

    @property
    def end(self) -> int:
        return self.position + len(self.x)

    @property
    def is_decode(self) -> bool:
        """One token, and drafts behind it."""
        return self.position > 0 and len(self.x) == max(1, self.logits)


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


Outcome = tuple[Step, np.ndarray | None, Exception | None]  # what the section gave, or what it raised
