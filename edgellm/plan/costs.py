"""What a layer, a token, a group of answers cost on a board: sums over layers, and what "throughput" compares.

When many ask at once, the slots' answers go round the pipeline in groups, one a stage. In a *turn* a stage computes one
token of each answer of a group together, and for every such token PROMPT_TOKENS of some prompt, in chunks. The stage
with the longest turn sets the pace of all. Decoding reads weights and prompts multiply, so boards whose memory is quick
and boards whose arithmetic is quick differ in the two.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from edgellm.plan.types import Capacity
from edgellm.shards.manifest import Manifest

PROMPT_TOKENS = 1  # computed for each token that is answered; see docs/decisions.md
MAX_GROUP = 16  # answers that a board computes together: agent/scheduler.py
# Guesses for boards that have not computed yet, as shares of a layer's time for one token alone.
GUESSED_PREFILL, GUESSED_BATCH = 1 / 8, 1 / 3


@dataclass(frozen=True)
class Load:
    """A board's times with every guess made, in seconds: one token through one layer alone, and the head; what each
    further token of a batch adds a layer; a prompt token in a chunk through one layer."""

    layer_s: float
    head_s: float
    batch_layer_s: float
    prefill_layer_s: float

    def turn_layer_s(self, group: int) -> float:
        """Return how long one layer takes in the turn of a group of so many answers."""
        prompt_s = PROMPT_TOKENS * group * self.prefill_layer_s
        return self.layer_s + (group - 1) * self.batch_layer_s + prompt_s

    def turn_head_s(self, group: int) -> float:
        """Return how long the head takes in a turn: its further tokens cost the same share as a layer's."""
        return self.head_s * (1 + (group - 1) * self.batch_layer_s / self.layer_s)


def load_of(capacity: Capacity, others: Sequence[Capacity]) -> Load:
    """Return a board's times. What it has not measured is the same share of its layer's time as on the median of the
    others that have, because they compute the same model. No token costs more than one alone."""

    def seconds(name: str, guess: float) -> float:
        told: float | None = getattr(capacity, name)
        if told is not None:
            return min(told, capacity.layer_s)
        known = [getattr(c, name) / c.layer_s for c in others if getattr(c, name) is not None]
        return capacity.layer_s * min(1.0, statistics.median_low(known) if known else guess)

    batch_s, prefill_s = seconds("batch_layer_s", GUESSED_BATCH), seconds("prefill_layer_s", GUESSED_PREFILL)
    return Load(capacity.layer_s, capacity.head_s, batch_s, prefill_s)


def group_size(slots: int, boards: int, num_layers: int) -> int:
    """Return how many answers one group has if all slots are taken and every board has a stage."""
    return min(MAX_GROUP, -(-slots // max(1, min(boards, num_layers))))


def layer_sums(manifest: Manifest, layer_ns: int) -> list[int]:
    """Return the time of the first 0, 1, … layers in ns, where a layer of mean size takes `layer_ns`: a layer's time
    is to the bytes that a token touches in it as another's."""
    n, sums = manifest.num_layers, _byte_sums(manifest)
    return [layer_ns * n * done // sums[-1] for done in sums]


def mean_layers(manifest: Manifest, start: int, end: int) -> float:
    """Return to how many layers of mean size layers [start, end) amount."""
    sums = _byte_sums(manifest)
    return manifest.num_layers * (sums[end] - sums[start]) / sums[-1]


def _byte_sums(manifest: Manifest) -> list[int]:
    layers = manifest.touched_bytes_per_token
    return [0, *accumulate(layers if any(layers) else [1] * len(layers))]
