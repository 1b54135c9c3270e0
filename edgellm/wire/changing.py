"""The order in which one board's plan is changed, without I/O: Claim → Assign → Commit (docs/wire.md, "Changing the
plan"). It decides who may do what next; loading sections and switching to them is the agent's."""

import enum
import reprlib
from collections.abc import Hashable, Mapping
from typing import Any

from edgellm.errors import ClaimError, PlanError

MAX_EPOCH = (1 << 32) - 1
MAX_JUMP = 1 << 20  # of an epoch above the one before: nobody changes a plan a million times unseen


class State(enum.Enum):
    """How far a change is."""

    FREE = "nobody changes the plan"
    CLAIMED = "one manager may assign a plan"
    PREPARED = "its section is prepared: the manager may commit"


class Changing:
    """The change of the plan at `board`. A manager is its connection: a claim ends with it."""

    def __init__(self, board: str):
        self.state = State.FREE
        self._board = board
        self._who: Hashable = None
        self._epoch = 0

    def claim(self, who: Hashable, content: Mapping[str, Any], held: int | None) -> None:
        """Take a claim: FREE → CLAIMED, and what was prepared is forgotten; or return one: → FREE. `held` is the epoch
        that the board holds. Raises ClaimError if another manager has the claim, or if this one is wrong about what the
        board holds; PlanError for a claim that is none."""
        epoch, replaces = content.get("epoch"), content.get("replaces")
        if epoch is None:
            self.end(who)
            return
        if type(epoch) is not int or type(replaces) not in (int, type(None)):
            raise PlanError(f"claim of epoch {reprlib.repr(epoch)}, replacing {reprlib.repr(replaces)}")
        if self.state is not State.FREE and self._who is not who:
            raise ClaimError(f"another manager is giving board {self._board} the plan of epoch {self._epoch}")
        if replaces != held or (held is not None and epoch <= held):
            raise ClaimError(
                f"board {self._board} holds {_named(held)}; it was claimed for epoch {epoch} in place of "
                f"{_named(replaces)}"
            )
        most = MAX_EPOCH if held is None else min(MAX_EPOCH, held + MAX_JUMP)
        if epoch > most:
            raise ClaimError(
                f"board {self._board} holds {_named(held)} and takes epochs up to {most}; it was claimed for epoch "
                f"{epoch}. Somebody has told this manager a wrong epoch: 'edgellm status' shows each board's."
            )
        self.state, self._who, self._epoch = State.CLAIMED, who, epoch

    def check(self, who: Hashable, epoch: object) -> None:
        """Raise ClaimError unless `who` has the claim for this epoch."""
        if self.state is State.FREE or self._who is not who or self._epoch != epoch:
            raise ClaimError(f"board {self._board} was not claimed for epoch {reprlib.repr(epoch)} on this connection")

    def assign(self, who: Hashable, epoch: object) -> None:
        """Begin to prepare a plan: what was prepared before is forgotten. Raises ClaimError as `check` does."""
        self.check(who, epoch)
        self.state = State.CLAIMED

    def prepared(self, who: Hashable, epoch: object) -> None:
        """Record that the plan's section is prepared: → PREPARED. Raises ClaimError if the claim has ended meanwhile.
        """
        self.check(who, epoch)
        self.state = State.PREPARED

    def commit(self, who: Hashable, epoch: object) -> None:
        """Begin to switch; the claim stays until `end`, so that other managers wait. Raises ClaimError if nothing of
        this epoch is prepared."""
        self.check(who, epoch)
        if self.state is not State.PREPARED:
            raise ClaimError(f"board {self._board} has not prepared epoch {epoch}")
        self.state = State.CLAIMED

    def has(self, who: Hashable) -> bool:
        """Return whether `who` has the claim."""
        return self.state is not State.FREE and self._who is who

    def end(self, who: Hashable) -> bool:
        """End the claim of `who`, if it has it: → FREE. Return whether it had."""
        had = self.has(who)
        if had:
            self.state, self._who = State.FREE, None
        return had


def _named(epoch: int | None) -> str:
    return "no plan" if epoch is None else f"epoch {epoch}"
