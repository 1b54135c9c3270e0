"""KV slots and their contents: a new sequence gets the slot that already holds most of its prompt."""

from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgellm.model.protocols import Slot

Ids = array  # of token ids, "I": compared as memory, because a Python loop over a long prompt takes milliseconds


def ids_of(ids: Iterable[int]) -> Ids:
    """Return token ids as an array."""
    return array("I", ids)


@dataclass(eq=False)
class HeldSlot:
    """A section's slot `kv`, None once it is released, its `number`, and what it holds: keys and values of positions
    [0, len(ids)) are those of the tokens `ids`, computed in passes with long rotary factors (LongRoPE) or without,
    never both, and for sequences of one `cache`. `keeps` says that its last sequence wants them kept.

    `version` counts up whenever it stops holding something: before other keys and values are stored there. So another
    thread can tell whether what it has copied was held all the while.
    """

    kv: Slot | None
    number: int
    ids: Ids = field(default_factory=lambda: ids_of(()))
    long: bool = False
    cache: str = ""
    keeps: bool = False
    version: int = 0

    def give_to(self, cache: str, keeps: bool) -> None:
        """Take a sequence of `cache`; what the slot holds for another one is forgotten."""
        self.keeps = keeps
        if cache != self.cache:
            self.forget()
            self.cache = cache

    def shares(self, ids: Ids, long: bool, cache: str) -> int:
        """Return how many tokens at the beginning of `ids`, those of a sequence of `cache`, the slot holds."""
        return common_prefix(self.ids, ids) if (self.long, self.cache) == (long, cache) else 0

    def begins_at(self, count: int) -> int:
        """Return where a sequence begins of which the slot holds `count` tokens: behind them, or at a checkpoint or 0
        where a window or a state is further on."""
        if count >= self.earliest:
            return count
        return self.checkpoint if self.checkpoint <= count else 0

    @property
    def earliest(self) -> int:
        """The smallest position besides 0 from which a step may begin (see Slot)."""
        return 0 if self.kv is None else self.kv.earliest

    @property
    def checkpoint(self) -> int:
        """A position before that from which a step may begin, too; 0: none (see Slot)."""
        return 0 if self.kv is None else self.kv.checkpoint

    def begin(self, position: int, ids: Sequence[int], long: bool) -> None:
        """Forget what the slot holds from `position` on, unless it was computed after just these tokens, which are
        about to be computed there; forget all if it begins anew."""
        if long != self.long or (position < self.earliest and position != self.checkpoint):
            self.forget()
            self.long = long
        elif position < self.earliest:  # back to a checkpoint: what is behind it will be computed again
            self.forget(position)
        elif position < len(self.ids):
            there = self.ids[position : position + len(ids)]
            if there != ids_of(ids[: len(there)]):
                self.forget(position)

    def computed(self, position: int, ids: Sequence[int]) -> None:
        """Record that these tokens were computed at `position`. Behind a gap, they don't count, nor does what a state
        has forgotten."""
        if position == len(self.ids):
            self.ids.extend(ids)
        elif position < len(self.ids) < position + len(ids):
            self.ids[position:] = ids_of(ids)
        if self.kv is not None and self.kv.filled < len(self.ids):
            self.forget(self.kv.filled)

    def forget(self, position: int = 0) -> None:
        """Count nothing that the slot holds from `position` on any more."""
        self.version += 1
        del self.ids[position:]

    def release(self) -> None:
        """Forget all, and give up the memory, whoever still knows this slot."""
        self.forget()
        self.kv = None

    def restored(self, ids: Ids) -> None:
        """Record that the slot holds these tokens: they were restored."""
        self.ids = ids

    def export(
        self, start: int, ids: Ids, cache: str, long: bool, layers: Collection[int]
    ) -> Sequence[np.ndarray | None] | None:
        """Return a copy of what `layers` (0 is the section's first) keep from `start` to the end of `ids`, multiples of
        16: for each layer of the section uint8 [bytes], or None. None if the slot doesn't hold these tokens, or not
        until the copy was made. For any thread."""
        version, kv = self.version, self.kv
        if kv is None or self.ids[: len(ids)] != ids or (self.cache, self.long) != (cache, long):
            return None
        copy = kv.export(start, len(ids), layers)
        return copy if self.version == version else None


class Slots:
    """The slots of a board, numbered from 0, and which of them are free, those that have been free for longest first.
    """

    def __init__(self, kvs: Sequence[Slot]):
        self._free = [HeldSlot(kv, number) for number, kv in enumerate(kvs)]

    def __len__(self) -> int:
        return len(self._free)

    def free(self) -> list[HeldSlot]:
        """Return the free slots."""
        return list(self._free)

    def take(self, slot: HeldSlot) -> None:
        """Take a free slot."""
        self._free.remove(slot)

    def give_back(self, slot: HeldSlot) -> None:
        """Make a slot free again; it keeps what it holds."""
        self._free.append(slot)

    def clear(self) -> None:
        """Release all slots, whose memory others may use from now on."""
        for slot in self._free:
            slot.release()
        self._free.clear()


def choose_slot(
    free: Sequence[HeldSlot], ids: Ids, most: int, long: bool = False, avoid: Collection[int] = (), cache: str = ""
) -> tuple[HeldSlot, int]:
    """Choose one of the slots `free`, which aren't none, for a sequence of `cache` that begins with `ids`. Return it,
    and how many of these tokens, up to `most`, it already holds: never all, because the last one must be computed.

    The slot is the one that saves most: the tokens it shares, less an eighth of those that would be lost in it, because
    people usually ask about the last answer. In the slot that has been free for longest, nothing counts as lost. Slots
    whose numbers are in `avoid` are chosen only where no other is free.
    """
    free = [slot for slot in free if slot.number not in avoid] or free
    most = min(most, len(ids) - 1)
    if most <= 0:
        return free[0], 0
    shared = [slot.shares(ids, long, cache) for slot in free]
    begins = [slot.begins_at(min(most, n)) for n, slot in zip(shared, free, strict=True)]
    shared = [n if at == min(most, n) else at for n, at in zip(shared, begins, strict=True)]
    saved = [n - (len(slot.ids) - n) / 8 for n, slot in zip(shared, free, strict=True)]
    saved[0] = shared[0]
    best = max(range(len(saved)), key=saved.__getitem__)  # the first of equal ones
    return free[best], min(most, shared[best])


def held_of(slot: HeldSlot, ids: Ids, most: int, long: bool = False, cache: str = "") -> int:
    """Return how many tokens at the beginning of `ids`, up to `most` and never all, the slot already holds for
    sequences of `cache`."""
    most = min(most, len(ids) - 1)
    return slot.begins_at(min(most, slot.shares(ids, long, cache))) if most > 0 else 0


def common_prefix(a: Ids, b: Ids) -> int:
    """Return how many tokens at the beginning of both are the same."""
    count = min(len(a), len(b))
    if not count:
        return 0
    differs = np.frombuffer(a, np.uint32, count) != np.frombuffer(b, np.uint32, count)
    first = int(differs.argmax())
    return first if differs[first] else count
