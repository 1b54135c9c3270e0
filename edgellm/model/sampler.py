"""Choosing the next token from logits. NumPy only.

The steps are those of transformers' generate(), in its order: repeat penalty, temperature, top-k, top-p, min-p, draw;
behind the repeat penalty are OpenAI's presence penalty, frequency penalty and biases. docs/wire.md has them to the
letter.

A choice depends on the logits, the options with their seed, the position and the tokens before it, and on nothing else.
Probabilities are float64. The exponential function may differ in its last bit from one processor to another, so another
processor chooses another token only where the random number falls within about 1e-13 of the border between two tokens.
"""

from collections.abc import Sequence

import numpy as np

from edgellm.errors import ModelError
from edgellm.model.draw import draw, scratch
from edgellm.model.protocols import Array
from edgellm.sampling import Sampling

_WORD = (1 << 64) - 1


class Sampler:
    """The choice of one sequence's tokens; its answer began at position `began`. Not thread-safe."""

    def __init__(self, sampling: Sampling, vocab_size: int, began: int = 0):
        self.sampling = sampling
        self._seen = Seen(vocab_size, sampling.repeat_penalty) if sampling.repeat_penalty != 1.0 else None
        self._answered = None
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._answered = Answered(vocab_size, began, sampling.presence_penalty, sampling.frequency_penalty)
        self._biased = np.array([token for token, _ in sampling.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in sampling.logit_bias], np.float32)

    def follow(self, ids: Sequence[int], position: int) -> None:
        """Have the text be ids[:position].

        A token stays what it was: of `ids` only those after the last call's text are read, or none where the text
        becomes shorter again.
        """
        for text in (self._seen, self._answered):
            if text is not None:
                text.follow(ids, min(position, len(ids)))

    def append(self, token: int) -> None:
        """Have the text be one token longer."""
        for text in (self._seen, self._answered):
            if text is not None:
                text.append(token)

    def choose(self, logits: Array, position: int, allowed: Array | None = None) -> int:
        """Return the token id for `position`, from float32 logits [vocab_size]; with `allowed`, bool [vocab_size], one
        of these tokens, as if there were no others.

        Raises ModelError when the logits hold NaN or nothing finite, or nothing is allowed.
        """
        if self._seen is not None:
            logits = self._seen.penalize(logits)
        if self._answered is not None:
            logits = self._answered.penalize(logits)
        if len(self._biased):
            biased = scratch(3, len(logits), np.float32)
            np.copyto(biased, logits)
            biased[self._biased] += self._biases
            logits = biased
        ids = None
        if allowed is not None:
            ids = np.flatnonzero(allowed)
            if not len(ids):
                raise ModelError(f"no token may come at position {position}")
            logits = logits[ids]
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise ModelError(f"the logits at position {position} are not finite: a shard or a board is broken")
        if self.sampling.temperature != 0.0:
            best = draw(logits, float(logits[best]), self.sampling, _uniform(self.sampling.seed, position))
        return best if ids is None else int(ids[best])


class Seen:
    """The tokens of a text, for the repeat penalty. The time to update and to apply them doesn't grow with the text.

    A penalty r divides positive logits and multiplies the others (CTRL, arXiv:1909.05858), once however often a token
    occurs: `_factors` float32 [vocab_size] are r for these tokens and 1 for the rest.
    """

    def __init__(self, vocab_size: int, penalty: float):
        self._factors, self._penalty = np.ones(vocab_size, np.float32), penalty
        self._counts: dict[int, int] = {}
        self._ids: list[int] = []

    def follow(self, ids: Sequence[int], count: int) -> None:
        """Have the text be ids[:count]; see `Sampler.follow`."""
        while len(self._ids) > count:
            token = self._ids.pop()
            self._counts[token] -= 1
            if not self._counts[token]:
                self._factors[token] = 1.0
        for i in range(len(self._ids), count):
            self.append(ids[i])

    def append(self, token: int) -> None:
        """Have the text be one token longer."""
        self._ids.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        self._factors[token] = self._penalty

    def penalize(self, logits: Array) -> Array:
        """Return penalized logits, which are valid until the thread's next call."""
        divided, multiplied = (scratch(i, len(logits), np.float32) for i in range(2))
        with np.errstate(over="ignore", invalid="ignore"):
            np.divide(logits, self._factors, out=divided)
            np.multiply(logits, self._factors, out=multiplied)
        # Of the two, a positive logit becomes the one nearer to 0, and so the smaller one, if r is over 1; a negative
        # logit becomes the one that is farther away, which is the smaller one as well. Below 1 it is the larger one.
        nearer = np.minimum if self._penalty > 1.0 else np.maximum
        penalized: Array = nearer(divided, multiplied, out=divided)
        return penalized


class Answered:
    """The tokens of an answer that began at position `began`, for OpenAI's penalties: a logit loses `presence` if its
    token occurs, and `frequency` as often as it does. `_losses` float32 [vocab_size] are both."""

    def __init__(self, vocab_size: int, began: int, presence: float, frequency: float):
        self._began, self._presence, self._frequency = began, presence, frequency
        self._losses = np.zeros(vocab_size, np.float32)
        self._counts: dict[int, int] = {}
        self._ids: list[int] = []

    def follow(self, ids: Sequence[int], count: int) -> None:
        """Have the text be ids[:count]; see `Sampler.follow`."""
        while len(self._ids) > max(0, count - self._began):
            self._count(self._ids.pop(), -1)
        for i in range(self._began + len(self._ids), count):
            self.append(ids[i])

    def append(self, token: int) -> None:
        """Have the text be one token longer."""
        self._ids.append(token)
        self._count(token, 1)

    def penalize(self, logits: Array) -> Array:
        """Return penalized logits, which are valid until the thread's next call."""
        penalized: Array = np.subtract(logits, self._losses, out=scratch(2, len(logits), np.float32))
        return penalized

    def _count(self, token: int, more: int) -> None:
        count = self._counts[token] = self._counts.get(token, 0) + more
        self._losses[token] = self._presence + self._frequency * count if count else 0.0


def sample(logits: Array, history: Sequence[int], sampling: Sampling, position: int, began: int = 0) -> int:
    """Return the token id for `position`, from float32 logits [vocab_size] and the text so far, of which the answer
    `began` at that position: a `Sampler` for once.

    Raises ModelError when the logits hold NaN or nothing finite.
    """
    sampler = Sampler(sampling, len(logits), began)
    sampler.follow(history, len(history))
    return sampler.choose(logits, position)


def logprobs(logits: Array, token: int, count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return token ids and the natural logarithms of their probabilities, given float32 logits [vocab_size] as the
    model gives them: first of `token`, then of the `count` likeliest, highest first, equal ones by id."""
    exact = logits.astype(np.float64)
    exact -= exact.max()
    exact -= np.log(np.exp(exact).sum())
    count = min(count, len(exact))
    edge = np.partition(exact, -count)[-count]
    likely = np.flatnonzero(exact >= edge)
    likely = likely[np.argsort(-exact[likely], kind="stable")][:count]
    ids = (token, *(int(i) for i in likely))
    return ids, tuple(float(exact[i]) for i in ids)


def _uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on nothing but its arguments: that of NumPy's
    `Generator(Philox(key=seed, counter=position))`, which takes ten times as long when its code is in no cache."""
    c0, c1, c2, c3, k0, k1 = position + 1, 0, 0, 0, seed, 0
    for _ in range(10):  # Philox4x64-10
        a, b = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (b >> 64) ^ c1 ^ k0, b & _WORD, (a >> 64) ^ c3 ^ k1, a & _WORD
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & _WORD, k1 + 0xBB67AE8584CAA73B & _WORD
    return (c0 >> 11) * 2.0**-53
