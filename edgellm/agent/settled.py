"""The times that this board tells planners: they follow the present only where it differs by much, and for a while.

Every plan that boards change to reads weights again. So a measurement that comes and goes, because a neighbour computes
or a deploy builds wheels, must not move layers to and fro. Pure: seconds are passed in.
"""

from collections.abc import Mapping

SHARE = 0.25  # less than this share of what was told is noise
HOLD_S = 300.0  # how long the present must differ, as often as it is looked at

Times = dict[str, float | None]


class Settled:
    """What is told: at first whatever is present, later what has been present for HOLD_S."""

    def __init__(self) -> None:
        self._told: Times | None = None
        self._differs_since_s: float | None = None

    def look(self, present: Mapping[str, float | None], now_s: float) -> Times:
        """Return what to tell, if these times are the present; None is one that isn't known."""
        if self._told is None:
            self._told = dict(present)
        if not any(_differ(told, present[name]) for name, told in self._told.items()):
            self._differs_since_s = None
            return self._told
        if self._differs_since_s is None:
            self._differs_since_s = now_s
        if now_s - self._differs_since_s >= HOLD_S:
            self._told, self._differs_since_s = dict(present), None
        return self._told


def _differ(told: float | None, now: float | None) -> bool:
    if told is None or now is None:
        return told is not now
    return abs(now - told) > SHARE * told
