"""The lasting cache of prompts: puts pages from the disk into slots before a sequence's first step, and keeps what
slots hold when an answer ends. Reading and writing have a thread each, so neither the event loop nor the engine waits.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from edgellm.agent.page_store import PageStore
from edgellm.agent.pages import PAGE_TOKENS, Origin, is_cheaper, next_key
from edgellm.agent.slots import HeldSlot, Ids
from edgellm.wire.status import CacheStatus

log = logging.getLogger(__name__)
_LONGEST_S = 10.0  # for restoring a sequence; what isn't read by then is computed
_GRACE_S = 0.1  # that restoring may take longer than computing, before it's given up
_BUSY_WAIT_S = 1.0  # a page waits so long for the board to be idle, then is written all the same
_LOOK_S = 0.02  # between two looks whether the board is idle
_AHEAD = 2  # pages that the disk reads while one is copied
_MAX_JOBS = 64  # slots whose pages wait to be written


@dataclass(frozen=True)
class _Restore:
    slot: HeldSlot
    ids: Ids
    first: int  # page
    keys: list[bytes]  # of all pages, those that the slot holds already included
    token_s: float | None
    done: Callable[[int], None]
    asked_s: float


@dataclass(frozen=True)
class _Save:
    slot: HeldSlot
    ids: Ids
    root: bytes
    cache: str
    long: bool
    idle: Callable[[], bool] = field(repr=False)


class PrefixCache:
    """The pages of a board, in `store`. It is usable once it was started, until it has finished."""

    def __init__(self, store: PageStore):
        self._store = store
        self._restores: deque[_Restore] = deque()
        self._saves: deque[_Save] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._saving = False
        self._byte_s = 0.0  # what reading took lately
        self._reading_since_s: float | None = None  # the page that is being read
        self._threads = [
            threading.Thread(target=self._run, args=(queue, work), name=name, daemon=True)
            for queue, work, name in (
                (self._restores, self._restore, "pages-read"), (self._saves, self._save, "pages-write")
            )
        ]  # fmt: skip

    def start(self) -> bool:
        """Look what is there and start; return False, having logged why, if the folder can't be used."""
        if not self._store.open():
            return False
        for thread in self._threads:
            thread.start()
        return True

    def finish(self, seconds: float) -> None:
        """Write what waits, without waiting for the board to be idle, for at most so many seconds; then end."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        deadline_s = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        with self._changed:
            self._saves.clear()
            self._restores.clear()
        self._store.close()

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was to be kept is."""
        with self._changed:
            return not self._saves and not self._saving

    def status(self) -> CacheStatus:
        """Return what status reports."""
        return self._store.status()

    # Called by the event loop, or by the engine's thread.

    def find(self, root: bytes, ids: Ids, most: int, reused: int, token_s: float | None) -> list[bytes]:
        """Return the keys of the pages that hold the beginning of `ids`, up to `most` tokens, where reading those
        behind the first `reused` tokens is worth it; `token_s` is what computing one takes here. Otherwise nothing."""
        since_s = self._reading_since_s
        if since_s is not None and time.monotonic() - since_s > _LONGEST_S:
            return []  # the disk hangs
        keys = self._store.find(root, ids, most // PAGE_TOKENS)
        gained = len(keys) * PAGE_TOKENS - reused
        if gained <= 0:
            return []
        if not is_cheaper(self._store.bytes_of(keys[reused // PAGE_TOKENS :]), gained, self._byte_s, token_s):
            self._byte_s *= 0.9  # the disk may have been busy with something else
            return []
        return keys

    def restore(
        self, slot: HeldSlot, ids: Ids, first: int, keys: list[bytes], token_s: float | None,
        done: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Put the pages `keys` of `ids`, from number `first` on, into a slot that nobody else uses until `done(tokens)`
        is called, in another thread: so many tokens are there then."""
        with self._changed:
            self._restores.append(_Restore(slot, ids, first, keys, token_s, done, time.monotonic()))
            self._changed.notify_all()

    def save(self, slot: HeldSlot, root: bytes, idle: Callable[[], bool]) -> None:
        """Keep the whole pages of what a slot holds, as long as nobody needs it for something else. Waits until the
        board is `idle`, but not for long."""
        if len(slot.ids) < PAGE_TOKENS:
            return
        with self._changed:
            if self._ending:
                return
            self._saves.append(_Save(slot, slot.ids[:], root, slot.cache, slot.long, idle))
            if len(self._saves) > _MAX_JOBS:
                self._saves.popleft()
            self._changed.notify_all()

    # In the two threads

    def _run(self, queue: deque, work: Callable[..., None]) -> None:
        while True:
            with self._changed:
                while not queue:
                    if self._ending:
                        return
                    self._changed.wait()
                job = queue.popleft()
                self._saving = self._saving or queue is self._saves
            try:
                work(job)
            except Exception:  # a mistake of ours: it costs this sequence's pages, and nothing else
                log.exception("pages were not %s", "kept" if queue is self._saves else "restored")
            if queue is self._saves:
                with self._changed:
                    self._saving = False

    def _restore(self, job: _Restore) -> None:
        before = tokens = len(job.slot.ids)
        began_s = time.monotonic()
        try:
            for number, key in enumerate(job.keys[job.first :], job.first):
                took_s = time.monotonic() - began_s
                gained_s = None if job.token_s is None else (number - job.first) * PAGE_TOKENS * job.token_s
                late = time.monotonic() - job.asked_s > _LONGEST_S
                if late or (gained_s is not None and took_s > gained_s + _GRACE_S):
                    log.info("the rest of a prompt is computed: its pages take %.1f s to read", took_s)
                    break
                for coming in job.keys[number + 1 : number + 1 + _AHEAD]:
                    self._store.expect(coming)
                self._reading_since_s = time.monotonic()
                page = self._store.read(key)
                self._reading_since_s = None
                if page is None:
                    break
                end = (number + 1) * PAGE_TOKENS
                job.slot.kv.restore(number * PAGE_TOKENS, end, page)
                tokens = max(tokens, end)
                self._byte_s += (((time.monotonic() - began_s) - took_s) / page.size - self._byte_s) / 8
            job.slot.restored(job.ids[:tokens])
            log.info("%d tokens from pages, in %.3f s", tokens - before, time.monotonic() - began_s)
        finally:
            self._reading_since_s = None
            job.done(len(job.slot.ids))
        self._store.used(job.keys, tokens - before)

    def _save(self, job: _Save) -> None:
        keys: list[bytes] = []
        key, most = job.root, len(job.ids) // PAGE_TOKENS
        for number in range(most):
            start, end = number * PAGE_TOKENS, (number + 1) * PAGE_TOKENS
            key = next_key(key, job.ids[start:end])
            if not self._store.has(key):
                self._wait_until(job.idle)
                page = job.slot.export(start, job.ids[:end], job.cache, job.long)
                # Pages of a sequence must not drive out those before them.
                if page is None or end // PAGE_TOKENS * page.size > self._store.budget_bytes // 2:
                    break
                if not self._store.write(key, page):
                    break
            keys.append(key)
        self._store.used(keys, 0)

    def _wait_until(self, idle: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + _BUSY_WAIT_S
        while not self._ending and not idle() and time.monotonic() < deadline_s:
            time.sleep(_LOOK_S)


class Prefixes:
    """What a stage's slots share with `cache`: pages of one `origin`."""

    def __init__(self, cache: PrefixCache, origin: Origin):
        self.cache, self._origin = cache, origin

    def find(self, ids: Ids, most: int, reused: int, name: str, long: bool, token_s: float | None) -> list[bytes]:
        """Return the pages to restore, see PrefixCache; `name` is whose cache it is."""
        if most < PAGE_TOKENS or most - reused < 1:
            return []
        return self.cache.find(self._origin.root(name, long), ids, most, reused, token_s)

    def save(self, slot: HeldSlot, idle: Callable[[], bool]) -> None:
        """Keep what a slot holds, see PrefixCache."""
        self.cache.save(slot, self._origin.root(slot.cache, slot.long), idle)
