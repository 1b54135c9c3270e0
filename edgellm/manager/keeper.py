"""Keeps a cluster's plan: the one task of a manager that surveys boards and changes plans. Questions never do.

    keeper = Keeper(manifest, plan, addresses)
    plan = keeper.plan                        # at once: no board is asked
    plan = await keeper.after(plan, error)    # an answer failed: the same plan if it still stands, or the next one
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Set
from typing import Any

from edgellm.errors import BoardError, ClaimError, EdgellmError, LinkError, LoadError, OtherModelError, PlanError
from edgellm.manager.beside import Waiting, ways
from edgellm.manager.failures import Failures
from edgellm.manager.growth import Growth
from edgellm.manager.progress import Progress, followed
from edgellm.manager.rebalance import Avoid, Outcome, describe, propose, serving_plan, settle, still_answer
from edgellm.manager.seeing import check_it_sees_enough, try_ways
from edgellm.manager.survey import Fleet, other_models
from edgellm.manager.take import take, unload
from edgellm.plan import Move, Plan
from edgellm.plan.around import links
from edgellm.shards.manifest import Manifest
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.status import BoardStatus

log = logging.getLogger(__name__)
SURVEY_EVERY_S = 10.0  # of a client that stays
_SURVEY_LIMIT_S = 2.0  # that `finish` waits for a survey
_MAX_TOLD = 256

Tell = Callable[[str], None]
Tag = dict[str, str]  # a plan's certificate and signature
Adopted = Callable[[Plan, dict[str, Address], Tag | None], None]


class Keeper:
    """`plan` and `addresses` are what is known of the cluster, at first before any board was asked.

    `tell(text)` is called for events that a person may want to know. `adopted(plan, addresses, tag)` is called when
    another plan than the known one serves, or the same one at other addresses; `tag` proves it to others, None without
    TLS. With `every_s`, boards are surveyed that often once the keeper is started, each time after `refresh()`;
    without, on trouble and when `look` is called. If no plan stands then, they are given one `unasked`. While boards
    load a plan that is needed, `on_progress` is called now and then.
    """

    def __init__(
        self, manifest: Manifest, plan: Plan, addresses: Mapping[str, Address], *, tls: Credentials | None = None,
        tell: Tell = lambda text: None, adopted: Adopted = lambda plan, addresses, tag: None,
        every_s: float | None = None, refresh: Callable[[], None] = lambda: None, unasked: bool = True,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ):  # fmt: skip
        self.plan = plan
        self._on_progress = on_progress
        self._refresh, self._unasked = refresh, unasked
        self._who = None if tls is None else tls.identity
        self._may_plan = tls is None or (self._who is not None and self._who.admin)
        self._fleet = Fleet(manifest, addresses, tls)
        self._tell, self._adopted, self._every_s = tell, adopted, every_s
        self._known_addresses = dict(self._fleet.addresses)
        self._failures = Failures()
        self._met: set[str] = set()  # boards that this manager has reached itself
        self._told: set[str] = set()
        self._surveying = asyncio.Lock()
        self._mending: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self._committing = False  # the optional move that is under way can't be given up any more
        self._growth = Growth(always=every_s is not None)
        self._waiting = Waiting()
        self.progress: Progress | None = None  # of the boards, while they load a plan

    @property
    def addresses(self) -> dict[str, Address]:
        """Host and port by board name."""
        return self._fleet.addresses

    @property
    def missing(self) -> dict[str, str]:
        """By board, why it has no part in the last survey."""
        return self._fleet.missing

    @property
    def statuses(self) -> dict[str, BoardStatus]:
        """By board, what it said in the last survey."""
        return {board: r.status for board, r in self._fleet.reports.items() if r.status is not None}

    @property
    def waits(self) -> bool:
        """Whether answers of another model run, which this one waits for."""
        return self._waiting.since_s is not None

    @property
    def alone(self) -> bool:
        """Whether no board answered the last survey."""
        return not self._fleet.reports

    def start(self) -> None:
        """Survey on a timer from now on, if there is one."""
        if self._every_s is not None and self._timer is None:
            self._timer = _task(self._watch(self._every_s))

    def close(self) -> None:
        """Give up what is under way, and hang up on every board."""
        for task in (self._timer, self._mending, self._looking, self._moving):
            if task is not None:
                task.cancel()
        self._fleet.close()

    def know(self, plan: Plan, addresses: Mapping[str, Address]) -> None:
        """Take over what a newer cluster file says: a plan that another manager made, boards that were added."""
        self._fleet.addresses.update(addresses)
        self._known_addresses = dict(self._fleet.addresses)
        if plan.manifest_sha256 == self.plan.manifest_sha256 and plan.epoch > self.plan.epoch:
            self.plan = plan

    def met(self, boards: Collection[str]) -> None:
        """Remember that these boards could be reached from here: if they can't any more, they are lost."""
        self._met.update(boards)

    def worked(self, plan: Plan) -> None:
        """Remember that a token came by this plan: all its ways work."""
        self._failures.ways_worked(links(plan))

    # Trouble

    async def after(self, plan: Plan, error: EdgellmError) -> Plan:
        """Return the plan to go on with after an answer by `plan` has failed: the same one if it still stands.

        Answers that fail at the same time share one survey and one change. Raises PlanError if the boards that are left
        can't hold the model, BoardError if none answers or one fails, ClaimError while another manager is at work.
        """
        if plan.digest != self.plan.digest:
            return self.plan  # it has been changed since
        lost = getattr(error, "board", None)
        if isinstance(error, LinkError) and lost is not None:
            self._failures.way_failed((lost, error.other), str(error), _clock_s())
        if self._mending is None or self._mending.done():
            self._mending = _task(self._mend([lost] if lost is not None else []))
        await asyncio.shield(self._mending)
        return self.plan

    async def stand(self, *, beside: bool = False) -> Plan:
        """Return a plan that stands, as a question that is about to come would need it. With `beside`, other models'
        plans that stand go on, and PlanError says why this one doesn't fit beside them. Raises as `after` does."""
        if not beside:
            return await self.after(self.plan, BoardError("nobody has asked yet"))
        if self._mending is not None and not self._mending.done():
            await asyncio.wait([self._mending])
        self._mending = _task(self._mend([], beside=True))
        await asyncio.shield(self._mending)
        return self.plan

    async def stands(self) -> bool:
        """Return whether a plan stands, as the boards say now, and follow it."""
        await self._survey(self.plan.boards)
        return self._adopt_what_serves()

    async def unload(self) -> bool:
        """Have the boards give up this model; return whether any did. Raises ClaimError while answers of it run, or
        another manager is at work."""
        await self._survey(self.plan.boards)
        return self._may_plan and await unload(self._fleet, self.plan)

    async def _mend(self, lost: Collection[str], beside: bool = False) -> None:
        """Have a plan that stands."""
        await self._survey(self.plan.boards, lost)
        await self._try_ways()
        if self._adopt_what_serves():
            return  # an optional change that is under way goes on
        if self._moving is not None:
            if not self._committing:
                self._moving.cancel()
            await asyncio.wait([self._moving])
            await self._survey(self.plan.boards, lost)
        if not self._may_plan and not self.alone:
            missing = "; ".join(self.missing.values()) or "no plan stands"
            raise BoardError(f"{missing}. {self._who} may ask, but not plan: an admin must change the plan.")
        await check_it_sees_enough(self._fleet, self.plan, self._met)
        for _ in range(len(self._fleet.reports) + 1):  # boards that can't load are left out, one by one
            try:
                self.progress = Progress(self._fleet.manifest.model)
                async with followed(self.progress, self._fleet, self._on_progress):
                    await self._settle(beside)
                return
            except LoadError as e:
                self._load_failed(e)
                await self._survey(self.plan.boards)
            finally:
                self.progress = None
        raise BoardError("; ".join(self._failures.cannot_load(_clock_s()).values()))

    async def _settle(self, beside: bool) -> None:
        fleet, avoid = self._fleet, self._avoid()
        if not fleet.reports:
            raise BoardError("; ".join(fleet.missing.values()) or "the cluster has no boards")
        flapping = self._failures.flapping({b: r.up_s for b, r in fleet.reports.items()}, _clock_s())
        less = {b: f"board {b} comes and goes" for b in flapping}
        tries = ways(fleet.reports, avoid, less, beside=beside)
        try:
            for tried in tries:
                try:
                    outcome = await self._settle_with(tried)
                    break
                except PlanError as e:
                    if tried.keep:
                        e = self._no_room_beside(e)
                    if tried is tries[-1]:
                        raise e from None
        except ClaimError as e:
            if e.board is not None and not fleet.reports[e.board].claimed:
                self._failures.claim_refused(e.board, _clock_s())
            raise
        except PlanError as e:
            if not fleet.missing:
                raise
            without = "; ".join(fleet.missing.values())
            raise PlanError(f"{without}. Without: {e}", f"{without}. Without: {e.brief}") from None
        self._failures.claims_worked()
        self._waiting.end()
        self._adopt(outcome.plan)

    def _no_room_beside(self, error: PlanError) -> PlanError:
        """Return the error that says beside which models there is no room, and log it."""
        others = sorted(plan.model for plan in other_models(self._fleet.reports).values())
        text = f"{self._fleet.manifest.model} has no room beside {' and '.join(others)}"
        log.info("%s: %s", text, error)
        return PlanError(f"{text}: {error}", f"{text}: {error.brief}")

    async def _settle_with(self, avoid: Avoid) -> Outcome:
        """Settle as `avoid` says. Raises OtherModelError while answers of another model run that can't go on beside."""
        reports = self._fleet.reports
        if not avoid.disturbs(reports):
            return await settle(self._fleet, None, self.plan, grow=False, tell=self._tell, avoid=avoid)
        must_wait = self._waiting.begin(_clock_s())

        async def may_commit(in_place: Set[str]) -> bool:
            if in_place and must_wait:
                await self._survey(self.plan.boards)
                self._waiting.no_room = not self._quiet()
                return not self._waiting.no_room
            return True

        if self._waiting.no_room and must_wait and not self._quiet():  # loading beside was tried already
            raise OtherModelError(still_answer(reports))
        return await settle(
            self._fleet, None, self.plan, grow=False, tell=self._tell, avoid=avoid, may_commit=may_commit
        )

    async def _try_ways(self) -> None:
        if self._may_plan:
            await try_ways(self._fleet, self._failures, _clock_s())

    def _load_failed(self, error: LoadError) -> None:
        assert error.board is not None
        self._failures.load_failed(error.board, error.section, str(error), _clock_s())
        self._tell_once(f"{str(error).rstrip('.')}; the others go on without it")

    def _avoid(self) -> Avoid:
        now_s = _clock_s()
        unwilling = {b: why for b, why in self._failures.unwilling(now_s).items() if b in self._fleet.reports}
        for text in unwilling.values():
            self._tell_once(f"{text}; it is left out")
        return Avoid(self._failures.cannot_load(now_s), self._failures.broken(now_s), unwilling)

    # Growing

    def look(self) -> None:
        """Survey in the background, and give the boards a better plan if there is one."""
        if self._looking is None or self._looking.done():
            self._looking = _task(self._look())

    async def finish(self, limit_s: float, tell: Tell) -> None:
        """Wait for what `look` has begun, for `limit_s` at most; `tell` is called if boards are changing their plan."""
        if self._looking is None:
            return
        await asyncio.wait([self._looking], timeout=_SURVEY_LIMIT_S)
        if self._looking.done() and self._growth.wants_idle:
            self.look()
            await asyncio.wait([self._looking], timeout=_SURVEY_LIMIT_S)
        if self._moving is not None and not self._moving.done():
            tell(f"boards are loading a better plan; waiting for up to {limit_s:.0f} s …")
            await asyncio.wait([self._moving], timeout=limit_s)

    async def _look(self) -> None:
        await self._survey(self.plan.boards)
        if self.alone:
            return
        if not self._adopt_what_serves():
            if self._elsewhere() or not self._unasked:
                return  # nobody asks this model, and the boards answer with another one, or will with what is asked
            if self._every_s is not None and self._may_plan and (self._mending is None or self._mending.done()):
                self._mending = _task(self._mend([]))  # before anybody asks
            return
        try:
            better = await self._better()
            if better is not None:
                self._moving = _task(self._take(*better))
                await self._moving
        except LoadError as e:
            assert e.board is not None
            self._failures.load_failed(e.board, e.section, str(e), _clock_s())
            self._tell_once(f"a better plan could not be adopted: {e}")
        except ClaimError:
            pass  # another manager is at it
        except EdgellmError as e:
            self._tell_once(f"a better plan could not be adopted: {e}")

    async def _better(self) -> tuple[Move, Set[str]] | None:
        """Return a move that is worth it, and that may begin now; and the digests of what goes on beside it."""
        fleet, now_s = self._fleet, _clock_s()
        reports = fleet.reports
        at_work = any(r.claimed or r.draining for r in reports.values())
        if not self._may_plan or at_work or (self._growth.wants_idle and not self._idle()):
            return None
        await self._try_ways()
        avoid = self._growth.begin(reports, self.plan, self._avoid(), self._failures, now_s)
        if avoid is None:
            return None
        move = await propose(fleet, self.plan.settings, self.plan, avoid=avoid)
        self._growth.weighed(now_s)
        return (move, avoid.keep) if move.changed else None

    async def _take(self, move: Move, keep: Set[str]) -> None:
        """Have the boards take a plan that they could do without: beside what they have, or once they are idle. Other
        models' plans go on."""

        async def may_commit(in_place: Set[str]) -> bool:
            if in_place:
                await self._survey(self.plan.boards)
            self._growth.wants_idle = bool(in_place) and not self._idle()
            self._committing = not self._growth.wants_idle
            return self._committing

        self._tell(describe(move.plan))
        try:
            unwilling = self._failures.unwilling(_clock_s())
            if await take(self._fleet, move.plan, may_commit, unwilling, keep) is not None:
                self._adopt(move.plan)
                await self._survey(move.plan.boards)  # what boards hold is asked about
        finally:
            self._committing = False

    def _elsewhere(self) -> bool:
        """Return whether boards answer with another model."""
        return any(r.others for r in self._fleet.reports.values())

    def _idle(self) -> bool:
        """Return whether no board had an answer of this model at the last survey."""
        return all(r.idle for r in self._fleet.reports.values())

    def _quiet(self) -> bool:
        """Return whether no board had an answer of any model at the last survey."""
        return all(r.is_quiet for r in self._fleet.reports.values())

    async def _watch(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            self._refresh()
            self.look()
            assert self._looking is not None
            await asyncio.wait([self._looking])

    # Both

    async def _survey(self, needed: Collection[str], lost: Collection[str] = ()) -> None:
        before = self._fleet.reports
        await self._fleet.survey(needed, lost)
        now_s, reports = _clock_s(), self._fleet.reports
        for board, report in before.items():
            restarted = board in reports and report.epoch is not None and reports[board].epoch is None
            if restarted or (board in needed and board not in reports):
                self._failures.lost(board, now_s)
        self._met.update(reports)
        claimed = {b for b, r in reports.items() if r.claimed}
        others = any(r.plan is not None for b, r in reports.items() if b not in claimed)
        self._failures.claimed_alone(claimed if others else (), now_s)
        for text in self._fleet.liars.values():
            self._tell_once(text)

    def _adopt_what_serves(self) -> bool:
        """Follow the plan that stands. Return whether there is one."""
        serving = serving_plan(self._fleet.reports, self.plan, self._failures.broken(_clock_s()).keys())
        if serving is None:
            return False
        self._waiting.end()
        self._adopt(serving)
        return True

    def _adopt(self, plan: Plan) -> None:
        addresses = self._fleet.addresses
        if plan != self.plan or any(addresses[b] != self._known_addresses.get(b) for b in plan.boards):
            self.plan, self._known_addresses = plan, dict(addresses)
            self._adopted(plan, dict(addresses), self._fleet.tag_of(plan))

    def _tell_once(self, text: str) -> None:
        if text not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(text)
            self._tell(text)


def _task(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Return a task whose error is nobody's duty to look at."""
    task = asyncio.create_task(coroutine)
    task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return task


def _clock_s() -> float:
    """Return the time in seconds of the clock that failures are remembered by."""
    return asyncio.get_running_loop().time()
