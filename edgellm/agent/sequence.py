"""A sequence as a stage knows it: its prompt, its answer so far, and which tokens may be chosen next."""

from collections.abc import Sequence as Ids
from dataclasses import dataclass

import numpy as np

from edgellm.agent.draft import Drafter
from edgellm.model.sampler import Sampler
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer


@dataclass
class Sequence:
    """An answer in the making. `ids` only grows on the first and the last board; only the first one drafts."""

    seq_id: int
    owner: Peer
    ids: list[int]
    prompt_len: int
    max_tokens: int
    eos: frozenset[int]
    sampling: Sampling
    logits: bool
    reuse: int = 0  # at most this many tokens of the prompt
    speculate: bool = False
    drafter: Drafter | None = None
    drafts: tuple[int, ...] = ()  # in the step under way
    sent_bytes: int = 0  # of decode steps, to other boards
    accepted: int = 0  # drafts that were chosen, as the last board knows
    ended: bool = False
    sampler: Sampler | None = None  # on the last board

    def most_drafts(self, context: int, rope_switch_len: int | None, running: int) -> int:
        """Return how many drafts the next step may carry: within the answer, a slot of `context` tokens and one set of
        rotary factors, and so that the steps of `running` sequences together stay as small as one alone may be."""
        length = len(self.ids)
        most = min(
            m.MAX_CHOICES // max(1, running) - 1,
            self.max_tokens - (length - self.prompt_len) - 1,
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
        if position - self.prompt_len + 1 >= self.max_tokens:
            return "length"
        return "context" if position >= context else ""


def choose(sampler: Sampler, text: Ids[int], logits: np.ndarray, ids: Ids[int], end: int) -> list[int]:
    """Return the tokens that a step chooses, from `logits` [choices, vocab_size] after each of its last tokens.

    `ids` are the step's tokens, `end` is the position after them, and `text` the sequence at least up to the first
    choice's position. A row counts as long as the drafts before it were chosen. Raises ModelError for logits that are
    not finite.
    """
    drafts = ids[len(ids) - len(logits) + 1 :]
    chosen: list[int] = []
    position = end - len(drafts)
    sampler.follow(text, position)
    for row, draft in zip(logits, (*drafts, None), strict=True):
        token = sampler.choose(row, position)
        chosen.append(token)
        if token != draft:
            break
        sampler.append(token)
        position += 1
    return chosen
