"""Finds the token that a random number falls on, without sorting the vocabulary.

A few thousand of its logits, evenly spaced, tell where the likely tokens end well enough; only those are sorted, and
the choice is made if they turn out to be enough.
"""

import math
import threading

import numpy as np

from edgellm.model.protocols import Array
from edgellm.sampling import Sampling

_SPACED = 2048  # logits that stand for the vocabulary
_SORTED = 8192  # sorting so many takes less time than finding a smaller band of them
_BLOCK = 32768  # weights computed at a time
_COLD = 1e-30  # a temperature whose inverse may not be a number
_FLOAT32_ERROR = 1e-5  # of a total, relative: rounding of logits, exp and sums comes to less than 4e-6
_Place = tuple[int, float]  # an index, and the sum of weights down to it in the order of a draw


def draw(logits: Array, top: float, sampling: Sampling, u: float) -> int:
    """Return the token that the random number `u` in [0, 1) falls on; `top` is the largest logit."""
    ids = None
    if 0 < sampling.top_k < len(logits):
        ids = _most_likely(logits, sampling.top_k)
    elif sampling.min_p > 0.0 and sampling.top_p == 1.0:  # no other token's weight matters
        ids = _at_least(logits, top, sampling)
    if ids is not None:
        logits = logits[ids]
    ranking = Ranking(logits, top, sampling.temperature, sampling.top_p if sampling.top_p < 1.0 else u)
    at = _pick(ranking, sampling, u)
    if at is None:
        ranking.measure_exactly()
        at = _pick(ranking, sampling, u)
        assert at is not None
    return at if ids is None else int(ids[at])


def _pick(ranking: "Ranking", sampling: Sampling, u: float) -> int | None:
    """Return the index that `u` falls on, or None if the ranking isn't measured well enough to tell."""
    low, high = ranking.total
    if sampling.top_p < 1.0:
        edges = ranking.find(sampling.top_p * low, sampling.top_p * high, reach=True)
        if edges is None:
            return None
        (_, low), (_, high) = edges
    if sampling.min_p > 0.0:
        likely = _at_least(ranking.logits, ranking.top, sampling)
        weights = _weights(ranking.logits[likely], ranking.top, ranking.temperature)
        mass = float(weights[weights >= sampling.min_p].sum())  # the most likely token's weight is 1
        low, high = min(low, mass), min(high, mass)
    found = ranking.find(u * low, u * high)
    return found[0][0] if found and found[0] == found[1] else None


def _at_least(logits: Array, top: float, sampling: Sampling) -> Array:
    """Return the ids, in order, of all tokens of at least `min_p`, and maybe of a few just below."""
    reach = -sampling.temperature * math.log(sampling.min_p)
    return np.flatnonzero(logits >= top - reach - 1e-5 * (1.0 + reach + abs(top)))


def _most_likely(logits: Array, count: int) -> Array:
    """Return the ids, in order, of the `count` largest logits; of equal ones at the edge, those with the lowest ids."""
    ids, step = np.arange(0), max(1, len(logits) // _SPACED)
    spaced = np.sort(logits[::step])
    rank = 2 * count // step + 8  # this many of the spaced ones stand for more than `count` tokens
    if rank < len(spaced):
        ids = np.flatnonzero(logits >= spaced[-rank])
    if len(ids) < count:
        ids = np.arange(len(logits))
    values = logits[ids]
    edge = np.sort(values)[-count]
    certain = values > edge
    certain[np.flatnonzero(values == edge)[: count - np.count_nonzero(certain)]] = True
    return ids[certain]


class Ranking:
    """Tokens in the order of a draw: the highest weight first, of equal ones the lowest index. A weight is the
    probability relative to the most likely token's, exp((logit - top) / temperature).

    Only a band is ever sorted: a few thousand evenly spaced logits tell roughly where the running sum of weights passes
    a given mass, and whether the band around there holds that place is then known exactly.

    `total` is two numbers between which the sum of all weights lies. At first it comes from weights in float32, which
    take half the time of float64; at once from float64 where that would rarely do, because many tokens make up the
    `share` of the total that matters.
    """

    def __init__(self, logits: Array, top: float, temperature: float, share: float):
        self.logits, self.top, self.temperature = logits, top, temperature
        step = max(1, len(logits) // _SPACED)
        self._step, self._spaced = step, np.sort(logits[::step])
        weights = _weights(self._spaced, top, temperature)
        # Estimates of the mass up to each of the spaced logits, and the estimates' standard errors.
        self._tail = np.cumsum(weights) * step
        self._error = np.sqrt(np.cumsum(np.square(weights))) * step
        self._all: Array | None = None
        self._band: _Band | None = None
        likely = step * (len(weights) - int(np.searchsorted(self._tail, (1.0 - share) * self._tail[-1])))
        if len(logits) <= _SORTED or likely > _SORTED or temperature < _COLD:
            self.measure_exactly()
            return
        total, inverse = 0.0, np.float32(1.0 / temperature)
        with np.errstate(over="ignore"):
            for start in range(0, len(logits), _BLOCK):  # block by block, so that they stay in the cache
                block = logits[start : start + _BLOCK] - np.float32(top)
                block *= inverse
                total += float(np.exp(block, out=block).sum())
        self.total = total * (1 - _FLOAT32_ERROR), total * (1 + _FLOAT32_ERROR)

    def measure_exactly(self) -> None:
        """Have all weights, and their sum, in float64."""
        total, self._all = 0.0, scratch(0, len(self.logits), np.float64)
        for start in range(0, len(self.logits), _BLOCK):
            block = self._all[start : start + _BLOCK]
            total += float(_weights(self.logits[start : start + _BLOCK], self.top, self.temperature, block).sum())
        self.total, self._band = (total, total), None

    def find(self, low: float, high: float, reach: bool = False) -> tuple[_Place, _Place] | None:
        """Return the first index whose running sum is over the mass `low` (with `reach`: over it or equal) and that
        sum, and the same for `high`; None if that takes weights measured exactly."""
        for errors in (3.0, 10.0, np.inf):
            if self._band is not None and self._band.holds(low, reach) and self._band.holds(high, reach):
                break
            self._band = self._band_around(low, high, errors)
        if self._band is None:
            return None
        found = self._band.find(low, reach)
        return found, found if low == high else self._band.find(high, reach)

    def _band_around(self, low: float, high: float, errors: float) -> "_Band | None":
        """Return the band where the running sum passes these masses, if the estimates are off by no more than so many
        standard errors; None if it is a large one and weights aren't measured exactly."""
        first, last = 0, len(self._spaced)
        if math.isfinite(errors):
            first = int(np.searchsorted(self._tail + errors * self._error, self.total[0] - high))
            last = int(np.searchsorted(np.maximum.accumulate(self._tail - errors * self._error), self.total[1] - low))
        inside = self.logits >= (self._spaced[min(first, len(self._spaced) - 1)] if first else -np.inf)
        above = 0.0
        if (len(self._spaced) - first) * self._step > _SORTED:
            if self._all is None:
                return None
            if last < len(self._spaced):
                higher = self.logits > self._spaced[last]
                inside ^= higher
                above = float(np.multiply(self._all, higher, out=scratch(1, len(higher), np.float64)).sum())
        ids = np.flatnonzero(inside)
        return _Band(ids, self.logits[ids], self.top, self.temperature, above)


class _Band:
    """Neighbours in a ranking; `above` is the sum of the weights of all that are ranked higher."""

    def __init__(self, ids: Array, logits: Array, top: float, temperature: float, above: float):
        self._ids, self._logits, self._above = ids, logits, above
        self._ascending = np.sort(logits)
        self._sums = above + np.cumsum(_weights(self._ascending, top, temperature)[::-1])

    def holds(self, mass: float, reach: bool) -> bool:
        """Return whether `find` can tell."""
        if not len(self._sums):
            return False
        if reach:
            return (self._above < mass or not self._above) and mass <= self._sums[-1]
        return bool(self._above <= mass < self._sums[-1])

    def find(self, mass: float, reach: bool) -> _Place:
        """See `_Ranking.find`."""
        rank = int(np.searchsorted(self._sums, mass, side="left" if reach else "right"))
        if rank == len(self._sums):  # by rounding
            rank = int(np.searchsorted(self._sums, self._sums[-1]))
        logit = self._ascending[-1 - rank]
        first = len(self._sums) - int(np.searchsorted(self._ascending, logit, side="right"))
        return int(self._ids[self._logits == logit][rank - first]), float(self._sums[rank])


def _weights(logits: Array, top: float, temperature: float, out: Array | None = None) -> Array:
    """Return exp((logits - top) / temperature) in float64."""
    out = np.empty(len(logits)) if out is None else out
    np.copyto(out, logits)
    out -= top
    with np.errstate(over="ignore"):  # at a tiny temperature all but the best go to minus infinity
        if temperature > _COLD:
            out *= 1.0 / temperature
        else:
            out /= temperature
    weights: Array = np.exp(out, out=out)
    return weights


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.rows: dict[tuple[int, type], Array] = {}


_scratch = _Scratch()


def scratch(which: int, length: int, dtype: type) -> Array:
    """Return memory [length] of this thread's own, the same at every call, because new memory takes longer to get than
    to fill."""
    rows, key = _scratch.rows, (which, dtype)
    if key not in rows or len(rows[key]) < length:
        rows[key] = np.empty(length, dtype)
    return rows[key][:length]
