"""KV slots with what they hold: a new sequence gets the one that has most of its prompt already."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Slot:
    """A section's `kv` for one sequence. K and V of positions [0, len(ids)) are those of the tokens `ids`, computed in
    passes with long rotary factors (LongRoPE) or without, never both."""

    kv: object
    ids: list[int] = field(default_factory=list)
    long: bool = False

    def begin(self, position: int, ids: Sequence[int], long: bool) -> None:
        """These tokens are about to be computed at `position`: what was computed after others counts no more."""
        if long != self.long:
            self.ids.clear()
            self.long = long
        elif self.ids[position : position + len(ids)] != list(ids[: max(0, len(self.ids) - position)]):
            del self.ids[position:]

    def computed(self, position: int, ids: Sequence[int]) -> None:
        """They are. Behind a gap they count for nothing."""
        if position <= len(self.ids) < position + len(ids):
            self.ids[position:] = ids


class Slots:
    """The free slots of a board, those that are free for longest first."""

    def __init__(self, kvs: Sequence[object]):
        self._free = [Slot(kv) for kv in kvs]

    def __len__(self) -> int:
        return len(self._free)

    def take(self, ids: Sequence[int] = (), most: int = 0, long: bool = False) -> tuple[Slot, int]:
        """A slot for a sequence that begins with `ids`, and how many of these, up to `most`, it holds already: never
        all, since the last one is to be computed. The caller has seen that a slot is free.

        The slot is taken that saves most: the tokens it shares, less an eighth of those that would be lost in it, for
        what was said last is what will be asked about. In the one that is free for longest nothing counts as lost.
        """
        most = min(most, len(ids) - 1)
        if most <= 0:
            return self._free.pop(0), 0
        shared = [common_prefix(slot.ids, ids) if slot.long == long else 0 for slot in self._free]
        saved = [n - (len(slot.ids) - n) / 8 for n, slot in zip(shared, self._free, strict=True)]
        saved[0] = shared[0]
        best = max(range(len(saved)), key=saved.__getitem__)  # the first of equal ones
        return self._free.pop(best), min(most, shared[best])

    def take_any(self) -> Slot:
        """The slot that is free for longest, with nothing that counts in it: for a trace."""
        slot = self._free.pop(0)
        slot.ids.clear()
        return slot

    def give_back(self, slot: Slot) -> None:
        self._free.append(slot)

    def clear(self) -> None:
        """Let go of them."""
        self._free.clear()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens at the begin of both are the same."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
