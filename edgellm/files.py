"""Files that a power loss never leaves half written, their SHA-256s and stamps, and locks on folders."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK_POLL_S = 0.1


def write_atomically(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write `content` to `path` so that a reader, or a power loss, finds the old file or the new one, never half.

    With `mode` the file has these permissions from its first byte on, whatever the umask; without, the umask decides.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # left by an interrupted run, with unknown permissions
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(part, flags, 0o666 if mode is None else mode)
    try:
        with open(fd, "wb") as f:
            if mode is not None:
                os.fchmod(f.fileno(), mode)
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power loss."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def stamp_of(path: Path) -> tuple[int, int]:
    """Return what changes when a file is replaced or written: its inode, and when it was modified, in nanoseconds.
    (0, 0) for one that isn't there."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


@contextmanager
def locked(folder: Path, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold `folder` alone; raise TimeoutError if another process still holds it after `timeout_s`.

    The lock is on the folder itself, so no lock file is left to be copied to boards.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"another process has held {folder} for {timeout_s:g} s") from None
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)
