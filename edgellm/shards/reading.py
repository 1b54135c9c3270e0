"""Tells how much of the shards has been read. Whoever loads watches its thread; whoever reads says what it has read.

    with watched(lambda count: …):
        section = load_section(…)
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

PIECE_BYTES = 8 << 20  # that are read between two tellings

_watching: ContextVar[Callable[[int], None] | None] = ContextVar("_watching", default=None)


@contextlib.contextmanager
def watched(read: Callable[[int], None]) -> Iterator[None]:
    """Have `read(count)` called in this block, in this thread, for each piece of a shard of `count` bytes that was
    read."""
    before = _watching.set(read)
    try:
        yield
    finally:
        _watching.reset(before)


def have_read(count: int) -> None:
    """Say that `count` bytes more have been read."""
    if (told := _watching.get()) is not None:
        told(count)
