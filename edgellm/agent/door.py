"""The line of sequences that wait for a slot on the first board: who is next, who must go. Pure: it has no clock and
sends nothing."""

from collections.abc import Hashable
from dataclasses import dataclass

from edgellm.errors import BusyError

MAX_LINE = 256  # sequences
MAX_LINE_TOKENS = 8 << 20  # of their prompts, at 4 bytes each
SHARE = 64  # places of one identity, beyond which it must leave some to others
_KEPT_FREE = 32  # places that nobody beyond its share gets


@dataclass
class _Place:
    who: Hashable
    tokens: int
    deadline_s: float
    told: int = 0  # the position that was told last


class Door:
    """Sequences in the order in which they came. `who` is the identity of a sequence's manager; times are seconds of
    any clock."""

    def __init__(self) -> None:
        self._line: dict[int, _Place] = {}
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._line

    def enter(self, seq_id: int, who: Hashable, tokens: int, deadline_s: float) -> None:
        """Put a sequence with a prompt of `tokens` at the end of the line, until `deadline_s`. Raises BusyError if the
        line, or what `who` may take of it, is full."""
        if len(self._line) >= MAX_LINE or self._tokens + tokens > MAX_LINE_TOKENS:
            raise BusyError(
                f"all slots are taken, and {len(self._line)} prompts of {self._tokens} tokens wait already; "
                f"ask again later"
            )
        mine = sum(place.who == who for place in self._line.values())
        if mine >= SHARE and len(self._line) >= MAX_LINE - _KEPT_FREE:
            raise BusyError(
                f"all slots are taken, and {mine} of the {len(self._line)} prompts that wait are yours; the last "
                f"{_KEPT_FREE} places are for others"
            )
        self._line[seq_id] = _Place(who, tokens, deadline_s)
        self._tokens += tokens

    def leave(self, seq_id: int) -> bool:
        """Take a sequence out of the line; return whether it stood there."""
        place = self._line.pop(seq_id, None)
        if place is not None:
            self._tokens -= place.tokens
        return place is not None

    def next(self) -> int | None:
        """Return who is next, if anybody waits."""
        return next(iter(self._line), None)

    def late(self, now_s: float) -> list[int]:
        """Return those whose deadline has passed, in order."""
        return [seq_id for seq_id, place in self._line.items() if place.deadline_s <= now_s]

    def moved(self) -> list[tuple[int, int]]:
        """Return who stands at another position than was returned last, and that position; 1 is next."""
        moved = []
        for position, (seq_id, place) in enumerate(self._line.items(), 1):
            if place.told != position:
                place.told = position
                moved.append((seq_id, position))
        return moved
