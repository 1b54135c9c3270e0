"""Puts pages, from RAM or the disk, into slots before a sequence's first step."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgellm.agent.page_memory import PageMemory
from edgellm.agent.page_section import Pick, SectionPages, find, is_cheaper
from edgellm.agent.page_store import PageStore
from edgellm.agent.pages import PAGE_TOKENS, Record
from edgellm.agent.slots import HeldSlot, Ids

log = logging.getLogger(__name__)
_LONGEST_S = 10.0  # for restoring a sequence; what isn't read by then is computed
_GRACE_S = 0.1  # that restoring may take longer than computing, before it's given up
_AHEAD = 2  # pages that the disk reads while one is copied
RAM, DISK = 0, 1  # tiers; the first one that has a page gives it


@dataclass(frozen=True)
class Restore:
    """Pages of `ids` for a slot that nobody else uses until `done(tokens)` is called: so many tokens are there then."""

    section: SectionPages
    slot: HeldSlot
    ids: Ids
    first: int  # page
    pages: list[list[Pick]]  # all, those that the slot holds already included
    token_s: float | None
    done: Callable[[int], None]
    asked_s: float


class Restoring:
    """Finds pages in both tiers, which may be asked by any thread, and restores slots, in one thread."""

    def __init__(self, memory: PageMemory, store: PageStore | None):
        self._memory, self._store = memory, store
        self.hits = self.tokens = self.ram_tokens = 0
        self._byte_s = 0.0  # what reading the disk took lately
        self._reading_since_s: float | None = None  # the page that is being read from it

    def find(
        self, section: SectionPages, root: bytes, ids: Ids, most: int, reused: int, token_s: float | None
    ) -> list[list[Pick]]:
        """Return what to read of each page at the beginning of `ids`, up to `most` tokens, where reading those behind
        the first `reused` tokens is worth it; `token_s` is what computing one takes here. Otherwise nothing."""
        tiers: list[Callable[[bytes], Sequence[Record]]] = [self._memory.records_of]
        since_s = self._reading_since_s
        hangs = since_s is not None and time.monotonic() - since_s > _LONGEST_S
        if self._store is not None and not hangs:
            pages = find(root, ids, most // PAGE_TOKENS, section.wants, [*tiers, self._store.records_of])
            gained = len(pages) * PAGE_TOKENS - reused
            if gained <= 0:
                return []
            picks = [p for page in pages[reused // PAGE_TOKENS :] for p in page if p.tier == DISK]
            if is_cheaper(self._store.bytes_of(picks), gained, self._byte_s, token_s):
                return pages
            self._byte_s *= 0.9  # the disk may have been busy with something else
        pages = find(root, ids, most // PAGE_TOKENS, section.wants, tiers)
        return pages if len(pages) * PAGE_TOKENS > reused else []

    def restore(self, job: Restore) -> None:
        """Put the pages of a job into its slot, as many as can be read in time."""
        slot, section, kv = job.slot, job.section, job.slot.kv
        before = tokens = len(slot.ids)
        began_s, from_ram = time.monotonic(), 0
        try:
            for number, page in enumerate(job.pages[job.first :], job.first):
                took_s = time.monotonic() - began_s
                gained_s = None if job.token_s is None else (number - job.first) * PAGE_TOKENS * job.token_s
                late = time.monotonic() - job.asked_s > _LONGEST_S
                if late or (gained_s is not None and took_s > gained_s + _GRACE_S):
                    log.info("the rest of a prompt is computed: its pages take %.1f s to read", took_s)
                    break
                self._expect(job.pages[number + 1 : number + 1 + _AHEAD])
                parts = self._read(page)
                if parts is None or kv is None:
                    break
                if section.changes_the_end(parts):  # what is there is neither what it was nor what it will be
                    tokens = 0
                kv.restore(number * PAGE_TOKENS, (number + 1) * PAGE_TOKENS, section.in_order(parts))
                if not section.needs_the_last or number + 1 == len(job.pages):
                    tokens = max(before, (number + 1) * PAGE_TOKENS)
                from_ram += PAGE_TOKENS * all(p.tier == RAM for p in page)
            if tokens >= before:
                slot.restored(job.ids[:tokens])
            log.info("%d tokens from pages, in %.3f s", max(0, tokens - before), time.monotonic() - began_s)
        except Exception:
            tokens = 0
            raise
        finally:
            self._reading_since_s = None
            if tokens < before:
                slot.forget(tokens)
            job.done(len(slot.ids))
        self._used(job.pages)
        if tokens > before:
            self.hits += 1
            self.tokens += tokens - before
            self.ram_tokens += min(from_ram, tokens - before)

    def _read(self, page: list[Pick]) -> dict[int, np.ndarray] | None:
        """Return the parts of a page by layer, until the next one is read; None if something is gone."""
        on_disk = [p for p in page if p.tier == DISK]
        parts = self._memory.read([p for p in page if p.tier == RAM])
        if not on_disk or self._store is None or parts is None:
            return parts
        self._reading_since_s = began_s = time.monotonic()
        read = self._store.read(on_disk)
        self._reading_since_s = None
        if read is None:
            return None
        took_s, size = time.monotonic() - began_s, sum(part.size for part in read.values())
        self._byte_s += (took_s / max(1, size) - self._byte_s) / 8
        return parts | read

    def _expect(self, pages: list[list[Pick]]) -> None:
        if self._store is not None:
            for record in {p.record for page in pages for p in page if p.tier == DISK}:
                self._store.expect(record)

    def _used(self, pages: list[list[Pick]]) -> None:
        for tier, used in ((RAM, self._memory), (DISK, self._store)):
            records = [p.record for page in pages for p in page if p.tier == tier]
            if used is not None and records:
                used.used(records)
