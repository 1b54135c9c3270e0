"""What this board holds: its stages; while a manager changes the plan, also the next one."""

import asyncio
import logging
import reprlib
from dataclasses import dataclass
from typing import Any

from edgellm.agent.link import Links
from edgellm.agent.loading import Load, Loaded, Loading
from edgellm.agent.models import Models
from edgellm.agent.page_section import SectionPages
from edgellm.agent.pages import Origin
from edgellm.agent.prefix_cache import PrefixCache, Prefixes
from edgellm.agent.room import Room
from edgellm.agent.stage import Stage
from edgellm.agent.stages import Served, Stages
from edgellm.agent.turns import Turns
from edgellm.errors import BoardError, ClaimError, PlanError
from edgellm.model.protocols import Section
from edgellm.plan import Plan, Swapping, check_lengths
from edgellm.plan.costs import mean_layers
from edgellm.shards.manifest import Manifest
from edgellm.wire.addresses import Address
from edgellm.wire.changing import Changing, State
from edgellm.wire.credentials import Credentials
from edgellm.wire.peer import Peer
from edgellm.wire.signed import unverified

log = logging.getLogger(__name__)
_MAX_DIGESTS = 64  # of plans, in one message


@dataclass
class _Next:
    """The next stage. `committed` is its plan as an admin signed it, and `keep` has the digests of the plans of other
    models that go on beside it. `loaded` is None until the switch if there is no room beside the sections that are to
    go. With `drains`, it may be switched to while these go on."""

    plan: Plan
    addresses: dict[str, Address]
    committed: dict[str, Any]
    keep: frozenset[str]
    drains: bool = False
    loaded: Loaded | None = None
    loaded_bytes: int = 0


class Holding:
    """A board's epoch and stages, changed by one manager at a time: claim, prepare, commit.

    `load(manifest, folder, start, end)` gives a section; `tls` are the credentials for links to other boards. `model`
    is that of the last plan that was committed, at first the default one of `models`.
    """

    def __init__(
        self, board: str, models: Models, load: Load, *, ram_bytes: int | None = None, tls: Credentials | None = None
    ):
        self.board, self.models, self.model = board, models, models.default
        self.epoch: int | None = None  # of the last plan that was committed; without a section there may be no stage
        self.committed: dict[str, Any] | None = None  # that plan, as an admin signed it
        self.held = Stages()
        self.loading = Loading(board)
        self.closed = False  # stopping: no new plans
        self.links = Links(board, tls)
        self.cache: PrefixCache | None = None  # pages of prompts, once the agent has found them
        self.room = Room(board, lambda plan: models.of(plan).manifest, ram_bytes, self._pages_bytes)
        for model in models:
            model.grammars.spare_bytes = self._bytes_for_constraints
        self._load = load
        self._turns = Turns()
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
    def stage(self) -> Stage | None:
        """The stage of the last plan that was committed."""
        served = None if self.epoch is None else self.held.of_model(self.manifest.sha256)
        return served.stage if served is not None and served.plan.epoch == self.epoch else None

    @property
    def draining(self) -> Stage | None:
        """The oldest stage that drains."""
        return next(iter(self.held.draining), None)

    @property
    def beside(self) -> list[Served]:
        """What the board serves beside the last plan."""
        return [one for one in self.held.served if one.stage is not self.stage]

    @property
    def step_s(self) -> float:
        """How long the running step has taken so far, be it of a stage that is being given up."""
        return max((stage.engine.step_s for stage in self.held.all), default=0.0)

    @property
    def stages(self) -> list[Stage]:
        """The stages that compute: those that serve, and those that drain."""
        return self.held.computing

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
        return any(not stage.running for stage in self.held.draining) and not self._changing.locked()

    def takes(self, stage: Stage | None) -> bool:
        """Return whether a stage takes new sequences; one that drains doesn't."""
        return any(one.stage is stage for one in self.held.served)

    @property
    def alive(self) -> bool:
        """Whether the threads that compute still run, where there are sections."""
        return all(stage.engine.alive for stage in self.stages)

    def offer_bytes(self) -> int:
        """Return the RAM for sections, as if this agent held none: its KV counts as free, as its mapped shards already
        do."""
        return self.room.offer_bytes(self._plans)

    def swapping(self, plan: Plan) -> Swapping | None:
        """Return how this board's section of a plan swaps its experts now; None if it fits into RAM."""
        return self.room.swapping(plan, self._plans, self.models.of(plan).disk_bytes_per_s)

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
        """Load the section of the plan in `content` beside what computes if there is room; else it is loaded by
        `commit`. The plans whose digests are in "keep" go on beside it, those of other models. With "drain" in it,
        there is room if all can compute at once, and no other one drains.

        Returns {"beside", "loaded_bytes"}. Raises EdgellmError if it can't be served here.
        """
        async with self._changing:
            self._check_open()
            self._change.assign(peer, epoch_of(content))
            self._next = None
            plan, addresses, committed = self._parse(content)
            drains = content.get("drain") is True
            coming = _Next(plan, addresses, committed, _digests(content, "keep"))
            kept = [one.plan for one in self.held.beside(plan, coming.keep)]
            beside = not (drains and self._drain_would_wait(coming))
            if self.board in plan.boards and (drains or not self._is_held(plan)):
                coming.loaded_bytes = self.room.bytes_to_load(plan, self._plans)
                self.room.check(plan, self.offer_bytes(), kept)
                beside = beside and (
                    self.room.is_to_drain(plan, self._plans) if drains
                    else self.room.is_beside(plan, self._plans, kept)
                )  # fmt: skip
                if beside:
                    coming.loaded = await self._fill(plan)
                    self._check_open()
            self._change.prepared(peer, plan.epoch)
            coming.drains = drains and beside
            self._next = coming
            return {"beside": beside, "loaded_bytes": coming.loaded_bytes}

    async def commit(self, peer: Peer, content: dict) -> dict:
        """Switch to the prepared stage of the epoch in `content`, and end the claim. With "drain" in it, running
        sequences go on to their end on the stages that go; otherwise they end with code epoch. Or, with "unload" in it,
        give up the plans with these digests, and nothing else.

        Returns {"loaded_bytes"}. Raises EdgellmError if nothing of that epoch was prepared, or loading it fails; then
        the board holds the new epoch without a section.
        """
        async with self._changing:
            epoch, drain = content.get("epoch"), content.get("drain") is True
            self.check_claim(peer, epoch)
            if "unload" in content:
                await self._unload(peer, _digests(content, "unload"))
                return {"loaded_bytes": 0}
            coming = self._next
            if drain and coming is not None and (not coming.drains or self._drain_would_wait(coming)):
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
        loaded = coming.loaded or self._held(plan)
        # Before the first await: from now on no claim may rely on the old one.
        self.epoch, self.committed, self.model = plan.epoch, coming.committed, self.models.of(plan)
        reason = f"board {self.board} has moved on to epoch {plan.epoch}"
        await self.held.leave(self.held.take_out(self.held.beside(plan, coming.keep), drain, reason), reason)
        if self.board not in plan.boards:
            log.info("holds no section of %s, epoch %d", plan.model, plan.epoch)
            return
        if loaded is None:
            loaded = await self._fill(plan)
        self._check_open()
        own, model = plan.section_of(self.board), self.models.of(plan)
        waits = self.swapping(plan)
        if waits is not None:
            log.warning("degraded: %s", waits.words())
        stage = Stage(
            plan, self.board, coming.addresses, loaded.section, loaded.slots, model.manifest.rope_switch_len,
            links=self.links,
            forgets=any((*model.manifest.kv_window_tokens, *model.manifest.state_bytes)),
            pace=model.pace.section(
                mean_layers(model.manifest, own.start, own.end), own.end == plan.num_layers,
                0.0 if waits is None else waits.wait_s,
            ),
            grammars=model.grammars,
            prefixes=self._prefixes(plan, loaded.section),
            turns=self._turns,
            waits=waits,
            drafters=() if loaded.draft_model is None else (loaded.draft_model,),
        )  # fmt: skip
        self.held.begin(stage, loaded, coming.committed)
        self.share_ram()
        log.info("serves layers %d-%d of %s, epoch %d", own.start, own.end, plan.model, plan.epoch)

    async def _unload(self, peer: Peer, digests: frozenset[str]) -> None:
        """Give up plans, unless answers of theirs run, and end the claim either way."""
        try:
            going = [one for one in self.held.served if one.plan.digest in digests]
            for one in going:
                if count := one.stage.running:
                    raise ClaimError(
                        f"board {self.board} still has {count} running answer{'s' * (count > 1)} of {one.plan.model}. "
                        "Ask it to give the model up once no answer runs."
                    )
            for one in going:
                log.info("gives up layers %s of %s", one.plan.section_of(self.board), one.plan.model)
            leaves = [self.held.give_up(one) for one in going]
            await self.held.leave(leaves, f"board {self.board} was told to give the model up")
            self.share_ram()
        finally:
            self.release(peer)

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
        """Give up draining stages whose sequences have ended. Call it now and then."""
        if not self.drained:
            return
        async with self._changing:
            leaves = self.held.drained()
            for stage in leaves:
                log.info("epoch %d has ended: its last sequence is done", stage.epoch)
            await self.held.leave(leaves, f"board {self.board} has moved on to epoch {self.epoch}")

    def stop(self, reason: str) -> None:
        """End the stages and their sequences."""
        self.closed = True
        self.held.stop(reason, "draining")
        for model in self.models:
            model.grammars.close()

    def _check_open(self) -> None:
        if self.closed:
            raise BoardError(f"board {self.board} is stopping and takes no section", self.board)

    def _pages_bytes(self) -> int:
        return 0 if self.cache is None else self.cache.memory.size_bytes

    def _drain_would_wait(self, coming: _Next) -> bool:
        """Return whether stages would have to drain while others still do."""
        kept = self.held.beside(coming.plan, coming.keep)
        return self.held.still_drains and any(one not in kept for one in self.held.served)

    def _parse(self, content: dict) -> tuple[Plan, dict[str, Address], dict[str, Any]]:
        plan, addresses, tag = unverified(content)
        if content.get("board") != self.board:
            other = reprlib.repr(content.get("board"))
            raise PlanError(f"this is board {self.board}, the plan was sent for {other}")
        check_lengths(self.models.of(plan).manifest, plan.settings)
        self.models.draft_of(plan, self.board)
        return plan, addresses, tag

    def _is_held(self, plan: Plan) -> bool:
        """Return whether the running section of this model, with its KV slots, is just what `plan` asks for."""
        return self._held(plan) is not None

    def _held(self, plan: Plan) -> Loaded | None:
        """Return the running section of this model, with its KV slots, if it is just what `plan` asks for."""
        served = self.held.of_model(plan.manifest_sha256)
        if served is None or self.board not in plan.boards:
            return None
        own, other = served.plan.section_of(self.board), plan.section_of(self.board)
        kv = [(p.context, p.slots, p.kv_dtype, p.drafts_on(self.board)) for p in (served.plan, plan)]
        return served.loaded if own == other and kv[0] == kv[1] else None

    async def _fill(self, plan: Plan) -> Loaded:
        """Load this board's section of a plan, with slots."""
        self._filling = plan
        self.share_ram()
        try:
            swaps = self.swapping(plan) is not None
            return await self.loading.fill(plan, self.models, self._load, swaps)
        finally:
            self._filling = None


def epoch_of(content: dict) -> object:
    """Return the epoch that an Assign says it is for; None for one that says none."""
    plan = content.get("plan")
    return plan.get("epoch") if isinstance(plan, dict) else None


def _digests(content: dict, name: str) -> frozenset[str]:
    """Return the digests of plans that a message has under this name. Raises PlanError for anything else."""
    said = content.get(name, [])
    if not (isinstance(said, list) and len(said) <= _MAX_DIGESTS and all(isinstance(d, str) for d in said)):
        raise PlanError(f"{name} is {reprlib.repr(said)}, expected a list of at most {_MAX_DIGESTS} digests of plans")
    return frozenset(said)
