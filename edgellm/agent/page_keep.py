"""Keeps what slots hold when their sequences end: in RAM at once, and from there on the disk."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from edgellm.agent.page_memory import PageMemory
from edgellm.agent.page_section import SectionPages, lacking
from edgellm.agent.page_store import PageStore
from edgellm.agent.pages import PAGE_TOKENS, Record, next_key
from edgellm.agent.slots import HeldSlot, Ids

_BUSY_WAIT_S = 1.0  # a page waits so long for the board to be idle, then is written all the same
_CHECKPOINTS_SHARE = 4  # of the RAM for pages that one prompt's checkpoints may take: a quarter
_LOOK_S = 0.02  # between two looks whether the board is idle


@dataclass(frozen=True)
class Save:
    """What a slot held when a sequence of `cache` left it. `root` is the key before its first page; `idle` says whether
    the board has nothing else to do."""

    section: SectionPages
    slot: HeldSlot
    ids: Ids
    root: bytes
    cache: str
    long: bool
    idle: Callable[[], bool] = field(repr=False)

    def export(self, number: int, layers: set[int]) -> dict[int, np.ndarray] | None:
        """Return what the slot holds of a page for these layers; None if it doesn't hold the page any more."""
        start, end = number * PAGE_TOKENS, (number + 1) * PAGE_TOKENS
        wanted = {layer - self.section.start for layer in layers}
        parts = self.slot.export(start, self.ids[:end], self.cache, self.long, wanted)
        return None if parts is None else self.section.by_layer(parts)


class Keeping:
    """Keeps whole pages in `memory` and in `store`, each in one thread. It doesn't wait for the board to be idle any
    more once `ending` is set."""

    def __init__(self, memory: PageMemory, store: PageStore | None, ending: threading.Event):
        self._memory, self._store, self._ending = memory, store, ending

    def in_ram(self, job: Save) -> None:
        """Keep what a slot holds in RAM, as long as nobody needs the slot for something else."""
        if self._memory.budget_bytes:
            self._all(job, self._memory, None)

    def checkpoint(self, job: Save) -> None:
        """Keep in RAM what a slot needs of its last pages to go on from their end. All that is kept in this way of one
        prompt takes a share of the RAM at most; its first checkpoints have it, because many prompts begin alike."""
        wants = job.section.last_wants
        kinds, most = {want.kind for want in wants}, self._memory.budget_bytes // _CHECKPOINTS_SHARE
        pages = (job.ids[at : at + PAGE_TOKENS] for at in range(0, len(job.ids) - PAGE_TOKENS + 1, PAGE_TOKENS))
        keys = list(accumulate(pages, next_key, initial=job.root))[1:]
        taken = sum(self._memory.bytes_of_kinds(key, kinds) for key in keys)
        missing: list[tuple[Record, dict[int, np.ndarray]]] = []
        for want in wants:
            for number in range(max(0, len(keys) - (want.pages or 0)), len(keys)):
                for record, layers in lacking(want, keys[number], self._memory.records_of(keys[number])):
                    parts = job.export(number, set(layers))
                    if parts is None or len(parts) < len(layers):
                        return
                    missing.append((record, parts))
                    taken += sum(part.size for part in parts.values())
                    if taken > most:
                        return
        for record, parts in missing:
            self._memory.write(record, parts)

    def on_disk(self, job: Save) -> None:
        """Keep on the disk what RAM holds of a job's pages, or its slot does."""
        if self._store is not None:
            self._all(job, self._store, self._memory)

    def _all(self, job: Save, tier: PageStore | PageMemory, source: PageMemory | None) -> None:
        key, kept, kept_bytes = job.root, list[bytes](), 0
        for number in range(len(job.ids) // PAGE_TOKENS):
            key = next_key(key, job.ids[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS])
            if not self._page(job, number, key, tier, source, kept_bytes):
                break
            kept.append(key)
            kept_bytes += tier.bytes_at(key)
        tier.used([record for key in kept for record in tier.records_of(key)])

    def _page(
        self, job: Save, number: int, key: bytes, tier: PageStore | PageMemory, source: PageMemory | None,
        kept_bytes: int,
    ) -> bool:  # fmt: skip
        """Keep a page in `tier`, where those before it take `kept_bytes`, from `source` or from the slot; return
        whether more pages may be kept there."""
        missing = job.section.lacking(key, tier.records_of(key))
        if not missing:
            return True
        layers = {layer for _, layers in missing for layer in layers}
        parts = {} if source is None else source.parts_of(key, layers)
        if left := layers - parts.keys():
            exported = job.export(number, left)
            if exported is None and any(left & set(want.layers) for want in job.section.wants if want.pages is None):
                return False
            parts |= exported or {}
        # Pages of a sequence must not drive out those before them.
        page_bytes = tier.bytes_at(key) + sum(part.size for part in parts.values())
        if kept_bytes + page_bytes > tier.budget_bytes // 2:
            return False
        for record, mine in missing:
            if all(layer in parts for layer in mine):  # else the slot has no checkpoint there
                if source is not None:
                    self._wait_until(job.idle)
                if not tier.write(record, {layer: parts[layer] for layer in mine}):
                    return False
        return True

    def _wait_until(self, idle: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + _BUSY_WAIT_S
        while not self._ending.is_set() and not idle() and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)
