"""Pages on disk: a file each, named by its key, within a budget of bytes.

A file is written beside its place, forced to the disk, and renamed, so that a power loss leaves a whole page or none. A
damaged file under a page's name, or one of somebody else, counts as a page that isn't there, and is removed. Nothing
here raises an error for what a disk does: a page that can't be written is lost, and the log says why.
"""

import contextlib
import fcntl
import logging
import os
import re
import threading
import time
from pathlib import Path

import numpy as np

from edgellm.agent.pages import HEADER_BYTES, Index, pack, unpack
from edgellm.agent.slots import Ids
from edgellm.wire.status import CacheStatus

log = logging.getLogger(__name__)
_PAGE = re.compile(r"([0-9a-f]{64})\.page\Z")
_KEEP_FREE_BYTES = 512 << 20  # of the disk, for everybody else
_DAILY_WRITES = 8  # times the budget: a card's cells wear out
_DAY_S = 86400
_TOUCH_S = 3600.0  # a page's use is written down if the one before was longer ago
_AFTER_ERROR_S = 600.0  # no writing for this long after the disk refused


class PageStore:
    """The pages in `folder`, at most `budget_bytes`. For several threads, of which one reads."""

    def __init__(self, folder: Path, budget_bytes: int):
        self.folder, self.budget_bytes = folder, budget_bytes
        self._lock = threading.Lock()
        self._index = Index(budget_bytes)
        self._hits = self._taken = 0
        self._written: tuple[int, int] = (_today(), 0)  # day, bytes
        self._broken_until_s = 0.0
        self._held = -1
        self._buffer = np.empty(0, np.uint8)

    def open(self) -> bool:
        """Find out which pages there are; return False if the folder can't be used, and say why in the log. With a
        budget of 0 all pages are removed, and the store isn't used either."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._held = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = self._scan()
        except OSError as e:
            reason = "another agent uses it" if isinstance(e, BlockingIOError) else e.strerror
            log.warning("keeps no prompts on disk: %s: %s", self.folder, reason)
            self.close()
            return False
        for _, key, size in sorted(found):
            for gone in self._index.add(key, size):
                self._path(gone).unlink(missing_ok=True)
        if not self.budget_bytes:
            self.close()
            return False
        log.info("%d pages of prompts, %.1f MB, in %s", len(self._index), self._index.bytes / 1e6, self.folder)
        return True

    def close(self) -> None:
        """Let another agent use the folder."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def find(self, root: bytes, ids: Ids, pages: int) -> list[bytes]:
        """Return the keys of the pages that `ids` begin with, at most `pages`."""
        with self._lock:
            return self._index.find(root, ids, pages)

    def has(self, key: bytes) -> bool:
        """Return whether there is a page with this key."""
        with self._lock:
            return key in self._index

    def bytes_of(self, keys: list[bytes]) -> int:
        """Return the bytes of these pages together."""
        with self._lock:
            return sum(self._index.size_of(key) for key in keys)

    def used(self, keys: list[bytes], tokens: int) -> None:
        """Record that a sequence begins with these pages, which saved it `tokens`."""
        with self._lock:
            self._index.use(keys)
            if tokens:
                self._hits, self._taken = self._hits + 1, self._taken + tokens
        now_s = time.time()
        for key in reversed(keys):
            with contextlib.suppress(OSError):  # for the order after the next start; nothing depends on it
                found = self._path(key).stat()
                if now_s - found.st_atime > _TOUCH_S:
                    os.utime(self._path(key), ns=(int(now_s * 1e9), found.st_mtime_ns))

    def expect(self, key: bytes) -> None:
        """Have the system begin to read a page."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError), open(self._path(key), "rb", buffering=0) as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def read(self, key: bytes) -> np.ndarray | None:
        """Return a page, uint8 [bytes], until the next one is read; None if there is none, or none that is whole."""
        path, size = self._path(key), self.bytes_of([key])
        if self._buffer.size <= size:  # a byte more, to notice a file that has grown
            self._buffer = np.empty(size + 1, np.uint8)
        count = 0
        try:
            with open(path, "rb", buffering=0) as f:
                while more := f.readinto(self._buffer[count : size + 1].data):
                    count += more
                _out_of_memory(f.fileno())
        except OSError:
            count = 0
        page = unpack(key, self._buffer[:count])
        if page is None:
            log.warning("%s is no whole page, and removed", path.name)
            self._remove(key)
        return page

    def write(self, key: bytes, page: np.ndarray) -> bool:
        """Keep a page, uint8 [bytes]; return whether more may be written now."""
        size = HEADER_BYTES + page.size
        if not self._may_write(size):
            return False
        path = self._path(key)
        part = path.with_suffix(".part")
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as f:
                f.write(pack(key, page))
                f.write(page.data)
                f.flush()
                os.fdatasync(f.fileno())
                _out_of_memory(f.fileno())
            os.replace(part, path)
        except OSError as e:
            self._broken_until_s = time.monotonic() + _AFTER_ERROR_S
            log.warning("%s: %s; no page is written for %.0f minutes", path, e.strerror, _AFTER_ERROR_S / 60)
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            return False
        with self._lock:
            gone = self._index.add(key, size)
            self._count(size)
        for other in gone:
            self._remove(other)
        return True

    def status(self) -> CacheStatus:
        """Return what status reports."""
        with self._lock:
            self._count(0)
            return CacheStatus(
                budget_bytes=self._index.budget_bytes, pages=len(self._index), bytes=self._index.bytes,
                hits=self._hits, restored_tokens=self._taken, written_today_bytes=self._written[1],
            )  # fmt: skip

    # Inside

    def _path(self, key: bytes) -> Path:
        return self.folder / f"{key.hex()}.page"

    def _scan(self) -> list[tuple[int, bytes, int]]:
        """Return when each page was used last, its key and its bytes; remove what was half written."""
        found = []
        day = _today()
        for entry in os.scandir(self.folder):
            name = _PAGE.match(entry.name)
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith(".part") and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
                elif name and entry.is_file(follow_symlinks=False):
                    told = entry.stat(follow_symlinks=False)
                    used_ns = max(told.st_atime_ns, told.st_mtime_ns)
                    found.append((used_ns, bytes.fromhex(name[1]), told.st_size))
                    if told.st_mtime // _DAY_S == day:  # those that are gone again aren't known
                        self._count(told.st_size)
        return found

    def _remove(self, key: bytes) -> None:
        with self._lock:
            self._index.remove(key)
        with contextlib.suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _may_write(self, size: int) -> bool:
        if time.monotonic() < self._broken_until_s or size > self._index.budget_bytes:
            return False
        with self._lock:
            self._count(0)
            if self._written[1] + size > _DAILY_WRITES * self._index.budget_bytes:
                return False
            if self._index.bytes + size > self._index.budget_bytes:  # an old page goes for it
                return True
        try:
            told = os.statvfs(self.folder)
        except OSError:
            return False
        return told.f_bavail * told.f_frsize - size >= _KEEP_FREE_BYTES

    def _count(self, size: int) -> None:
        """Count bytes that are written now."""
        day, written = self._written
        self._written = (day, written + size) if day == _today() else (_today(), size)


def _today() -> int:
    """Return the number of the day, UTC."""
    return int(time.time() // _DAY_S)


def _out_of_memory(fd: int) -> None:
    """Give up the system's copy of a file, which would drive out weights that are mapped."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
