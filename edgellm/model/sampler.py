"""Choosing the next token from logits; the same (seed, position) always chooses the same. NumPy only.

The order of the steps is that of transformers' generate(): repeat penalty, temperature, top-k, top-p, min-p, draw.
"""

from collections.abc import Sequence

import numpy as np

from edgellm.errors import ModelError
from edgellm.sampling import Sampling


def sample(logits: np.ndarray, history: Sequence[int], sampling: Sampling, position: int) -> int:
    """The token id for `position`, from logits [vocab_size]; `history` is the sequence so far, prompt included.

    Raises ModelError when the logits hold NaN or nothing finite.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise ModelError(f"the logits at position {position} are not finite: a shard or a board is broken")
    if sampling.repeat_penalty != 1.0 and len(history):
        logits = _penalize(logits, history, sampling.repeat_penalty)
        best = int(np.argmax(logits))
    if sampling.temperature == 0.0:
        return best
    with np.errstate(over="ignore"):  # at a tiny temperature all but the best go to minus infinity
        scores = (logits.astype(np.float64) - float(logits[best])) / sampling.temperature
    draw = _uniform(sampling.seed, position)
    probabilities, tokens = _nucleus(scores, sampling, draw)
    cumulative = np.cumsum(probabilities)
    if sampling.top_p < 1.0 or sampling.min_p > 0.0:
        draw *= cumulative[-1]
    return int(tokens[min(int(np.searchsorted(cumulative, draw, side="right")), len(tokens) - 1)])


def _penalize(logits: np.ndarray, history: Sequence[int], penalty: float) -> np.ndarray:
    """Divide positive logits of tokens seen so far by `penalty`, multiply negative ones (CTRL, arXiv:1909.05858)."""
    logits = logits.copy()
    seen = np.unique(np.asarray(history, dtype=np.int64))
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def _nucleus(scores: np.ndarray, sampling: Sampling, draw: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, descending, and their token ids, of what top-k, top-p and min-p leave (at least one).

    Of a whole vocabulary, only as many as are needed for their sum to reach the share `draw`, and maybe more.
    """
    count = len(scores)
    weights = np.exp(scores - scores.max())
    if 0 < sampling.top_k < count:
        likely = scores[_most_likely(weights, count=sampling.top_k)]
        least = np.partition(likely, len(likely) - sampling.top_k)[len(likely) - sampling.top_k]
        tokens = np.flatnonzero(scores >= least)  # a few more where scores are equal
    else:
        total = weights.sum()
        share = sampling.top_p if sampling.top_p < 1.0 else draw if sampling.min_p == 0.0 else 1.0
        tokens = _most_likely(weights, total * share, sampling.min_p)
    tokens = tokens[np.lexsort((tokens, -scores[tokens]))]  # ties in the order of their ids
    if 0 < sampling.top_k < count:
        tokens = tokens[: sampling.top_k]
        total = weights[tokens].sum()
    probabilities = weights[tokens] / total
    if sampling.top_p < 1.0:
        before = np.cumsum(probabilities) - probabilities
        keep = max(1, int(np.count_nonzero(before < sampling.top_p)))
        probabilities, tokens = probabilities[:keep], tokens[:keep]
    if sampling.min_p > 0.0:
        keep = max(1, int(np.count_nonzero(probabilities >= sampling.min_p * probabilities[0])))
        probabilities, tokens = probabilities[:keep], tokens[:keep]
    return probabilities, tokens


def _most_likely(weights: np.ndarray, mass: float = 0.0, min_p: float = 0.0, count: int = 0) -> np.ndarray:
    """Ids of all tokens from some weight on (of at most 1): at least `count` of them, which add up to more than `mass`
    or are all that `min_p` can leave. Sorting these takes a hundredth of the time that sorting a vocabulary does."""
    for least in (0.1, 0.01, 1e-3, 1e-4, 1e-6):
        tokens = np.flatnonzero(weights >= least)
        if len(tokens) >= count and (min_p > least or weights[tokens].sum() > mass * (1 + 1e-9)):
            return tokens
    return np.arange(len(weights))


def _uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments (Philox is counter-based)."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())
