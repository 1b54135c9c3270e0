"""Sections whose experts don't all fit into a board's RAM: which of them do, and how long a token waits for the rest.

The page cache is the store. Which experts a router chooses is taken to be random, each as often as another. Of those
that a token needs, the share that isn't in RAM is then the share of all experts that isn't, and has to be read from the
disk. Where experts of all layers are alike, this comes to one rule: a section waits for the bytes that it needs beyond
what the board may use, times the share of its experts that one token touches, at the rate of the disk.
"""

from dataclasses import dataclass
from typing import NamedTuple

from edgellm.plan.needs import Needs, usable_bytes
from edgellm.plan.types import Capacity
from edgellm.plan.words import ms, size
from edgellm.shards.manifest import Manifest

ASSUMED_DISK_BYTES_PER_S = 100e6  # of a board that has not measured it: a good SD card


class Over(NamedTuple):
    """How long sections of one board wait for their experts. `sums` are the bytes that layers need, as sums of
    prefixes, `first` and `last` what the embedding and the head need beside them. Each byte beyond `spare` costs `ns`.
    """

    sums: tuple[int, ...]
    first: int
    last: int
    spare: int
    ns: float

    def of(self, start: int, end: int) -> int:
        """Return how long section [start, end) waits for experts, in ns; 0 if it fits."""
        need = self.sums[end] - self.sums[start] + (not start) * self.first + (end == len(self.sums) - 1) * self.last
        if need <= self.spare:
            return 0
        return (
            self.layers_ns(end) - self.layers_ns(start) + (not start) * self.first_ns
            + (end == len(self.sums) - 1) * self.last_ns + self.fixed_ns
        )  # fmt: skip

    # The parts of a sum, each in whole nanoseconds, because the search takes such sums apart.
    def layers_ns(self, end: int) -> int:
        """Return what the first layers up to `end` add."""
        return round(self.sums[end] * self.ns)

    @property
    def first_ns(self) -> int:
        """What the embedding adds."""
        return round(self.first * self.ns)

    @property
    def last_ns(self) -> int:
        """What the head adds."""
        return round(self.last * self.ns)

    @property
    def fixed_ns(self) -> int:
        """What any section that doesn't fit has to add: less than 0, but for what rounding may take."""
        return 4 - int(self.spare * self.ns)


def over(needs: Needs, capacity: Capacity, touched_share: float) -> Over:
    """Return how long sections wait on a board when `touched_share` of the experts is needed at a time."""
    ns = 1e9 * touched_share / (capacity.disk_bytes_per_s or ASSUMED_DISK_BYTES_PER_S)
    return Over(
        needs.layer_sums, needs.first_bytes, needs.last_bytes, usable_bytes(capacity.ram_bytes) - needs.fixed_bytes, ns
    )


def touched_share(manifest: Manifest, tokens: int = 1) -> float:
    """Return the share of the experts' bytes that `tokens` tokens touch together; 0 without experts."""
    held = sum(manifest.expert_bytes)
    one = manifest.touched_expert_bytes / held if held else 0.0
    return 1 - (1 - one) ** tokens


@dataclass(frozen=True)
class Swapping:
    """What a section keeps of its experts in RAM, in bytes, and what a token costs for the rest: the bytes that it
    reads from the disk, and the seconds that it waits for them. `assumed` is whether the disk's rate wasn't measured.
    """

    expert_bytes: int
    held_bytes: int
    read_bytes: int
    disk_bytes_per_s: float
    assumed: bool
    wait_s: float

    def words(self, token_s: float | None = None) -> str:
        """Return this for people, if known with what a token takes on this board in all."""
        rate = f"{size(round(self.disk_bytes_per_s))}/s{', assumed' if self.assumed else ''}"
        of = "" if token_s is None else f" of {ms(token_s)}"
        return (
            f"{size(self.held_bytes)} of {size(self.expert_bytes)} of experts fit into RAM, so that a token reads "
            f"{size(self.read_bytes)} from the disk ({rate}): {ms(self.wait_s)}{of} a token (predicted)"
        )


def swapping(needs: Needs, ram_bytes: int, disk_bytes_per_s: float | None, start: int, end: int) -> Swapping | None:
    """Return how section [start, end) swaps its experts on a board that offers `ram_bytes`, whose disk is as fast as
    measured, or None; None if it fits, or the plan doesn't allow it."""
    missing, experts = needs.total(start, end) - usable_bytes(ram_bytes), needs.experts(start, end)
    if not needs.settings.swap_experts or missing <= 0 or not experts:
        return None
    missing = min(missing, experts)
    read, rate = round(missing * touched_share(needs.manifest)), disk_bytes_per_s or ASSUMED_DISK_BYTES_PER_S
    return Swapping(experts, experts - missing, read, rate, disk_bytes_per_s is None, read / rate)
