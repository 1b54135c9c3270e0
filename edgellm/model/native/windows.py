"""Which positions a slot's layers with a window still hold: a ring has room for the last ones only."""

from collections.abc import Collection, Sequence

from edgellm.model.families.spec import Layer
from edgellm.shards.slot_memory import kept_positions


class Windows:
    """What the layers with a window hold in a slot of `context` tokens, by the size of the window.

    Positions up to `_reached` may have been stored, and so may have taken the place of those a ring before. Of a
    window nothing is there before its `_since`: pages bring back no more than the end.
    """

    def __init__(self, layers: Sequence[Layer], context: int):
        windows = {layer.kv_window_tokens for layer in layers} - {0}
        self._kept = {window: kept_positions(window, context) for window in windows if window < context}
        self._since = dict.fromkeys(self._kept, 0)
        self._reached = 0

    def __contains__(self, window: int) -> bool:
        """Return whether layers with this window may lack positions that others have."""
        return window in self._kept

    def lowest(self, window: int) -> int:
        """Return the smallest position whose key and value are still there in layers with this window (0: none)."""
        return max(self._since[window], self._reached - self._kept[window]) if window in self._kept else 0

    @property
    def earliest(self) -> int:
        """The smallest position besides 0 from which a step may begin: what its token sees has to be there. More than
        what is stored if nothing else than 0 will do; 0 if any position will."""
        lows = ((self.lowest(window), window) for window in self._kept)
        return max((low + window - 1 for low, window in lows if low), default=0)

    def store(self, position: int, end: int) -> None:
        """Note that positions [position, end) are about to be stored."""
        if position < self.earliest:
            self.clear()
        self._reached = max(self._reached, end)

    def restore(self, start: int, end: int, lacking: Collection[int]) -> None:
        """Note that positions [start, end), and nothing behind, are restored, but not in layers whose window is among
        those `lacking`."""
        if not start:
            self.clear()
        for window, kept in self._kept.items():
            if window in lacking:
                self._since[window] = end
            elif start < self._reached - kept:  # what was there before `start` has been overwritten
                self._since[window] = start
        self._reached = max(self._reached, end)

    def clear(self) -> None:
        """Note that nothing is there."""
        self._since, self._reached = dict.fromkeys(self._kept, 0), 0
