"""Reading a checkpoint's bytes: plain positioned reads (never a mapping), every length checked against the file."""

import os
from pathlib import Path

from edgellm.errors import CheckpointError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_fetched(beginning: bytes | bytearray, path: Path) -> None:
    """Raise CheckpointError if a file that begins so only names the file meant, as git leaves it without Git LFS."""
    if beginning.startswith(_LFS_POINTER):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the file itself. Fetch it with git lfs pull.")


class CheckpointFile:
    """A weight file opened for positioned reads.

    Reads rather than maps: mapped pages of a checkpoint larger than memory would count as ours, and a file that
    shrinks while it is mapped kills the process instead of raising an error.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise CheckpointError(f"{self.path}: {e.strerror or e}") from None
        status = os.fstat(self._fd)
        self.bytes = status.st_size
        self.mtime_ns = status.st_mtime_ns
        check_fetched(self.read(0, min(self.bytes, len(_LFS_POINTER))), self.path)

    def __del__(self) -> None:
        if fd := getattr(self, "_fd", None):
            os.close(fd)

    def read(self, offset: int, length: int, what: str = "") -> bytearray:
        """`length` bytes from `offset`; raises CheckpointError with both numbers if the file ends before."""
        if offset < 0 or length < 0 or offset + length > self.bytes:
            raise CheckpointError(
                f"{self.path}: {what or 'data'} ends at byte {offset + length}, the file has {self.bytes}. "
                "It is truncated or corrupt; fetch it again."
            )
        buffer = bytearray(length)
        view, done = memoryview(buffer), 0
        while done < length:
            try:
                got = os.preadv(self._fd, [view[done : done + (1 << 30)]], offset + done)
            except OSError as e:
                raise CheckpointError(f"{self.path}: {e.strerror or e} at byte {offset + done}") from None
            if got == 0:
                raise CheckpointError(
                    f"{self.path}: {what or 'data'} ends after {done} bytes, expected {length}; "
                    "the file shrank while it was read."
                )
            done += got
        return buffer
