"""The interface of whatever drafts on the last board: a small draft model, or a head that the model itself brings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgellm.agent.slots import Ids
from edgellm.sampling import Sampling


@dataclass(frozen=True)
class Ask:
    """A sequence that wants drafts: at most `most` of them behind `ids`, all tokens that are known.

    The last board has computed what comes before the last of `ids`, which it has just chosen. With forced tokens it has
    computed less. `slot` is the number of the sequence's slot, on every board; another sequence may have had it
    before, and what a drafter knows of the slot counts only as far as its tokens are the same. `sampling` and `began`
    are the answer's: a draft that is chosen with the answer's own random numbers comes true most often.
    """

    slot: int
    ids: Ids = field(repr=False)
    most: int
    sampling: Sampling = field(default_factory=Sampling)
    began: int = 0


class Drafter(Protocol):
    """Guesses what follows in the sequences of one stage, the last of its plan.

    Nothing that a drafter says changes an answer: all boards verify drafts in the next pass, and each token is chosen
    as if there were none. A drafter keeps its own memory in step: it begins where an `Ask` no longer agrees with what
    it has computed in that slot, and overwrites what is behind, such as drafts that were not chosen.

    The drafting thread (draft_worker.py) calls `behind`, `catch_up` and `drafts`, in its turn among the board's
    engines, and never two at once. The engine's thread calls `computed`, between two steps.

    A head for multi-token prediction is one, too. It takes the hidden state of the model's last layer and the token
    that was chosen from it, for every position, the prompt's as well: `computed` brings them. Such a drafter has
    `takes_hidden`, and a section that has one gives it by `drafter(slots)`; the engine asks the section for the hidden
    states of a step only then. It keeps keys and values of its own layer per slot, in `ram_bytes` that the plan has to
    know, and drafts from the hidden state at the last position that was verified, then from its own.
    """

    name: str  # in stats: "model" or "mtp"
    takes_hidden: bool

    def computed(self, slot: int, position: int, ids: Sequence[int], hidden: np.ndarray[Any, Any]) -> None:
        """Take in a step of the slot: `hidden` float32 [tokens, hidden_size] is what the head takes at [position,
        position + tokens), where `ids` are, drafts included. Only with `takes_hidden`."""

    def behind(self, ask: Ask) -> int:
        """Return how many tokens of `ask.ids` have to be computed before the first draft; at least 1."""

    def catch_up(self, ask: Ask) -> bool:
        """Compute a chunk of these tokens, but not the last one; return whether any are left."""

    def drafts(self, asks: Sequence[Ask]) -> list[tuple[int, ...]]:
        """Return for each of `asks`, of different slots, up to `most` tokens that may follow. Raises EdgellmError if it
        can't draft any more."""
