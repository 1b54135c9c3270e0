"""KV slots and their contents: a new sequence gets the slot that already holds most of its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgellm.model.protocols import Slot


@dataclass
class HeldSlot:
    """A section's slot `kv`, and what it holds: keys and values of positions [0, len(ids)) are those of the tokens
    `ids`, computed in passes with long rotary factors (LongRoPE) or without, never both."""

    kv: Slot
    ids: list[int] = field(default_factory=list)
    long: bool = False

    def begin(self, position: int, ids: Sequence[int], long: bool) -> None:
        """Forget what the slot holds from `position` on, unless it was computed after just these tokens, which are
        about to be computed there."""
        if long != self.long:
            self.ids.clear()
            self.long = long
        elif self.ids[position : position + len(ids)] != list(ids[: max(0, len(self.ids) - position)]):
            del self.ids[position:]

    def computed(self, position: int, ids: Sequence[int]) -> None:
        """Record that these tokens were computed at `position`. Behind a gap, they don't count."""
        if position <= len(self.ids) < position + len(ids):
            self.ids[position:] = ids


class Slots:
    """The free slots of a board, those that have been free for longest first."""

    def __init__(self, kvs: Sequence[Slot]):
        self._free = [HeldSlot(kv) for kv in kvs]

    def __len__(self) -> int:
        return len(self._free)

    def take(self, ids: Sequence[int] = (), most: int = 0, long: bool = False) -> tuple[HeldSlot, int]:
        """Take a slot for a sequence that begins with `ids`. Return it, and how many of these tokens, up to `most`, it
        already holds: never all, because the last one must be computed. The caller has checked that a slot is free.

        The slot is the one that saves most: the tokens it shares, less an eighth of those that would be lost in it,
        because people usually ask about the last answer. In the slot that has been free for longest, nothing counts
        as lost.
        """
        most = min(most, len(ids) - 1)
        if most <= 0:
            return self._free.pop(0), 0
        shared = [common_prefix(slot.ids, ids) if slot.long == long else 0 for slot in self._free]
        saved = [n - (len(slot.ids) - n) / 8 for n, slot in zip(shared, self._free, strict=True)]
        saved[0] = shared[0]
        best = max(range(len(saved)), key=saved.__getitem__)  # the first of equal ones
        return self._free.pop(best), min(most, shared[best])

    def take_any(self) -> HeldSlot:
        """Take the slot that has been free for longest, and forget what it holds: for a trace."""
        slot = self._free.pop(0)
        slot.ids.clear()
        return slot

    def give_back(self, slot: HeldSlot) -> None:
        """Make a slot free again; it keeps what it holds."""
        self._free.append(slot)

    def clear(self) -> None:
        """Release all slots."""
        self._free.clear()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens at the beginning of both are the same."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
