"""How long a question will stand in line: from how long answers held a slot lately."""

import time
from weakref import WeakKeyDictionary

from edgellm.client import AsyncClient

_SHARE = 0.2  # of the mean, that the newest answer has
_LINES: "WeakKeyDictionary[AsyncClient, Line]" = WeakKeyDictionary()


class Line:
    """The line for the slots of one model."""

    def __init__(self) -> None:
        self.waiting = 0  # questions
        self._mean_s: float | None = None

    def ended(self, held_s: float) -> None:
        """Take into account that an answer held its slot for so long."""
        mean_s = self._mean_s
        self._mean_s = held_s if mean_s is None else mean_s + _SHARE * (held_s - mean_s)

    def eta_s(self, position: int, slots: int) -> float | None:
        """Return in how many seconds the question at `position`, 1 is next, gets a slot; None if nothing is known."""
        return None if self._mean_s is None else position * self._mean_s / max(1, slots)


class Held:
    """Times one answer: in line, and in its slot."""

    def __init__(self, line: Line):
        self._line = line
        self._began_s = time.perf_counter()
        self._in_line = False
        self.queue_s = 0.0

    def queued(self) -> None:
        """The question stands in line."""
        if not self._in_line:
            self._in_line = True
            self._line.waiting += 1

    def served(self) -> None:
        """The question has its slot."""
        if self._in_line:
            self._in_line = False
            self._line.waiting -= 1
            self.queue_s = time.perf_counter() - self._began_s

    def ended(self, computed: bool) -> None:
        """The answer has ended; `computed` if it had a slot."""
        self.served()
        if computed:
            self._line.ended(time.perf_counter() - self._began_s - self.queue_s)


def line_of(client: AsyncClient) -> Line:
    """Return the line of a client's model."""
    return _LINES.setdefault(client, Line())
