"""What pages have to hold for a section's layers, and from which records to take it. Pure: no thread, no disk."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgellm.agent.pages import KINDS, PAGE_TOKENS, Origin, Record, next_key
from edgellm.agent.slots import Ids
from edgellm.model.protocols import Memory


@dataclass(frozen=True)
class Want:
    """What a section needs of one kind: the parts of `layers` in every page, or only in the last `pages` of them."""

    kind: int
    layers: tuple[int, ...]
    pages: int | None = None


def wants_of(start: int, memories: Sequence[Memory]) -> tuple[Want, ...]:
    """Return what a section needs whose layers, from number `start` on, have these memories."""
    layers: dict[tuple[int, int | None], list[int]] = {}
    for layer, memory in enumerate(memories, start):
        pages = None if memory.reach is None else max(1, -(-memory.reach // PAGE_TOKENS))
        layers.setdefault((KINDS[memory.kind], pages), []).append(layer)
    return tuple(Want(kind, tuple(mine), pages) for (kind, pages), mine in layers.items())


class Pick(NamedTuple):
    """The `layers` that are taken from a `record` of a tier."""

    tier: int
    record: Record
    layers: tuple[int, ...]


def pick(want: Want, tiers: Sequence[Iterable[Record]]) -> list[Pick] | None:
    """Return from which records of one page to take what is wanted, of the first tier that has it; None if something is
    nowhere."""
    picks, left = [], want.layers
    for tier, records in enumerate(tiers):
        for record in records:
            if record.kind != want.kind:
                continue
            if mine := tuple(layer for layer in left if record.first <= layer < record.end):
                picks.append(Pick(tier, record, mine))
                left = tuple(layer for layer in left if layer not in mine)
    return None if left else picks


def lacking(want: Want, key: bytes, records: Iterable[Record]) -> list[tuple[Record, tuple[int, ...]]]:
    """Return the records, each with its layers, that have to be written beside these `records` of a page, so that it
    has all that is wanted."""
    here = [record for record in records if record.kind == want.kind]
    runs: list[list[int]] = []
    begun = False
    for layer in want.layers:
        if any(record.first <= layer < record.end for record in here):
            begun = False
            continue
        if not begun:
            runs.append([])
        begun = True
        runs[-1].append(layer)
    return [(Record(key, want.kind, run[0], run[-1] + 1), tuple(run)) for run in runs]


def find(
    root: bytes, ids: Ids, pages: int, wants: Sequence[Want], tiers: Sequence[Callable[[bytes], Iterable[Record]]]
) -> list[list[Pick]]:
    """Return what to read of each of the pages that `ids` begin with: as many pages as there are, at most `pages`,
    where everything is there that is wanted. `root` is the key before the first; each tier returns the records of a
    key."""
    found: list[list[list[Pick] | None]] = []
    key = root
    for i in range(pages):
        key = next_key(key, ids[i * PAGE_TOKENS : (i + 1) * PAGE_TOKENS])
        records = [tier(key) for tier in tiers]
        picks = [pick(want, records) for want in wants]
        if any(p is None for p, want in zip(picks, wants, strict=True) if want.pages is None):
            break
        found.append(picks)
    for count in range(len(found), 0, -1):
        firsts = [0 if want.pages is None else max(0, count - want.pages) for want in wants]
        if all(page[k] is not None for k, first in enumerate(firsts) for page in found[first:count]):
            return [
                [p for k, first in enumerate(firsts) if i >= first for p in page[k] or ()]
                for i, page in enumerate(found[:count])
            ]
    return []


def is_cheaper(size: int, tokens: int, byte_s: float, token_s: float | None) -> bool:
    """Return whether reading `size` bytes takes less than computing `tokens`, which take `token_s` each here; None: not
    known, so that reading is tried."""
    return token_s is None or size * byte_s < tokens * token_s


class SectionPages:
    """The pages of one `origin` for a section whose layers, from number `start` on, have these `memories`."""

    def __init__(self, origin: Origin, start: int, memories: Sequence[Memory]):
        self.origin, self.start, self.end = origin, start, start + len(memories)
        self.wants = wants_of(start, memories)

    @property
    def last_wants(self) -> tuple[Want, ...]:
        """What is wanted of the last pages only."""
        return tuple(want for want in self.wants if want.pages is not None)

    @property
    def needs_the_last(self) -> bool:
        """Whether a slot is of no use before the last page that is wanted is in it."""
        return bool(self.last_wants)

    def changes_the_end(self, parts: Mapping[int, np.ndarray]) -> bool:
        """Return whether these parts, by layer, take the place of what a slot needs to go on where it stands."""
        return any(layer in parts for want in self.last_wants for layer in want.layers)

    def lacking(self, key: bytes, records: Iterable[Record]) -> list[tuple[Record, tuple[int, ...]]]:
        """Return what has to be written beside these records of a page."""
        return [missing for want in self.wants for missing in lacking(want, key, records)]

    def in_order(self, parts: Mapping[int, np.ndarray]) -> list[np.ndarray | None]:
        """Return parts, by layer, as a slot takes them."""
        return [parts.get(layer) for layer in range(self.start, self.end)]

    def by_layer(self, parts: Sequence[np.ndarray | None]) -> dict[int, np.ndarray]:
        """Return what a slot has exported, by layer."""
        return {layer: part for layer, part in enumerate(parts, self.start) if part is not None}
