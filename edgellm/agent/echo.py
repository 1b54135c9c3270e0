"""How long a hop to another board takes: the median of pings and pongs, halved. Pure: seconds are passed in."""

import statistics
from collections import deque

_EVERY_S = 30.0  # while the connection is used
_AT_FIRST = 5  # pings, each after the pong before
_KEPT = 15  # round trips


class Echo:
    """The pings of one connection, of which one at most is under way."""

    def __init__(self) -> None:
        self._trips_s: deque[float] = deque(maxlen=_KEPT)
        self._number = 0
        self._sent_s: float | None = None  # of the ping that is under way
        self._due_s = float("-inf")

    def next(self, now_s: float) -> int | None:
        """Return the number of a ping to send now; None if none is due."""
        if now_s < self._due_s:
            return None
        self._number += 1
        self._sent_s, self._due_s = now_s, now_s + _EVERY_S
        return self._number

    def restart(self) -> None:
        """Ask at once: the connection is a new one, and no pong of the old one comes any more."""
        self._sent_s, self._due_s = None, float("-inf")

    def came(self, number: int, now_s: float) -> None:
        """Record a pong. One that was not asked for, or comes twice, is ignored."""
        if self._sent_s is None or number != self._number:
            return
        self._trips_s.append(now_s - self._sent_s)
        self._sent_s = None
        if len(self._trips_s) < _AT_FIRST:
            self._due_s = now_s

    @property
    def hop_s(self) -> float | None:
        """Half the median round trip; None until there are some."""
        return statistics.median(self._trips_s) / 2 if len(self._trips_s) >= _AT_FIRST else None
