"""One embedding of all tokens of a text, from what the head would take for each; pure."""

import numpy as np
import numpy.typing as npt


class Pooling:
    """Takes in the hidden states of a text's tokens in their order, piece by piece. `kind` is one of POOLS."""

    def __init__(self, kind: str):
        self._kind = kind
        self._total: npt.NDArray[np.float64] | None = None
        self._weight = 0

    def add(self, hidden: npt.NDArray[np.float32], position: int) -> None:
        """Take in the hidden states, float32 [tokens, hidden_size], of the tokens from `position` on."""
        if self._kind == "last":
            self._total, self._weight = hidden[-1].astype(np.float64), 1
            return
        if self._kind == "cls":
            hidden = hidden[: max(0, 1 - position)]
        weights = np.ones(len(hidden), np.int64)
        if self._kind == "weighted_mean":
            weights = np.arange(position + 1, position + 1 + len(hidden))
        total = (weights[:, None] * hidden.astype(np.float64)).sum(axis=0)
        self._total = total if self._total is None else self._total + total
        self._weight += int(weights.sum())

    def vector(self) -> npt.NDArray[np.float32]:
        """Return the embedding of what was taken in, float32 [hidden_size]."""
        assert self._total is not None and self._weight, "a prompt has a token"
        return (self._total / self._weight).astype("<f4")
