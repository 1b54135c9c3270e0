"""Remembers files whose SHA-256 matched, by their identity in the file system, so that none is hashed twice; and those
whose SHA-256 differed, so that nobody counts on them.

A file counts as changed if its inode, its size, or the time of any change (ctime, which can't be set) differs. A record
counts until the machine restarts, so that damage while it was off is found by hashing.
"""

import hashlib
import json
import logging
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgellm.files import write_atomically
from edgellm.shards.reading import PIECE_BYTES, have_read

log = logging.getLogger(__name__)
_SETTLED_NS = 2_000_000_000  # a file that changed so lately may change again at the same tick of the clock
_MOST_FILES, _MAX_BYTES = 4096, 2 << 20
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Verified:
    """The files that this process has verified, and with `keep_in` those of earlier processes."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}  # identity of a file: its SHA-256
        self._wrong: dict[str, str] = {}  # identity of a file: the SHA-256 that was expected of it
        self._path: Path | None = None
        self._new = False

    def sha256(self, file: BinaryIO, mapping: mmap.mmap, expected: str) -> str:
        """SHA-256 in hex of an open file that is mapped whole: computed, unless the `expected` one is remembered. It
        will be if that is what comes out, and the file has been left alone meanwhile and for a while before. Either way
        the whole file has been read into memory, where there is room."""
        before = os.fstat(file.fileno())
        identity = _identity(before)
        if self._known.get(identity) == expected:
            for piece in _pieces(mapping):
                piece[:: mmap.PAGESIZE].max()  # no step is to wait for the disk
            return expected
        pieces = _pieces(mapping)
        digest = hashlib.sha256(next(pieces).data)
        for piece in pieces:
            digest.update(piece.data)
        found = digest.hexdigest()
        self._wrong.pop(identity, None)
        if found != expected and _identity(os.fstat(file.fileno())) == identity:
            self._wrong[identity] = expected
            for oldest in list(self._wrong)[:-_MOST_FILES]:
                del self._wrong[oldest]
        settled = time.time_ns() - before.st_ctime_ns >= _SETTLED_NS
        if found == expected and settled and _identity(os.fstat(file.fileno())) == identity:
            self._known[identity] = found
            self._new = True
        return found

    def is_wrong(self, file: os.stat_result, expected: str) -> bool:
        """Return whether the file with these attributes had another SHA-256 when it was hashed last; whoever asks for
        `sha256` again has it hashed again, because the card may have misread it."""
        return self._wrong.get(_identity(file)) == expected

    def keep_in(self, folder: Path, name: str) -> None:
        """Know what agents have written down in `folder` since the machine started, because they may take each other's
        sections, and have `save` write down there what the agent `name` knows. What can't be believed is left out."""
        self._path = folder / f"verified-{name}.json"
        for path in sorted(folder.glob("verified-*.json")):
            self._known |= _read(path)

    def save(self) -> None:
        """Write down what is new, where `keep_in` said."""
        boot = _boot_id()
        if not (self._new and self._path and boot):
            return
        self._new = False
        content = {"boot": boot, "files": dict(list(self._known.items())[-_MOST_FILES:])}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(content).encode() + b"\n")
        except OSError as e:
            log.warning("%s can't be written, so the next start hashes shards again: %s", self._path, e.strerror or e)


verified = Verified()


def _pieces(mapping: mmap.mmap) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Yield the bytes of a file that is mapped, uint8, piece by piece, and tell whoever watches what was read."""
    whole = np.frombuffer(mapping, np.uint8)
    for start in range(0, len(whole), PIECE_BYTES):
        piece = whole[start : start + PIECE_BYTES]
        yield piece
        have_read(len(piece))


def _identity(s: os.stat_result) -> str:
    return f"{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}"


def _boot_id() -> str | None:
    """Return the id of this boot of the machine; None if the system has none."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


def _read(path: Path) -> dict[str, str]:
    try:
        with open(path, "rb") as f:
            kept = json.loads(f.read(_MAX_BYTES))
        boot, files = kept["boot"], kept["files"]
        if not all(isinstance(sha256, str) for sha256 in files.values()):
            raise ValueError("a SHA-256 is not a text")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        log.warning("%s can't be read, so shards are hashed again: %s", path, e)
        return {}
    return files if boot and boot == _boot_id() else {}
