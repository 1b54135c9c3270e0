"""Whether drafting pays, how many drafts at once, and whose: from how often they come true, and what they cost; pure.

A pass over all boards takes `lap_s` for one token, and a little more for each draft behind it. With `count` drafts, of
which each comes true with the same probability if those before it have, it gives 1 + a + a² + … + a^count tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

_HOPE = 0.6  # how often drafts come true, as long as nobody knows
_WEIGHT = 1 / 8  # of the last draft that was verified
_GAIN = 1.05  # drafts that cost time have to be worth this much more than none
_DRAFT_SHARE = 0.1  # of a pass, that each further token takes, as long as it isn't measured
_DECAY = 0.95  # of what earlier passes count
_FIRST_REST, _LONGEST_REST = 16, 512  # passes


@dataclass(frozen=True)
class Offer:
    """Up to `most` drafts that take `draft_s` each to make, and come true with a probability of `acceptance`."""

    most: int
    acceptance: float
    draft_s: float = 0.0


@dataclass(frozen=True)
class Pass:
    """What a pass takes: `lap_s` with one token, `token_s` more for each further one."""

    lap_s: float
    token_s: float


def tokens_per_pass(acceptance: float, count: int) -> float:
    """Return how many tokens a pass with `count` drafts gives on average."""
    return float(sum(acceptance**i for i in range(count + 1)))


def rate(offer: Offer, count: int, took: Pass) -> float:
    """Return the tokens per second that passes with `count` of the drafts on offer give."""
    seconds = took.lap_s + count * (took.token_s + offer.draft_s)
    return tokens_per_pass(offer.acceptance, count) / seconds


def best_count(offer: Offer, took: Pass) -> int:
    """Return how many of the drafts on offer give the most tokens per second; 0: none are worth it."""
    return max(range(offer.most + 1), key=lambda count: rate(offer, count, took))


def choose(offers: Sequence[Offer], free: Offer | None, took: Pass) -> tuple[int, int] | None:
    """Return which of `offers` to take, and how many of its drafts; None for the drafts of `free`, which cost nothing
    and are there already, or for no drafts at all if that is None. What costs time has to be clearly better."""
    base = rate(Offer(0, 0.0), 0, took)
    if free is not None:
        base = max(base, rate(free, free.most, took))
    counts = [best_count(offer, took) for offer in offers]
    rates = [rate(offer, count, took) for offer, count in zip(offers, counts, strict=True)]
    best = max(range(len(offers)), key=rates.__getitem__, default=None)
    if best is None or not counts[best] or rates[best] < _GAIN * base:
        return None
    return best, counts[best]


@dataclass
class Acceptance:
    """How often one drafter's drafts come true in one sequence, and a switch: once they aren't worth it, the drafter
    rests for some passes, then tries again in good hope, and rests for twice as long if that was in vain."""

    rate: float = _HOPE
    rest: int = 0  # passes that it still sits out
    _next_rest: int = field(default=_FIRST_REST, repr=False)

    def learn(self, proposed: int, accepted: int) -> None:
        """Record that `accepted` of `proposed` drafts came true. Nobody knows of those behind the first that didn't."""
        for i in range(min(proposed, accepted + 1)):
            self.rate += _WEIGHT * ((i < accepted) - self.rate)
        if proposed and accepted == proposed:
            self._next_rest = _FIRST_REST

    def is_resting(self) -> bool:
        """Return whether to sit this pass out, which counts it."""
        if not self.rest:
            return False
        self.rest -= 1
        if not self.rest:
            self.rate = max(self.rate, _HOPE)
        return True

    def switch_off(self) -> None:
        """Record that drafts weren't worth it."""
        self.rest, self._next_rest = self._next_rest, min(_LONGEST_REST, 2 * self._next_rest)


@dataclass
class Passes:
    """What passes take, by how many tokens they hold: a line through the last ones, the newest counting most."""

    _weight: float = 0.0
    _tokens: float = 0.0  # weighted sums: of further tokens, of seconds, and of their products
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Record that a pass of so many tokens took so long."""
        more = tokens - 1
        for name, value in (("_weight", 1.0), ("_tokens", more), ("_seconds", seconds), ("_squares", more * more),
                            ("_products", more * seconds)):  # fmt: skip
            setattr(self, name, _DECAY * getattr(self, name) + value)

    def now(self) -> Pass | None:
        """Return what a pass takes now; None as long as there was none."""
        if not self._weight:
            return None
        mean_tokens, mean_s = self._tokens / self._weight, self._seconds / self._weight
        spread = self._squares / self._weight - mean_tokens**2
        if spread > 0.25:
            slope = (self._products / self._weight - mean_tokens * mean_s) / spread
        else:
            slope = _DRAFT_SHARE * mean_s / (1 + _DRAFT_SHARE * mean_tokens)
        slope = min(max(0.0, slope), mean_s / (1 + mean_tokens))  # a token more never takes more than a pass of its own
        return Pass(mean_s - slope * mean_tokens, slope)


@dataclass
class DraftTime:
    """Seconds that a draft takes to make, the newest counting most; 0 as long as there was none."""

    seconds: float = 0.0

    def add(self, drafts: int, seconds: float) -> None:
        """Record that making so many drafts took so long."""
        if drafts:
            each = seconds / drafts
            self.seconds += (_WEIGHT if self.seconds else 1.0) * (each - self.seconds)
