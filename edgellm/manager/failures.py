"""What failed, and for how long it's left out: loads by board, ways between boards, boards that come and go. Pure.

Every method takes the time, in seconds of any clock that only rises.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgellm.plan.around import Pair

STEADY_S = 10.0  # how long a board must be up before it's given a section that it needn't have
_FIRST_WAIT_S = 5.0  # until a load or a way that failed is tried again
_LONGEST_WAIT_S = 600.0
_FORGOTTEN_S = 3600.0  # a board that wasn't lost for this long has never been lost
_FLAPS = 3  # losses from which on a board isn't even counted on when the plan must change
_ONE_CUT_S = 1.0  # within which a way fails once, for however many answers
_ODD_S = 20.0  # a manager claims all boards that hold a section within moments; what doesn't fit that isn't one
_REFUSALS = 4  # in a row, by a board that says that nobody has claimed it
_BELIEVED = 2  # failures in a row after which a way counts as broken: one may be a cable that was just plugged in


@dataclass
class _Tries:
    """How often something failed, with no success in between, and when it failed last."""

    count: int = 0
    last_s: float = 0.0
    why: str = ""

    def failed(self, why: str, now_s: float) -> None:
        self.count, self.last_s, self.why = self.count + 1, now_s, why

    def again_s(self) -> float:
        """Return when to try again: twice as late as the time before."""
        return self.last_s + min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self.count - 1, 16))


class Failures:
    """What a keeper remembers of boards. Nothing of it outlives the process."""

    def __init__(self) -> None:
        self._loads: dict[str, tuple[tuple[int, int], _Tries]] = {}
        self._ways: dict[Pair, _Tries] = {}
        self._losses: dict[str, _Tries] = {}
        self._odd_claims: dict[str, float] = {}  # since when
        self._refusals: dict[str, _Tries] = {}

    # Loads

    def load_failed(self, board: str, section: tuple[int, int], why: str, now_s: float) -> None:
        """Remember that `board` couldn't load the layers [start, end) of `section`."""
        before = self._loads.get(board)
        tries = before[1] if before is not None and before[0] == section else _Tries()
        tries.failed(why, now_s)
        self._loads[board] = (section, tries)

    def has_seen(self, board: str) -> bool:
        """Return whether a load of `board` failed before these eyes, with none since that worked."""
        return board in self._loads

    def load_worked(self, board: str) -> None:
        """Forget that a load of `board` failed."""
        self._loads.pop(board, None)

    def cannot_load(self, now_s: float) -> dict[str, str]:
        """Return, by board, why it isn't to be given anything to load now."""
        return {board: tries.why for board, (_, tries) in self._loads.items() if now_s < tries.again_s()}

    # Ways between boards

    def way_failed(self, pair: Pair, why: str, now_s: float, *, certain: bool = False) -> None:
        """Remember that `pair[0]` couldn't reach `pair[1]`. It counts at once if it is `certain`, because the board has
        just dialled in vain; else from the second time in a row on. All answers that one cut has ended are one time."""
        tries = self._ways.setdefault(pair, _Tries(last_s=-_LONGEST_WAIT_S))
        if now_s - tries.last_s >= _ONE_CUT_S:
            tries.failed(why, now_s)
        if certain:
            tries.count = max(tries.count, _BELIEVED)

    def ways_worked(self, pairs: Collection[Pair]) -> None:
        """Forget failures of these ways: an answer went over them."""
        for pair in pairs:
            self._ways.pop(pair, None)

    def suspected(self, now_s: float) -> set[Pair]:
        """Return the ways that failed once, a moment ago."""
        return {p for p, t in self._ways.items() if t.count < _BELIEVED and now_s - t.last_s < _FIRST_WAIT_S}

    def broken(self, now_s: float) -> dict[Pair, str]:
        """Return the ways not to be used now, and why."""
        believed = {pair: tries for pair, tries in self._ways.items() if tries.count >= _BELIEVED}
        return {pair: tries.why for pair, tries in believed.items() if now_s < tries.again_s()}

    # Claims

    def claimed_alone(self, boards: Collection[str], now_s: float) -> None:
        """Remember that of all boards only these say that a manager is changing their plan, though others hold a
        section too."""
        self._odd_claims = {board: self._odd_claims.get(board, now_s) for board in boards}

    def claim_refused(self, board: str, now_s: float) -> None:
        """Remember that a board refused a claim, though it says that no manager is changing its plan."""
        self._refusals.setdefault(board, _Tries()).failed("", now_s)

    def claims_worked(self) -> None:
        """Forget refused claims: boards have taken a plan."""
        self._refusals.clear()

    def unwilling(self, now_s: float) -> dict[str, str]:
        """Return, by board, why no plan is to be made with it: it would keep the others from changing theirs."""
        alone = [board for board, since_s in self._odd_claims.items() if now_s - since_s >= _ODD_S]
        refusing = [b for b, t in self._refusals.items() if t.count >= _REFUSALS and now_s < t.again_s()]
        return {
            **{b: f"board {b} says that a manager is changing its plan, but no other board does" for b in alone},
            **{b: f"board {b} refuses every change of its plan" for b in refusing},
        }

    # Boards that come and go

    def lost(self, board: str, now_s: float) -> None:
        """Remember that a board that was there is gone, or has restarted."""
        tries = self._losses.get(board)
        if tries is None or now_s - tries.last_s > _FORGOTTEN_S:
            tries = self._losses[board] = _Tries()
        tries.failed("", now_s)

    def steady_in_s(self, board: str, up_s: float | None, now_s: float) -> float:
        """Return in how many seconds a board that says it is up for `up_s` (None: unknown) may be given a section that
        it needn't have; 0 for now."""
        tries = self._losses.get(board)
        losses = tries.count if tries is not None and now_s - tries.last_s <= _FORGOTTEN_S else 0
        needed_s = min(_LONGEST_WAIT_S, STEADY_S * 2.0 ** min(losses, 16))
        known = [s for s in (up_s, now_s - tries.last_s if tries is not None and losses else None) if s is not None]
        return max(0.0, needed_s - min(known)) if known else 0.0

    def flapping(self, up_s: Mapping[str, float | None], now_s: float) -> set[str]:
        """Return which of these boards come and go so often that a plan is better off without them."""
        return {
            board for board, up in up_s.items()
            if (tries := self._losses.get(board)) is not None and tries.count >= _FLAPS
            and self.steady_in_s(board, up, now_s) > 0
        }  # fmt: skip
