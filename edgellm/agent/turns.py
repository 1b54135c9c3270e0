"""Engines of one board compute in turns, because each step is made for all cores."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

_LONG_S = 1.0  # a step that takes longer doesn't keep the others from computing beside it


@dataclass(eq=False)
class _Turn:
    since_s: float | None = None  # when it began


class Turns:
    """Whose step runs: one at a time, in the order in which engines ask. Thread-safe.

    Two models' steps at once would take longer than one after the other: the kernels' threads are busy with the first,
    so the second would compute on its engine's thread alone. It does so only behind a step that takes long, which may
    be a prompt's, or hang."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turns: list[_Turn] = []

    @contextlib.contextmanager
    def mine(self) -> Iterator[None]:
        """Wait until the caller may compute, and have the next one wait until the block ends."""
        own = _Turn()
        with self._changed:
            self._turns.append(own)
            while (wait_s := self._wait_s(own)) != 0:
                self._changed.wait(wait_s)
            own.since_s = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._turns.remove(own)
                self._changed.notify_all()

    def _wait_s(self, own: _Turn) -> float | None:
        """Return how long to wait until a look is worth it: 0 if the turn begins now, None if that isn't known."""
        now_s, longest_s = time.monotonic(), 0.0
        for turn in self._turns[: self._turns.index(own)]:
            if turn.since_s is None:
                return None
            longest_s = max(longest_s, turn.since_s + _LONG_S - now_s)
        return longest_s
