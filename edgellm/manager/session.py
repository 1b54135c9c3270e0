"""An answer that outlives its boards: follows the plan or makes the next one, and replays the text so far."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

from edgellm.config import PATIENCE_S
from edgellm.errors import AnswerError, BoardError, BusyError, ClaimError, EdgellmError, PlanError
from edgellm.manager.client import Chosen, ClusterClient
from edgellm.manager.rebalance import Outcome, settle
from edgellm.manager.survey import Fleet, standing_plan
from edgellm.manager.take import LOAD_TIMEOUT_S
from edgellm.plan import Plan
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.status import SequenceStats

_RETRY_S = (0.1, 0.2, 0.5, 1.0)  # between surveys; the last one again and again


class Session:
    """Asks a cluster. `plan` and `addresses` are what is known of it before any board was asked.

    `tell(text)` is called for events that a person may want to know; `adopted(plan, addresses)` when
    another plan than the known one serves. `patience_s` after the first failure, the answer is given up unless a token
    has arrived since.
    """

    def __init__(
        self, manifest: Manifest, plan: Plan, addresses: Mapping[str, Address], *, tls: Credentials | None = None,
        patience_s: float = PATIENCE_S, tell: Callable[[str], None] = lambda text: None,
        adopted: Callable[[Plan, dict[str, Address]], None] = lambda plan, addresses: None,
    ):  # fmt: skip
        self.plan = plan
        self._fleet = Fleet(manifest, addresses, tls)
        self._patience_s, self._tell, self._adopted = patience_s, tell, adopted
        self._told: tuple[object, ...] | None = None

    async def __aenter__(self) -> "Session":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._fleet.close()

    async def generate(
        self, ids: list[int], *, sampling: Sampling, max_tokens: int, eos: tuple[int, ...],
        stats: dict[str, SequenceStats] | None = None, speculate: bool = True,
    ) -> AsyncGenerator[Chosen, None]:  # fmt: skip
        """Stream an answer as `ClusterClient.generate` does, but a board that is lost, hangs, restarts or gets another
        section costs only time.

        Raises BusyError where no slot is free at the start, AnswerError for what can't be computed, PlanError or
        BoardError when the cluster couldn't continue for `patience_s`, or no board answers at the start.
        """
        done: list[int] = []
        attempt = 0
        stuck_s: float | None = None
        while True:
            replayed = bool(done)
            try:
                cluster = await self._ready(grow=attempt == 0)
                tokens = cluster.generate(
                    ids + done, sampling=sampling, max_tokens=max_tokens, eos=eos, stats=stats,
                    speculate=speculate, began=len(ids),
                )  # fmt: skip
                async with aclosing(tokens):
                    async for chosen in tokens:
                        done.append(chosen.token)
                        stuck_s, attempt, self._told = None, 1, None
                        yield chosen
                        if chosen.finish:
                            return
                return
            except AnswerError:
                raise
            except (BoardError, PlanError) as e:
                hopeless = attempt == 0 and (isinstance(e, BusyError) or not self._fleet.reports)
                patience_s = LOAD_TIMEOUT_S if isinstance(e, ClaimError) else self._patience_s  # another is at work
                stuck_s = _clock_s() if stuck_s is None else stuck_s  # a long prompt was no trouble
                left_s = patience_s - (_clock_s() - stuck_s)
                if hopeless or left_s <= 0:
                    raise
                self._say(e, left_s)
            finally:
                if replayed and stats:  # held tokens were computed for this very answer, or it is unknown
                    for board, told in stats.items():
                        stats[board] = replace(told, reused_tokens=0)
            await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
            attempt += 1

    async def _ready(self, grow: bool) -> ClusterClient:
        """Return a client for a plan that stands; if none does, make the next one. Raises EdgellmError if that fails.
        """
        fleet = self._fleet
        await fleet.survey(needed=self.plan.boards if grow else None)
        if not fleet.reports:
            raise BoardError("; ".join(fleet.missing.values()) or "the cluster has no boards")
        outcome = await self._settle(grow)
        if outcome.plan != self.plan:
            self.plan = outcome.plan
            self._adopted(outcome.plan, dict(fleet.addresses))
        return ClusterClient(outcome.plan, fleet.clients(outcome.plan.boards))

    async def _settle(self, grow: bool) -> Outcome:
        fleet = self._fleet
        standing = standing_plan(fleet.reports)
        spare = standing is not None and set(fleet.reports) - set(standing.boards)
        try:
            return await settle(fleet, None, self.plan, grow=grow and bool(spare), tell=self._tell)
        except EdgellmError as e:
            if standing is None:
                missing = list(fleet.missing.values())
                if isinstance(e, PlanError) and missing:
                    lost = "; ".join(missing)
                    raise PlanError(f"{lost}. Without: {e}", f"{lost}. Without: {e.brief}") from None
                raise
            self._tell(f"a better plan could not be adopted: {e}")  # the one that stands will do
            await fleet.survey()
            return await settle(fleet, None, self.plan, grow=False, tell=self._tell)

    def _say(self, error: BoardError | PlanError, left_s: float) -> None:
        """Report a trouble once, not at each try nor in other words: what is wrong in brief, and how long to go on."""
        trouble = (type(error), getattr(error, "board", None), *sorted(self._fleet.missing))
        if trouble == self._told:
            return
        self._told = trouble
        text = error.brief if isinstance(error, PlanError) else str(error)
        text = "the plan is being changed" if isinstance(error, ClaimError) else text.rstrip(".")
        self._tell(f"{text}; trying to continue for up to {max(1, round(left_s))} s …")


def _clock_s() -> float:
    """Return the time in seconds of the clock that patience is measured by."""
    return asyncio.get_running_loop().time()
