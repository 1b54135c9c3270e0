"""Answers that outlive boards and plans: each takes the plan that stands, and replays its text on the next one."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

from edgellm.config import PATIENCE_S, WAIT_S
from edgellm.errors import AnswerError, BoardError, BusyError, ClaimError, OtherModelError, PlanError, UsageError
from edgellm.manager.client import Chosen, ClusterClient
from edgellm.manager.connections import Connections
from edgellm.manager.keeper import Adopted, Keeper, Tell
from edgellm.manager.progress import Progress
from edgellm.manager.take import LOAD_TIMEOUT_S
from edgellm.plan import Plan
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from edgellm.structure import Constraint
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.status import SequenceStats

_RETRY_S = (0.1, 0.2, 0.5, 1.0)  # between tries; the last one again and again
_Trouble = BoardError | PlanError


class Session:
    """Asks a cluster, any number of questions at once. `keeper` keeps its plan, on connections of its own; all answers
    share others.

    `plan`, `addresses`, `tell`, `adopted`, `every_s`, `refresh`, `unasked` and `on_progress` are the keeper's.
    `patience_s` after the first failure, an answer is given up unless a token has arrived since.
    """

    def __init__(
        self, manifest: Manifest, plan: Plan, addresses: Mapping[str, Address], *, tls: Credentials | None = None,
        patience_s: float = PATIENCE_S, tell: Tell = lambda text: None,
        adopted: Adopted = lambda plan, addresses, tag: None, every_s: float | None = None,
        refresh: Callable[[], None] = lambda: None, unasked: bool = True,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ):  # fmt: skip
        self.keeper = Keeper(
            manifest, plan, addresses, tls=tls, tell=tell, adopted=adopted, every_s=every_s, refresh=refresh,
            unasked=unasked, on_progress=on_progress,
        )
        self._connections = Connections(tls)
        self._patience_s, self._tell = patience_s, tell
        self._told: tuple[object, ...] | None = None
        self._closed = False
        self.recoveries = 0  # answers that went on after a board was lost, or the plan changed

    @property
    def plan(self) -> Plan:
        """The plan that the next question takes."""
        return self.keeper.plan

    async def __aenter__(self) -> "Session":
        self.keeper.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End all answers, and hang up on every board."""
        self._closed = True
        self.keeper.close()
        self._connections.close()

    async def generate(
        self, ids: list[int], *, sampling: Sampling, max_tokens: int, eos: tuple[int, ...],
        stats: dict[str, SequenceStats] | None = None, speculate: bool = True, logprobs: int = 0,
        constraint: Constraint | None = None, pool: str = "", cache: str = "", wait_s: float = WAIT_S,
        queued: Callable[[int], None] = lambda position: None, progress: Callable[[int], None] | None = None,
        served: Callable[[Plan], None] = lambda plan: None, ended: Callable[[], bool] = lambda: False,
    ) -> AsyncGenerator[Chosen, None]:  # fmt: skip
        """Stream an answer as `ClusterClient.generate` does, but a board that is lost, hangs, restarts or gets another
        section costs only time. `served(plan)` is called with each plan that is asked.

        Raises BusyError where no slot becomes free at the start, AnswerError for what can't be computed, PlanError or
        BoardError when the cluster couldn't continue for `patience_s`, or no board answers at the start.
        """
        done: list[int] = []
        attempt = 0
        reached = False
        stuck_s: float | None = None
        trouble: _Trouble | None = None
        plan = self.keeper.plan
        while True:
            if self._closed:
                raise UsageError("the client is closed")
            replayed = bool(done)
            try:
                if trouble is not None:
                    before, plan = plan, await self.keeper.after(plan, trouble)
                    trouble = None
                    if plan == before:  # it stands, and what failed may take a moment to come back
                        await asyncio.sleep(_RETRY_S[min(attempt - 1, len(_RETRY_S) - 1)])
                addresses = self.keeper.addresses
                boards = await self._connections.to_all({b: addresses[b] for b in plan.boards})
                self.keeper.met(plan.boards)
                reached = True
                served(plan)
                tokens = ClusterClient(plan, boards).generate(
                    ids + done, sampling=sampling, max_tokens=max_tokens, eos=eos, stats=stats, speculate=speculate,
                    logprobs=logprobs, constraint=constraint, pool=pool, cache=cache, began=len(ids), wait_s=wait_s,
                    queued=queued, progress=progress, tell=self._tell, ended=ended,
                )  # fmt: skip
                async with aclosing(tokens):
                    async for chosen in tokens:
                        if not done or stuck_s is not None:
                            self.keeper.worked(plan)
                            self._told = None
                        self.recoveries += bool(done) and stuck_s is not None
                        done.append(chosen.token)
                        stuck_s, attempt = None, 1
                        yield chosen
                        if chosen.finish:
                            return
                return
            except AnswerError:
                raise
            except (BoardError, PlanError) as e:
                stuck_s = _clock_s() if stuck_s is None else stuck_s  # a long prompt was no trouble
                hopeless = attempt == 0 and isinstance(e, BusyError)
                if hopeless or (trouble is not None and not reached and self.keeper.alone):
                    raise
                if attempt or trouble is not None:
                    self._go_on(e, stuck_s)
                at_once = trouble is None and not isinstance(e, BusyError)
                if at_once or trouble is not None:
                    trouble = e
            finally:
                if replayed and stats:  # held tokens were computed for this very answer, or it is unknown
                    for board, told in stats.items():
                        stats[board] = replace(told, reused_tokens=0)
            if not at_once:  # else the keeper is asked first
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
            attempt += 1

    async def embed(self, ids: list[int], pool: str = "mean") -> bytes:
        """Return the embedding of a text, float32 [hidden_size]: its tokens' last hidden states, pooled in one of
        POOLS. Raises as `generate` does."""
        tokens = self.generate(ids, sampling=Sampling(), max_tokens=1, eos=(), speculate=False, pool=pool)
        async with aclosing(tokens):
            async for chosen in tokens:
                if chosen.vector is not None:
                    return chosen.vector
        raise BoardError("the boards sent no embedding")

    def _go_on(self, trouble: _Trouble, stuck_s: float) -> None:
        """Raise `trouble` if patience has ended. Else report it once, not at each try nor in other words: what is wrong
        in brief, and how long to go on."""
        patience_s = LOAD_TIMEOUT_S if isinstance(trouble, ClaimError) else self._patience_s  # another is at work
        left_s = patience_s - (_clock_s() - stuck_s)
        if left_s <= 0:
            raise trouble
        key = (type(trouble), getattr(trouble, "board", None), *sorted(self.keeper.missing))
        if key == self._told:
            return
        self._told = key
        text = trouble.brief if isinstance(trouble, PlanError) else str(trouble)
        if isinstance(trouble, ClaimError) and not isinstance(trouble, OtherModelError):
            text = "the plan is being changed"
        text = text.rstrip(".")
        self._tell(f"{text}; trying to continue for up to {max(1, round(left_s))} s …")


def _clock_s() -> float:
    """Return the time in seconds of the clock that patience is measured by."""
    return asyncio.get_running_loop().time()
