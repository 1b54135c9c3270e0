"""The lasting cache of prompts. Restoring slots, keeping what they hold in RAM, and writing it to the disk have a
thread each, so that neither the event loop nor the engine waits.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from edgellm.agent.page_keep import Keeping, Save
from edgellm.agent.page_memory import PageMemory
from edgellm.agent.page_restore import Restore, Restoring
from edgellm.agent.page_section import Pick, SectionPages
from edgellm.agent.page_store import PageStore
from edgellm.agent.pages import PAGE_TOKENS
from edgellm.agent.slots import HeldSlot, Ids
from edgellm.wire.status import CacheStatus

log = logging.getLogger(__name__)
_MAX_JOBS = 64  # slots whose pages wait to be kept


class _Worker:
    """A thread that does one job after the other. `changed` is notified whenever one is done; with `most` jobs in line,
    the oldest one is dropped for another."""

    def __init__(self, name: str, work: Callable[..., None], changed: threading.Condition, most: int | None = None):
        self.changed, self._name, self._work = changed, name, work
        self._jobs: deque[object] = deque(maxlen=most)
        self._busy = self._ending = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_idle(self) -> bool:
        return not self._jobs and not self._busy

    def start(self) -> None:
        self._thread.start()

    def add(self, job: object) -> None:
        with self.changed:
            self._jobs.append(job)
            self.changed.notify_all()

    def finish(self, seconds: float) -> None:
        """Do what is in line, for so long at most."""
        with self.changed:
            self._ending = True
            self.changed.notify_all()
        self._thread.join(max(0.0, seconds))
        with self.changed:
            self._jobs.clear()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._jobs or self._ending)
                if not self._jobs:
                    return
                job, self._busy = self._jobs.popleft(), True
            try:
                self._work(job)
            except Exception:  # a mistake of ours: it costs this sequence's pages, and nothing else
                log.exception("%s: pages of a sequence are lost", self._name)
            del job  # and with it a slot, whose memory may be wanted
            with self.changed:
                self._busy = False
                self.changed.notify_all()


class PrefixCache:
    """The pages of a board, in `memory` and in `store`, either of which may be None. It is usable once it was started,
    until it has finished."""

    def __init__(self, store: PageStore | None, memory: PageMemory | None = None):
        self.store, self.memory = store, memory or PageMemory(0)
        self._ending = threading.Event()
        self._changed = threading.Condition()

    def start(self) -> bool:
        """Look what is there and start; return False if nothing can be kept, neither in RAM nor on the disk."""
        if self.store is not None and not self.store.open():
            self.store = None
        if self.store is None and not self.memory.most_bytes:
            return False
        self._restoring = Restoring(self.memory, self.store)
        keeping = self._keeping = Keeping(self.memory, self.store, self._ending)

        def keep(job: Save) -> None:
            keeping.in_ram(job)
            self._writer.add(job)

        self._reader = _Worker("pages-read", self._restoring.restore, self._changed)
        self._keeper = _Worker("pages-keep", keep, self._changed, _MAX_JOBS)
        self._writer = _Worker("pages-write", keeping.on_disk, self._changed, _MAX_JOBS)
        for worker in (self._reader, self._keeper, self._writer):
            worker.start()
        return True

    def finish(self, seconds: float) -> None:
        """Write what waits, without waiting for the board to be idle, for at most so many seconds; then end."""
        deadline_s = time.monotonic() + seconds
        self._ending.set()
        for worker in (self._keeper, self._writer, self._reader):  # in this order: one gives work to the next
            worker.finish(deadline_s - time.monotonic())
        self.memory.limit(0)
        if self.store is not None:
            self.store.close()

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was to be kept is."""
        with self._changed:
            return self._keeper.is_idle and self._writer.is_idle

    def status(self) -> CacheStatus:
        """Return what status reports."""
        store, memory, restored = self.store, self.memory, self._restoring
        return CacheStatus(
            budget_bytes=store.budget_bytes if store else 0, pages=store.pages if store else 0,
            bytes=store.size_bytes if store else 0, hits=restored.hits, restored_tokens=restored.tokens,
            written_today_bytes=store.written_today_bytes if store else 0, ram_budget_bytes=memory.budget_bytes,
            ram_pages=memory.pages, ram_bytes=memory.size_bytes, ram_restored_tokens=restored.ram_tokens,
        )  # fmt: skip

    def section(self, pages: SectionPages) -> "Prefixes":
        """Return the cache as the slots of a section use it."""
        return Prefixes(pages, self._restoring, self._reader.add, self._keeper.add, self._keeping.checkpoint)


class Prefixes:
    """The cache as the slots of one section use it. Called by the event loop, or by the engine's thread."""

    def __init__(
        self, section: SectionPages, restoring: Restoring, restore: Callable[[Restore], None],
        keep: Callable[[Save], None], checkpoint: Callable[[Save], None],
    ):  # fmt: skip
        self._section, self._restoring, self._restore, self._keep = section, restoring, restore, keep
        self._checkpoint = checkpoint

    def find(self, ids: Ids, most: int, reused: int, name: str, long: bool, token_s: float | None) -> list[list[Pick]]:
        """Return what to read of each page at the beginning of `ids`, up to `most` tokens, where reading those behind
        the first `reused` tokens is worth it. Otherwise nothing.

        `name` is whose cache it is, `token_s` what computing a token takes here.
        """
        if most < PAGE_TOKENS or most - reused < 1:
            return []
        return self._restoring.find(self._section, self._section.origin.root(name, long), ids, most, reused, token_s)

    def restore(
        self, slot: HeldSlot, ids: Ids, reused: int, pages: list[list[Pick]], token_s: float | None,
        done: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Put `pages` of `ids` into a slot that holds `reused` of these tokens, and that nobody else uses until
        `done(tokens)` is called, in another thread: so many tokens are there then."""
        first = reused // PAGE_TOKENS
        self._restore(Restore(self._section, slot, ids, first, pages, token_s, done, time.monotonic()))

    def save(self, slot: HeldSlot, idle: Callable[[], bool]) -> None:
        """Keep the whole pages of what a slot holds, as long as nobody needs it for something else: in RAM at once, on
        the disk when the board is `idle`, or a little later."""
        if len(slot.ids) >= PAGE_TOKENS:
            self._keep(self._job(slot, idle))

    def save_checkpoint(self, slot: HeldSlot, idle: Callable[[], bool]) -> None:
        """Keep what a slot that forgets has to hold to go on from where it is, a multiple of PAGE_TOKENS: at once,
        because its next step may forget that, if there is RAM for it."""
        try:
            self._checkpoint(self._job(slot, idle))
        except Exception:  # a mistake of ours: it costs this checkpoint, and not the engine
            log.exception("a checkpoint of a sequence is lost")

    def _job(self, slot: HeldSlot, idle: Callable[[], bool]) -> Save:
        root = self._section.origin.root(slot.cache, slot.long)
        return Save(self._section, slot, slot.ids[:], root, slot.cache, slot.long, idle)
