"""Pages on disk: a file a record, named by what is in it, within a budget of bytes.

A file is written beside its place, forced to the disk, and renamed, so that a power loss leaves a whole record or none.
A damaged file under a record's name counts as one that isn't there, and is removed; so are files of format 1 and of
kinds that this version doesn't know. Nothing here raises an error for what a disk does: a page that can't be written
is lost, and the log says why.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgellm.agent.page_index import Tier
from edgellm.agent.page_section import Pick
from edgellm.agent.pages import Place, Record, head_bytes, is_name, pack, record_of, unpack

log = logging.getLogger(__name__)
_KEEP_FREE_BYTES = 512 << 20  # of the disk, for everybody else
_DAILY_WRITES = 8  # times the budget: a card's cells wear out
_DAY_S = 86400
_TOUCH_S = 3600.0  # a page's use is written down if the one before was longer ago
_AFTER_ERROR_S = 600.0  # no writing for this long after the disk refused


class PageStore(Tier):
    """The records in `folder`, at most `budget_bytes`. For several threads, of which one reads."""

    def __init__(self, folder: Path, budget_bytes: int):
        super().__init__(budget_bytes)
        self.folder = folder
        self._written: tuple[int, int] = (_today(), 0)  # day, bytes
        self._broken_until_s = 0.0
        self._held = -1
        self._buffer = np.empty(0, np.uint8)

    def open(self) -> bool:
        """Find out which records there are; return False if the folder can't be used, and say why in the log. With a
        budget of 0 all are removed, and the store isn't used either."""
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
        for _, record, size in sorted(found):
            for gone in self._index.add(record, size):
                self._path(gone).unlink(missing_ok=True)
        if not self.budget_bytes:
            self.close()
            return False
        log.info("%d pages of prompts, %.1f MB, in %s", self._index.pages, self._index.bytes / 1e6, self.folder)
        return True

    def close(self) -> None:
        """Let another agent use the folder."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def bytes_of(self, picks: Iterable[Pick]) -> int:
        """Return about how many bytes have to be read for these."""
        total = 0.0
        with self._lock:
            for record, layers in ((p.record, p.layers) for p in picks):
                total += self._index.size_of(record) * len(layers) / (record.end - record.first)
        return int(total)

    def used(self, records: Sequence[Record]) -> None:
        """Record that a sequence uses these records, in the order of its pages."""
        super().used(records)
        now_s = time.time()
        for record in reversed(records):
            with contextlib.suppress(OSError):  # for the order after the next start; nothing depends on it
                found = self._path(record).stat()
                if now_s - found.st_atime > _TOUCH_S:
                    os.utime(self._path(record), ns=(int(now_s * 1e9), found.st_mtime_ns))

    def expect(self, record: Record) -> None:
        """Have the system begin to read a record."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError), open(self._path(record), "rb", buffering=0) as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def read(self, picks: Sequence[Pick]) -> dict[int, np.ndarray] | None:
        """Return the parts of these layers, uint8 [bytes] each, until the next ones are read; None if one of them isn't
        there, or not whole."""
        parts: dict[int, np.ndarray] = {}
        at = 0
        for record, layers in ((p.record, p.layers) for p in picks):
            mine = self._read(record, layers, at)
            if mine is None:
                log.warning("%s is not whole, and removed", record.name)
                self._remove(record)
                return None
            parts |= mine
            at += sum(part.size for part in mine.values())
        return parts

    def write(self, record: Record, parts: Mapping[int, np.ndarray]) -> bool:
        """Keep the parts of a record, uint8 [bytes] by layer; return whether more may be written now."""
        head = pack(record, parts)
        size = len(head) + sum(part.size for part in parts.values())
        if not self._may_write(size):
            return False
        path = self._path(record)
        half = path.with_suffix(".part")
        try:
            fd = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as f:
                f.write(head)
                for part in parts.values():
                    f.write(part.data)
                f.flush()
                os.fdatasync(f.fileno())
                _out_of_memory(f.fileno())
            os.replace(half, path)
        except OSError as e:
            self._broken_until_s = time.monotonic() + _AFTER_ERROR_S
            log.warning("%s: %s; no page is written for %.0f minutes", path, e.strerror, _AFTER_ERROR_S / 60)
            with contextlib.suppress(OSError):
                half.unlink(missing_ok=True)
            return False
        with self._lock:
            gone = self._index.add(record, size)
            self._count(size)
        for other in gone:
            self._remove(other)
        return True

    @property
    def written_today_bytes(self) -> int:
        """Bytes written since midnight, UTC."""
        with self._lock:
            self._count(0)
            return self._written[1]

    # Inside

    def _path(self, record: Record) -> Path:
        return self.folder / record.name

    def _read(self, record: Record, layers: Sequence[int], at: int) -> dict[int, np.ndarray] | None:
        """Return the parts of `layers` in a record, put into the buffer from `at` on."""
        try:
            with open(self._path(record), "rb", buffering=0) as f:
                size = os.fstat(f.fileno()).st_size
                places = unpack(record, f.read(head_bytes(record.end - record.first)), size) or {}
                if any(layer not in places for layer in layers):
                    return None
                ends = at + sum(places[layer].size for layer in layers)
                if self._buffer.size < ends:
                    self._buffer = np.concatenate([self._buffer[:at], np.empty(ends - at, np.uint8)])
                parts: dict[int, np.ndarray] = {}
                for layer in layers:
                    part = self._buffer[at : at + places[layer].size]
                    if not _read_at(f.fileno(), places[layer], part):
                        return None
                    parts[layer] = part
                    at += part.size
                _out_of_memory(f.fileno())
                return parts
        except OSError:
            return None

    def _scan(self) -> list[tuple[int, Record, int]]:
        """Return when each record was used last, and its bytes; remove what was half written, and what no version of
        this one can read."""
        found = []
        day = _today()
        for entry in os.scandir(self.folder):
            if not entry.is_file(follow_symlinks=False):
                continue
            record = record_of(entry.name)
            with contextlib.suppress(FileNotFoundError):
                if record is not None:
                    told = entry.stat(follow_symlinks=False)
                    used_ns = max(told.st_atime_ns, told.st_mtime_ns)
                    found.append((used_ns, record, told.st_size))
                    if told.st_mtime // _DAY_S == day:  # those that are gone again aren't known
                        self._count(told.st_size)
                elif entry.name.endswith(".part") or is_name(entry.name):
                    os.unlink(entry.path)
        return found

    def _remove(self, record: Record) -> None:
        with self._lock:
            self._index.remove(record)
        with contextlib.suppress(OSError):
            self._path(record).unlink(missing_ok=True)

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


def _read_at(fd: int, place: Place, part: np.ndarray) -> bool:
    """Read a part into `part`; return whether it is there, whole and unchanged."""
    count = 0
    while count < part.size and (more := os.preadv(fd, [part[count:].data], place.at + count)):
        count += more
    return place.holds(part[:count])


def _out_of_memory(fd: int) -> None:
    """Give up the system's copy of a file, which would drive out weights that are mapped."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
