"""Drafts from a sequence's own text: what followed when its last few tokens occurred before."""

from collections.abc import Sequence

import numpy as np

from edgellm.agent.slots import Ids, ids_of

_LONGEST, _SHORTEST = 4, 2  # tokens of the suffix that is looked for; a single one misleads more often than not
_FIRST = 4  # drafts before anything is known
_PAUSE = 8  # steps without drafts after the first misses in a row
_LONGEST_PAUSE = 64
_MISSES = 3  # this many in a row begin a pause


class Lookup:
    """Proposes the next tokens. It proposes more after drafts that were all accepted, and fewer after others. After
    several misses in a row it pauses, for longer each time, until a draft is accepted again."""

    def __init__(self, ids: Sequence[int]):
        self._text = bytearray(np.asarray(ids, "<u4").tobytes())
        self._size = _FIRST
        self._misses, self._pause, self._next_pause = 0, 0, _PAUSE

    def __len__(self) -> int:
        """How many tokens the text has."""
        return len(self._text) // 4

    @property
    def ids(self) -> Ids:
        """A copy of the text, as token ids."""
        ids = ids_of(())
        ids.frombytes(self._text)
        return ids

    def extend(self, ids: Sequence[int]) -> None:
        """Append the next tokens of the sequence."""
        self._text += np.asarray(ids, "<u4").tobytes()

    def propose(self, most: int) -> tuple[int, ...]:
        """Return up to `most` tokens that may come next; none if the text has not occurred before, or in a pause."""
        if self._pause:
            self._pause -= 1
            return ()
        count = min(most, self._size)
        if count < 1:
            return ()
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            at = self._find(4 * length)
            if at >= 0:
                begin = at + 4 * length
                follows = np.frombuffer(self._text[begin : begin + 4 * count], "<u4").tolist()
                return tuple(follows[i % len(follows)] for i in range(count))  # too short: repeat it
        return ()

    def learn(self, proposed: int, accepted: int) -> None:
        """Record that `accepted` of `proposed` drafts were accepted."""
        if not proposed:
            return
        if accepted:
            self._misses, self._next_pause = 0, _PAUSE
            self._size = max(self._size, 2 * proposed) if accepted == proposed else accepted + 1
            return
        self._misses += 1
        self._size = max(1, self._size // 2)
        if self._misses >= _MISSES:
            self._misses, self._pause = 0, self._next_pause
            self._next_pause = min(_LONGEST_PAUSE, 2 * self._next_pause)

    def _find(self, size: int) -> int:
        """Return where the last `size` bytes, whole tokens, occurred last before the end; -1 if nowhere."""
        end = len(self._text)
        if size >= end:
            return -1
        suffix, before = bytes(self._text[end - size :]), end - 1
        while (at := self._text.rfind(suffix, 0, before)) >= 0 and at % 4:
            before = at + size - 1
        return at
