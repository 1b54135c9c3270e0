"""What this board holds: its stage of a plan; while a manager changes the plan, the next stage; and after a change that
drains, the one before, until its sequences have ended."""

import asyncio
import logging
import reprlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.agent.link import Links
from edgellm.agent.models import Models
from edgellm.agent.page_section import SectionPages
from edgellm.agent.pages import Origin
from edgellm.agent.prefix_cache import PrefixCache, Prefixes
from edgellm.agent.room import Room
from edgellm.agent.stage import Stage
from edgellm.agent.threads import in_own_thread
from edgellm.errors import BoardError, ClaimError, EdgellmError, PlanError
from edgellm.model.protocols import Section, Slot
from edgellm.plan import Plan, check_lengths
from edgellm.plan.costs import mean_layers
from edgellm.shards.manifest import Manifest
from edgellm.wire.addresses import Address
from edgellm.wire.changing import Changing, State
from edgellm.wire.credentials import Credentials
from edgellm.wire.peer import Peer
from edgellm.wire.section_status import LoadError
from edgellm.wire.signed import unverified

log = logging.getLogger(__name__)
Load = Callable[[Manifest, Path, int, int], Section[Any]]


@dataclass(frozen=True)
class _Loaded:
    """A section in memory, with its KV slots."""

    section: Section[Any]
    slots: list[Slot]


@dataclass
class _Next:
    """The next stage. `tag` is its signed plan. `loaded` is None until the switch if there is no room beside the old
    section. With `drains`, it may be switched to while the old section goes on."""

    plan: Plan
    addresses: dict[str, Address]
    tag: dict[str, Any]
    drains: bool = False
    loaded: _Loaded | None = None
    loaded_bytes: int = 0


class Holding:
    """A board's epoch and stage, changed by one manager at a time: claim, prepare, commit.

    `load(manifest, folder, start, end)` gives a section; `tls` are the credentials for links to other boards. `model`
    is that of the last plan that was committed, at first the default one of `models`. A stage that is `draining` has
    sequences of an older epoch, which go on to their end.
    """

    def __init__(
        self, board: str, models: Models, load: Load, *, ram_bytes: int | None = None, tls: Credentials | None = None
    ):
        self.board, self.models, self.model = board, models, models.default
        self.epoch: int | None = None  # of the last plan that was committed; without a section there may be no stage
        self.committed: dict[str, Any] | None = None  # that plan, as an admin signed it
        self.stage: Stage | None = None
        self.draining: Stage | None = None
        self.closed = False  # stopping: no new plans
        self.links = Links(board, tls)
        self.cache: PrefixCache | None = None  # pages of prompts, once the agent has found them
        self.room = Room(board, lambda plan: models.of(plan).manifest, ram_bytes, self._pages_bytes)
        for model in models:
            model.grammars.spare_bytes = self._bytes_for_constraints
        self._load = load
        self._loaded: _Loaded | None = None
        self._load_error: tuple[int, int, str, float] | None = None  # section, reason, when
        self._leaving: list[Stage] = []
        self._change = Changing(board)
        self._next: _Next | None = None
        self._filling: Plan | None = None  # whose section is being loaded
        self._changing = asyncio.Lock()

    @property
    def manifest(self) -> Manifest:
        """The manifest of `model`."""
        return self.model.manifest

    @property
    def claimed(self) -> bool:
        """Whether a manager is changing the plan."""
        return self._change.state is not State.FREE

    @property
    def step_s(self) -> float:
        """How long the running step has taken so far, be it of a stage that is being given up."""
        return max((s.engine.step_s for s in (*self.stages, *self._leaving)), default=0.0)

    @property
    def stages(self) -> list[Stage]:
        """The stages that compute: the plan's, and one that drains."""
        return [stage for stage in (self.stage, self.draining) if stage is not None]

    @property
    def _plans(self) -> list[Plan]:
        return [stage.plan for stage in self.stages]

    @property
    def running(self) -> int:
        """How many sequences hold a slot."""
        return sum(stage.running for stage in self.stages)

    @property
    def drained(self) -> bool:
        """Whether a stage that drained can be given up."""
        return self.draining is not None and not self._still_drains and not self._changing.locked()

    @property
    def load_error(self) -> LoadError | None:
        """The last load that failed, unless that section was loaded since."""
        if self._load_error is None:
            return None
        start, end, reason, at_s = self._load_error
        return LoadError(start, end, reason, round(time.monotonic() - at_s, 1))

    def stage_of(self, epoch: int) -> Stage | None:
        """Return the stage of this epoch: the plan's, or the one that drains."""
        if self.stage is not None and self.stage.epoch == epoch:
            return self.stage
        return self.draining if self.draining is not None and self.draining.epoch == epoch else None

    @property
    def alive(self) -> bool:
        """Whether the thread that computes still runs, where there is a section."""
        return all(stage.engine.alive for stage in self.stages)

    def offer_bytes(self) -> int:
        """Return the RAM for a section, as if this agent held none: its KV counts as free, as its mapped shards already
        do."""
        return self.room.offer_bytes(self._plans)

    def share_ram(self) -> None:
        """Let pages of prompts have half of the RAM that nothing else needs. Call it now and then: they give way to
        whatever else takes RAM."""
        if self.cache is not None:
            growing = sum(model.grammars.growing_bytes for model in self.models)
            self.cache.memory.limit((self._spare_bytes() - growing) // 2)

    def _spare_bytes(self, capped: bool = True) -> int:
        """Return the RAM that no section here needs, that of pages included. For any thread."""
        held, coming, coming_next = self._plans, self._filling, self._next
        if coming_next is not None and coming_next.loaded is not None:
            held.append(coming_next.plan)
        return self.room.spare_bytes(held, [] if coming is None else [coming], capped=capped)

    def _bytes_for_constraints(self) -> int:
        """Return the RAM for the process that follows constraints: the owner's limit is one for sections."""
        return self._spare_bytes(capped=False)

    def holds_for(self, peer: Peer) -> bool:
        """Return whether something would be lost with this manager: its claim, or its answers."""
        return self._change.has(peer) or any(stage.has_owner(peer) for stage in self.stages)

    def claim(self, peer: Peer, content: dict) -> None:
        """Let `peer` change the plan. Raises ClaimError if another does, or if it is wrong about what we hold."""
        if content.get("epoch") is None:
            self.release(peer)
            return
        self._check_open()
        self._change.claim(peer, content, self.epoch)
        self._next = None

    def release(self, peer: Peer) -> None:
        """End the claim of `peer`, which returned it or is gone; drop what it had prepared."""
        if self._change.end(peer):
            self._next = None

    def check_claim(self, peer: Peer, epoch: object) -> None:
        """Raise ClaimError unless `peer` may give this board the plan of `epoch`."""
        self._check_open()
        self._change.check(peer, epoch)

    async def prepare(self, peer: Peer, content: dict) -> dict:
        """Load the section of the plan in `content` beside the running one if there is room; else it is loaded by
        `commit`. With "drain" in it, there is room if both can compute at once, and no other one drains.

        Returns {"beside", "loaded_bytes"}. Raises EdgellmError if it can't be served here.
        """
        async with self._changing:
            self._check_open()
            self._change.assign(peer, epoch_of(content))
            self._next = None
            plan, addresses, tag = self._parse(content)
            drains = content.get("drain") is True
            coming = _Next(plan, addresses, tag)
            beside = not (drains and self._still_drains)  # there is room for one that drains
            if self.board in plan.boards and (drains or not self._is_held(plan)):
                coming.loaded_bytes = self.room.bytes_to_load(plan, self._plans)
                self.room.check(plan, self.offer_bytes())
                fits = self.room.is_to_drain if drains else self.room.is_beside
                beside = beside and fits(plan, self._plans)
                if beside:
                    coming.loaded = await self._fill(plan)
                    self._check_open()
            self._change.prepared(peer, plan.epoch)
            coming.drains = drains and beside
            self._next = coming
            return {"beside": beside, "loaded_bytes": coming.loaded_bytes}

    async def commit(self, peer: Peer, content: dict) -> dict:
        """Switch to the prepared stage of the epoch in `content`, and end the claim. With "drain" in it, running
        sequences go on to their end on the old stage; otherwise they end with code epoch.

        Returns {"loaded_bytes"}. Raises EdgellmError if nothing of that epoch was prepared, or loading it fails; then
        the board holds the new epoch without a section.
        """
        async with self._changing:
            epoch, drain = content.get("epoch"), content.get("drain") is True
            self.check_claim(peer, epoch)
            coming = self._next
            if drain and coming is not None and not (coming.drains and not self._still_drains):
                raise ClaimError(
                    f"board {self.board} has not prepared epoch {epoch} beside the answers that run, so they can't go "
                    "on when it switches"
                )
            self._change.commit(peer, epoch)
            assert coming is not None, "what is prepared is here"
            self._next = None
            try:
                await self._switch(coming, drain)
            finally:  # claimed until it is done, so that other managers wait
                self.release(peer)
            return {"loaded_bytes": coming.loaded_bytes}

    async def _switch(self, coming: _Next, drain: bool) -> None:
        plan = coming.plan
        loaded = coming.loaded or (self._loaded if self._is_held(plan) else None)
        # Before the first await: from now on no claim may rely on the old one.
        self.epoch, self.committed, self.model = plan.epoch, coming.tag, self.models.of(plan)
        stage, self.stage, self._loaded = self.stage, None, None
        reason = f"board {self.board} has moved on to epoch {plan.epoch}"
        if drain and stage is not None and stage.running:
            before, self.draining = self.draining, stage
            stage.drain(reason)
            log.info("epoch %d goes on with its %d sequences until they end", stage.epoch, stage.running)
            await self._leave([before], reason)
        else:
            before, self.draining = self.draining, None
            await self._leave([stage, before], reason)
        if self.board not in plan.boards:
            log.info("holds no section, epoch %d", plan.epoch)
            return
        if loaded is None:
            loaded = await self._fill(plan)
        self._check_open()
        own, model = plan.section_of(self.board), self.models.of(plan)
        self.stage = Stage(
            plan, self.board, coming.addresses, loaded.section, loaded.slots, model.manifest.rope_switch_len,
            links=self.links,
            pace=model.pace.section(mean_layers(model.manifest, own.start, own.end), own.end == plan.num_layers),
            grammars=model.grammars,
            prefixes=self._prefixes(plan, loaded.section),
        )  # fmt: skip
        self._loaded = loaded
        self.share_ram()
        log.info("serves layers %d-%d of %s, epoch %d", own.start, own.end, plan.model, plan.epoch)

    def _prefixes(self, plan: Plan, section: Section[Any]) -> Prefixes | None:
        """Return which pages the slots of a section share; None for a section whose slots can't be exported."""
        if self.cache is None:
            return None
        if not section.page_layout:
            log.info("keeps no prompts of this section: its slots can't be exported")
            return None
        origin = Origin(plan.manifest_sha256, plan.kv_dtype, section.page_layout)
        return self.cache.section(SectionPages(origin, plan.section_of(self.board).start, section.memories))

    async def tidy(self) -> None:
        """Give up a draining stage whose sequences have ended. Call it now and then."""
        if not self.drained:
            return
        async with self._changing:
            stage, self.draining = self.draining, None
            if stage is not None:
                log.info("epoch %d has ended: its last sequence is done", stage.epoch)
                await self._leave([stage], f"board {self.board} has moved on to epoch {self.epoch}")

    def stop(self, reason: str) -> None:
        """End the stages and their sequences."""
        self.closed = True
        for stage in self.stages:
            stage.stop(reason, "draining")
        self.stage = self.draining = None
        for model in self.models:
            model.grammars.close()

    def _check_open(self) -> None:
        if self.closed:
            raise BoardError(f"board {self.board} is stopping and takes no section", self.board)

    def _pages_bytes(self) -> int:
        return 0 if self.cache is None else self.cache.memory.size_bytes

    @property
    def _still_drains(self) -> bool:
        return self.draining is not None and self.draining.running > 0

    def _parse(self, content: dict) -> tuple[Plan, dict[str, Address], dict[str, Any]]:
        plan, addresses, tag = unverified(content)
        if content.get("board") != self.board:
            other = reprlib.repr(content.get("board"))
            raise PlanError(f"this is board {self.board}, the plan was sent for {other}")
        check_lengths(self.models.of(plan).manifest, plan.settings)
        return plan, addresses, tag

    def _is_held(self, plan: Plan) -> bool:
        """Return whether the running section, with its KV slots, is just what `plan` asks for."""
        if self.stage is None or self.board not in plan.boards:
            return False
        now, then = self.stage.plan, plan
        own, other = now.section_of(self.board), then.section_of(self.board)
        kv = [(p.manifest_sha256, p.context, p.slots, p.kv_dtype) for p in (now, then)]
        return own == other and kv[0] == kv[1]

    async def _fill(self, plan: Plan) -> _Loaded:
        """Load this board's section of a plan, with slots."""
        own, model = plan.section_of(self.board), self.models.of(plan)
        log.info("loads layers %d-%d of %s, epoch %d", own.start, own.end, plan.model, plan.epoch)

        self._filling = plan
        self.share_ram()

        def load() -> _Loaded:
            section = self._load(model.manifest, model.folder, own.start, own.end)
            return _Loaded(section, [section.new_slot(plan.context, plan.kv_dtype) for _ in range(plan.slots)])

        try:
            loaded = await in_own_thread(load)
        except Exception as e:  # a model's code may raise anything
            reason = str(e) if isinstance(e, EdgellmError) else f"{type(e).__name__}: {e}"
            self._load_error = own.start, own.end, reason, time.monotonic()
            raise
        finally:
            self._filling = None
        failed = self._load_error
        if failed is not None and own.start <= failed[0] and failed[1] <= own.end:
            self._load_error = None
        return loaded

    async def _leave(self, stages: list[Stage | None], reason: str) -> None:
        """Give up these stages, and wait for their running steps, because the next section may need the memory."""
        while stages:
            stage = stages.pop()
            if stage is None:
                continue
            self._leaving.append(stage)
            stage.stop(reason)
            await asyncio.to_thread(stage.engine.join)
            stage.let_go()
            self._leaving.remove(stage)


def epoch_of(content: dict) -> object:
    """Return the epoch that an Assign says it is for; None for one that says none."""
    plan = content.get("plan")
    return plan.get("epoch") if isinstance(plan, dict) else None
