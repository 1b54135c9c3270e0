"""How fast this board computes now, heat and neighbours included: moving medians of its engine's own steps.

A board measures itself when its agent starts, and may be busy with other things just then. The steps that it computes
later know better, and go on telling. A step takes the section as a whole, so the start's measurement says how it
divides between layers and head, and bounds what is believed. Pure: seconds are passed in.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.agent.steps import Step
from edgellm.limits import MAX_CHOICES
from edgellm.plan.costs import GUESSED_BATCH

_KEPT = 65  # steps of a kind
_AGE_S = 600.0  # a step that is older than this, compared with the newest one, doesn't count
_LEAST, _LEAST_CHUNKS = 16, 3  # steps of a kind, and chunks of prompts, before their median counts
_WARM_UP = 3  # steps after a load, which read weights from the disk
_BELIEVED = 16  # times as slow, or as fast, as at the start


@dataclass(frozen=True)
class Speed:
    """Seconds: one token alone through a layer of mean size, and through the head; what each further token of a batch
    adds a layer, and what a prompt token takes a layer in a chunk. None: not known yet."""

    layer_s: float
    head_s: float
    batch_layer_s: float | None = None
    prefill_layer_s: float | None = None


class _Window:
    """The last steps of a kind: tokens, seconds, and when. Adding one stores three numbers; nothing is sorted."""

    __slots__ = ("_count", "_steps")

    def __init__(self) -> None:
        self._steps: list[tuple[int, float, float]] = [(0, 0.0, 0.0)] * _KEPT
        self._count = 0

    def add(self, tokens: int, took_s: float, now_s: float) -> None:
        self._steps[self._count % _KEPT] = tokens, took_s, now_s
        self._count += 1

    def recent(self, least: int) -> list[tuple[int, float]]:
        """Return tokens and seconds of the steps that aren't old; nothing if they are fewer than `least`."""
        steps = self._steps[: min(self._count, _KEPT)]  # a copy: the engine's thread goes on adding
        newest_s = max((at_s for _, _, at_s in steps), default=0.0)
        recent = [(tokens, took_s) for tokens, took_s, at_s in steps if at_s >= newest_s - _AGE_S]
        return recent if len(recent) >= least else []


class SectionPace:
    """The steps of one section, which amounts to `layers` layers of mean size, and `has_head` or not. `predicted_s` is
    what one token alone was expected to take here when the plan was made."""

    def __init__(self, layers: float, has_head: bool, predicted_s: float):
        self.layers, self.has_head, self.predicted_s = layers, has_head, predicted_s
        self._cold = _WARM_UP
        self._alone, self._together, self._prompt = _Window(), _Window(), _Window()

    def computed(self, steps: Sequence[Step], took_s: float, now_s: float) -> None:
        """Record that the engine computed `steps` together in `took_s`. Called in its thread, after each batch."""
        first = steps[0]
        if self._cold:
            self._cold -= 1
        elif first.alone:
            pass
        elif first.end == first.pass_len and (tokens := sum([len(step.x) for step in steps])) <= MAX_CHOICES:
            (self._alone if tokens == 1 else self._together).add(tokens, took_s, now_s)
        elif len(first.x) > MAX_CHOICES:
            self._prompt.add(len(first.x), took_s, now_s)

    def token_s(self) -> float | None:
        """Return the median of one token alone; None if too few were computed."""
        alone = self._alone.recent(_LEAST)
        return statistics.median(took_s for _, took_s in alone) if alone else None

    def further_s(self, token_s: float) -> float | None:
        """Return the median of what a further token of a batch adds, if one alone takes `token_s`; None as above."""
        together = self._together.recent(_LEAST)
        if not together:
            return None
        return max(0.0, statistics.median((took_s - token_s) / (tokens - 1) for tokens, took_s in together))

    def token_s_by_batches(self, share: float) -> float | None:
        """Return the median of one token alone as batches tell it, whose further tokens add this `share` of it."""
        together = self._together.recent(_LEAST)
        times_s = [took_s / (1 + (tokens - 1) * share) for tokens, took_s in together]
        return statistics.median(times_s) if times_s else None

    def prompt_token_s(self) -> float | None:
        """Return the median of a prompt token in a chunk; None as above."""
        chunks = self._prompt.recent(_LEAST_CHUNKS)
        return statistics.median(took_s / tokens for tokens, took_s in chunks) if chunks else None


class Pace:
    """The board's speed: that of the start, then of the section that it serves. What a section told still counts when
    the board has given it up, or else the next plan would be made with the start's measurement again."""

    def __init__(self, start: Speed | None = None):
        self.start = start or Speed(0.0, 0.0)
        self._before: Speed | None = None
        self._section: SectionPace | None = None
        self._waits = False

    @property
    def served(self) -> bool:
        """Whether any section's steps could tell, or one computes that waits for its disk."""
        return self._section is not None or self._waits

    def timed_again(self, again: Speed) -> None:
        """Take the faster of two measurements without a section: whatever disturbs one makes it slower."""
        start = self.start
        self.start = Speed(min(start.layer_s, again.layer_s), min(start.head_s, again.head_s))

    def section(self, layers: float, has_head: bool, wait_s: float = 0.0) -> SectionPace:
        """Return where the steps of a section that is served from now on are recorded. If each token waits for the disk
        for so long, they don't tell how fast the board computes."""
        self._before = now = self.now()
        pace = SectionPace(layers, has_head, layers * now.layer_s + has_head * now.head_s + wait_s)
        self._waits = wait_s > 0
        self._section = None if self._waits else pace
        return pace

    def now(self) -> Speed:
        """Return the present speed, in any part that isn't known as it was before."""
        before, section = self._before or self.start, self._section
        if section is None:
            return before
        layer_s, head_s = before.layer_s, before.head_s
        known = before.batch_layer_s is not None and before.layer_s > 0
        share = before.batch_layer_s / before.layer_s if known and before.batch_layer_s is not None else GUESSED_BATCH
        token_s = section.token_s() or section.token_s_by_batches(share)
        start_s = section.layers * self.start.layer_s + section.has_head * self.start.head_s
        if token_s is not None and start_s > 0:
            times = min(max(token_s / start_s, 1 / _BELIEVED), _BELIEVED)
            layer_s, head_s = times * self.start.layer_s, times * self.start.head_s
        batch_layer_s, prefill_layer_s = share * layer_s if known else None, before.prefill_layer_s
        alone_s = section.token_s()
        if alone_s and (further_s := section.further_s(alone_s)) is not None:
            batch_layer_s = layer_s * min(1.0, further_s / alone_s)
        if (prompt_s := section.prompt_token_s()) is not None:
            prefill_layer_s = min(_BELIEVED * self.start.layer_s, prompt_s / section.layers)
        return Speed(layer_s, head_s, batch_layer_s, prefill_layer_s)
