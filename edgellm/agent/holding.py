"""What this board holds: its stage of a plan and, while a manager changes the plan, the next stage."""

import asyncio
import contextlib
import logging
import reprlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgellm.agent import measure
from edgellm.agent.stage import Stage
from edgellm.errors import BoardError, ClaimError, ManifestError, PlanError
from edgellm.model.protocols import Section, Slot
from edgellm.plan import Plan, SectionNeed, check_lengths, section_need
from edgellm.shards.manifest import Manifest
from edgellm.wire.addresses import Address, parse_address
from edgellm.wire.credentials import Credentials
from edgellm.wire.peer import Peer

log = logging.getLogger(__name__)
T = TypeVar("T")
Load = Callable[[Manifest, Path, int, int], Section[Any]]


@dataclass(frozen=True)
class _Loaded:
    """A section in memory, with its KV slots."""

    section: Section[Any]
    slots: list[Slot]


@dataclass
class _Next:
    """The next stage. `loaded` is None until the switch if there is no room beside the old section."""

    plan: Plan
    addresses: dict[str, Address]
    loaded: _Loaded | None = None
    loaded_bytes: int = 0


class Holding:
    """A board's epoch and stage, changed by one manager at a time: claim, prepare, commit.

    `load(manifest, folder, start, end)` gives a section; `tls` are the credentials for links to other boards.
    """

    def __init__(self, board: str, manifest: Manifest, folder: Path, load: Load, *,
                 ram_bytes: int | None = None, tls: Credentials | None = None):  # fmt: skip
        self.board, self.manifest, self.folder = board, manifest, folder
        self.epoch: int | None = None  # of the last plan that was committed; without a section there may be no stage
        self.stage: Stage | None = None
        self.closed = False  # draining: no new plans
        self._load, self._ram_bytes, self._tls = load, ram_bytes, tls
        self._loaded: _Loaded | None = None
        self._leaving: Stage | None = None
        self._claim: tuple[Peer, int] | None = None
        self._next: _Next | None = None
        self._changing = asyncio.Lock()

    @property
    def claimed(self) -> bool:
        """Whether a manager is changing the plan."""
        return self._claim is not None

    @property
    def step_s(self) -> float:
        """How long the running step has taken so far, be it of a stage that is being given up."""
        return max((s.engine.step_s for s in (self.stage, self._leaving) if s is not None), default=0.0)

    @property
    def alive(self) -> bool:
        """Whether the thread that computes still runs, where there is a section."""
        return self.stage is None or self.stage.engine.alive

    def offer_bytes(self) -> int:
        """Return the RAM for a section, as if this agent held none: its KV counts as free, as its mapped shards already
        do."""
        free = measure.free_ram_bytes()
        if self.stage is not None:
            free += self._need(self.stage.plan).kv
        return min(free, self._ram_bytes) if self._ram_bytes else free

    def holds_for(self, peer: Peer) -> bool:
        """Return whether something would be lost with this manager: its claim, or its answers."""
        return (self._claim is not None and self._claim[0] is peer) or (
            self.stage is not None and self.stage.has_owner(peer)
        )

    def claim(self, peer: Peer, content: dict) -> None:
        """Let `peer` change the plan. Raises ClaimError if another does, or if it is wrong about what we hold."""
        epoch, replaces = content.get("epoch"), content.get("replaces")
        if epoch is None:
            self.release(peer)
            return
        self._check_open()
        if type(epoch) is not int or type(replaces) not in (int, type(None)):
            raise PlanError(f"claim of epoch {reprlib.repr(epoch)}, replacing {reprlib.repr(replaces)}")
        if self._claim is not None and self._claim[0] is not peer:
            raise ClaimError(f"another manager is giving board {self.board} the plan of epoch {self._claim[1]}")
        if replaces != self.epoch or (self.epoch is not None and epoch <= self.epoch):
            held = "no plan" if self.epoch is None else f"epoch {self.epoch}"
            there = "no plan" if replaces is None else f"epoch {replaces}"
            raise ClaimError(f"board {self.board} holds {held}; it was claimed for epoch {epoch} in place of {there}")
        self._claim, self._next = (peer, epoch), None

    def release(self, peer: Peer) -> None:
        """End the claim of `peer`, which returned it or is gone; drop what it had prepared."""
        if self._claim is not None and self._claim[0] is peer:
            self._claim = self._next = None

    async def prepare(self, peer: Peer, content: dict) -> dict:
        """Load the section of the plan in `content` beside the running one if there is room; else it is loaded by
        `commit`. Returns {"beside", "loaded_bytes"}. Raises EdgellmError if it can't be served here."""
        async with self._changing:
            asked = content.get("plan")
            self._check_claim(peer, asked.get("epoch") if isinstance(asked, dict) else None)
            self._next = None
            plan, addresses = self._parse(content)
            coming = _Next(plan, addresses)
            beside = True
            if self.board in plan.boards and not self._is_held(plan):
                coming.loaded_bytes = self._bytes_to_load(plan)
                self._check_fit(plan)
                beside = self._room_beside(plan)
                if beside:
                    coming.loaded = await self._fill(plan)
                    self._check_claim(peer, plan.epoch)
            self._next = coming
            return {"beside": beside, "loaded_bytes": coming.loaded_bytes}

    async def commit(self, peer: Peer, epoch) -> dict:
        """Switch to the prepared stage, and end the claim. Running sequences end with code epoch.

        Returns {"loaded_bytes"}. Raises EdgellmError if nothing of that epoch was prepared, or loading it fails; then
        the board holds the new epoch without a section.
        """
        async with self._changing:
            self._check_claim(peer, epoch)
            coming = self._next
            if coming is None:
                raise ClaimError(f"board {self.board} has not prepared epoch {epoch}")
            self._next = None
            try:
                await self._switch(coming)
            finally:  # claimed until it is done, so that other managers wait
                self.release(peer)
            return {"loaded_bytes": coming.loaded_bytes}

    async def _switch(self, coming: _Next) -> None:
        plan = coming.plan
        loaded = self._loaded if self._is_held(plan) else coming.loaded
        self.epoch = plan.epoch  # before the first await: from now on no claim may rely on the old one
        await self._leave(plan.epoch)
        if self.board not in plan.boards:
            log.info("holds no section, epoch %d", plan.epoch)
            return
        if loaded is None:
            loaded = await self._fill(plan)
        self._check_open()
        own = plan.section_of(self.board)
        self.stage = Stage(
            plan, self.board, coming.addresses, loaded.section, loaded.slots, self.manifest.rope_switch_len,
            tls=self._tls,
        )  # fmt: skip
        self._loaded = loaded
        log.info("serves layers %d-%d of %s, epoch %d", own.start, own.end, plan.model, plan.epoch)

    def stop(self, reason: str) -> None:
        """End the stage and its sequences."""
        self.closed = True
        if self.stage is not None:
            self.stage.stop(reason, "draining")
            self.stage = None

    def _check_open(self) -> None:
        if self.closed:
            raise BoardError(f"board {self.board} is stopping and takes no section", self.board)

    def _check_claim(self, peer: Peer, epoch) -> None:
        self._check_open()
        if self._claim is None or self._claim[0] is not peer or self._claim[1] != epoch:
            raise ClaimError(f"board {self.board} was not claimed for epoch {reprlib.repr(epoch)} on this connection")

    def _parse(self, content: dict) -> tuple[Plan, dict[str, tuple[str, int]]]:
        plan = Plan.from_dict(content.get("plan"))
        addresses = content.get("addresses")
        if content.get("board") != self.board:
            other = reprlib.repr(content.get("board"))
            raise PlanError(f"this is board {self.board}, the plan was sent for {other}")
        if plan.manifest_sha256 != self.manifest.sha256 or plan.num_layers != self.manifest.num_layers:
            raise ManifestError(
                f"board {self.board} has the shards of {self.manifest.model} ({self.manifest.sha256[:12]}…), "
                f"the plan is for {plan.model} ({plan.manifest_sha256[:12]}…). Push the same shards to every board."
            )
        check_lengths(self.manifest, plan.settings)
        if not isinstance(addresses, dict):
            raise PlanError("the plan came without addresses")
        parsed = {}
        for board in plan.boards:
            address = parse_address(addresses.get(board))
            if address is None:
                other = reprlib.repr(addresses.get(board))
                raise PlanError(f"the plan came with address {other} for board {board}, expected [host, port]")
            parsed[board] = address
        return plan, parsed

    def _need(self, plan: Plan) -> SectionNeed:
        own = plan.section_of(self.board)
        return section_need(self.manifest, plan.settings, own.start, own.end)

    def _is_held(self, plan: Plan) -> bool:
        """Return whether the running section, with its KV slots, is just what `plan` asks for."""
        if self.stage is None or self.board not in plan.boards:
            return False
        now, then = self.stage.plan, plan
        own, other = now.section_of(self.board), then.section_of(self.board)
        kv = [(p.context, p.slots, p.kv_dtype) for p in (now, then)]
        return own == other and kv[0] == kv[1]

    def _new_shards(self, plan: Plan) -> list:
        """Return the shards of the plan's section that the running one doesn't have."""
        own = plan.section_of(self.board)
        held = set()
        if self.stage is not None:
            now = self.stage.plan.section_of(self.board)
            held = {s.name for s in self.manifest.section_shards(now.start, now.end)}
        return [s for s in self.manifest.section_shards(own.start, own.end) if s.name not in held]

    def _bytes_to_load(self, plan: Plan) -> int:
        return sum(s.bytes for s in self._new_shards(plan))

    def _check_fit(self, plan: Plan) -> None:
        own, need, offer = plan.section_of(self.board), self._need(plan), self.offer_bytes()
        if need.total > offer:
            raise PlanError(
                f"board {self.board} offers {offer / 1e9:.2f} GB now; layers {own.start}-{own.end} need "
                f"{need.total / 1e9:.2f} GB. Plan again."
            )

    def _room_beside(self, plan: Plan) -> bool:
        """Return whether KV and new shards fit beside the running section; shards of both are mapped once."""
        if self.stage is None:
            return True
        need = self._need(plan)
        return need.kv + need.activations + sum(s.ram_bytes for s in self._new_shards(plan)) < measure.free_ram_bytes()

    async def _fill(self, plan: Plan) -> _Loaded:
        """Load this board's section of a plan, with slots."""
        own = plan.section_of(self.board)
        log.info("loads layers %d-%d, epoch %d", own.start, own.end, plan.epoch)

        def load() -> _Loaded:
            section = self._load(self.manifest, self.folder, own.start, own.end)
            return _Loaded(section, [section.new_slot(plan.context, plan.kv_dtype) for _ in range(plan.slots)])

        return await in_own_thread(load)

    async def _leave(self, epoch: int) -> None:
        """Give up the running stage, and wait for its running step, because the next section may need the memory."""
        stage, self.stage, self._loaded = self.stage, None, None
        if stage is not None:
            self._leaving = stage
            stage.stop(f"board {self.board} has moved on to epoch {epoch}")
            await asyncio.to_thread(stage.engine.join)
            stage.let_go()
            self._leaving = None


async def in_own_thread(function: Callable[..., T], *args: object) -> T:
    """Return `function(*args)`, run in a thread that ends with it.

    OpenMP keeps a team of helpers for each thread that has computed, as long as that thread lives, and makes all teams
    wait less eagerly once together they are more than the cores: a pool's idle thread would slow every step.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(put: Callable[..., None], value: object) -> None:
        if not done.cancelled():
            put(value)

    def run() -> None:
        put: Callable[..., None]
        value: object
        try:
            put, value = done.set_result, function(*args)
        except BaseException as e:
            put, value = done.set_exception, e
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, put, value)

    threading.Thread(target=run, name="work", daemon=True).start()
    return await done
