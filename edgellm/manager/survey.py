"""Asks all boards at once for their status, and finds the plan that stands."""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from edgellm.errors import BoardError, DialError, EdgellmError, TagError
from edgellm.manager.board import BoardClient
from edgellm.manager.connections import Connections
from edgellm.plan import Capacity, Plan
from edgellm.shards.manifest import Manifest
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address, is_loopback
from edgellm.wire.credentials import Credentials
from edgellm.wire.reach import MAX_DIALS, REACH_TIMEOUT_S, outcomes_of, reach_content
from edgellm.wire.section_status import LoadError, SectionLoading
from edgellm.wire.signed import Trust, sign
from edgellm.wire.status import BoardStatus, LinkStatus, ShardsHere

MAX_BOARDS = 64  # that are asked; boards that others tell of don't count beyond it
_REACH_TIMEOUT_S = 4.0  # to connect, and again to answer: a board that is well takes milliseconds
_LOST_TIMEOUT_S = 1.0  # the same, for a board that was lost or missing a moment ago
_GRACE_S = 0.5  # for boards that aren't needed


@dataclass(frozen=True)
class Other:
    """A plan of another model that a board serves. `ram_bytes` is what its section takes there, None if the board
    doesn't say; `idle` is whether all its slots are free."""

    plan: Plan
    ram_bytes: int | None
    idle: bool = True


@dataclass(frozen=True)
class Report:
    """The part of a board's status from which plans are made. `epoch` is that of the last plan that was committed
    there. `plan` is the plan that the board serves of this model, None without a section. `addresses` and `tag`, its
    proof, are those of `plan`, or else of the last plan. `others` are the plans that it serves of other models, and
    `shares` is whether it can serve several.
    `shards` are the names of the shard files on its disk.
    """

    board: str
    capacity: Capacity
    epoch: int | None
    plan: Plan | None
    addresses: Mapping[str, Address]
    claimed: bool
    shards: frozenset[str]
    tag: Mapping[str, Any] | None = None
    idle: bool = True  # all slots of this model are free
    draining: bool = False  # it still has answers of the plan before
    up_s: float | None = None
    links: Mapping[str, LinkStatus] = field(default_factory=dict)
    load_error: LoadError | None = None
    is_off: bool = False  # its steps take something else than the plan was made with
    status: BoardStatus | None = field(default=None, repr=False)  # from which all of this is
    others: tuple[Other, ...] = ()
    shares: bool = False

    @property
    def is_quiet(self) -> bool:
        """Whether no answer of any model runs there."""
        return self.idle and all(other.idle for other in self.others)

    def can_keep(self, digests: Set[str]) -> bool:
        """Return whether the board can go on with these plans of other models beside another one."""
        kept = [other for other in self.others if other.plan.digest in digests]
        return not kept or (self.shares and all(other.ram_bytes is not None for other in kept))

    def beside(self, digests: Set[str]) -> Capacity:
        """Return what the board offers beside these plans of other models, which go on."""
        taken = sum(other.ram_bytes or 0 for other in self.others if other.plan.digest in digests)
        return replace(self.capacity, ram_bytes=max(0, self.capacity.ram_bytes - taken))

    @property
    def is_generic(self) -> bool:
        """Whether it computes every model by generic sections."""
        return self.status is not None and self.status.compute.path == "generic"

    @property
    def held(self) -> tuple[int, int] | None:
        """The layers [start, end) that the board has loaded."""
        if self.plan is None:
            return None
        own = self.plan.section_of(self.board)
        return own.start, own.end

    @classmethod
    def of(cls, status: BoardStatus, manifest: Manifest, trust: Trust) -> "Report":
        """Return the report in a status. Raises BoardError for what no agent would say, a board that is stopping, or
        one that has another model; TagError for a plan or an epoch that no admin of this cluster made."""
        board, said, status = status.name, status, status.of_model(manifest.sha256)
        if status.manifest_sha256 != manifest.sha256:
            model = status.model or "unknown"
            raise BoardError(f"board {board} has the shards of another model ({model}). Deploy again.", board)
        if status.draining:
            raise BoardError(f"board {board} is stopping", board)
        if status.faults:
            raise BoardError(status.faults[0], board)
        committed, addresses = committed_of(said, trust)
        besides = besides_of(said, trust)
        models = {manifest.sha256, *(here.manifest_sha256 for here in said.more), said.manifest_sha256}
        plans = [*([committed] if committed else []), *(plan for plan, _ in besides.values())]
        if any(plan.manifest_sha256 not in models for plan in plans):
            raise BoardError(f"board {board} reports a plan that isn't of its model", board)
        if any(p.manifest_sha256 == manifest.sha256 and p.num_layers != manifest.num_layers for p in plans):
            raise BoardError(f"board {board} reports a plan that isn't of its model", board)
        if status.capacity is None:
            raise BoardError(f"board {board} reports no capacity", board)
        tag = said.committed
        if manifest.sha256 in besides:
            plan, addresses = besides[manifest.sha256]
            tag = next(entry.committed for entry in said.beside or () if entry.plan == plan)
        sections = dict(said.sections)
        ours, section = sections.pop(manifest.sha256, (None, None))
        return cls(
            board, status.capacity, status.epoch, ours, addresses, status.claimed,
            shard_names(status.shards, manifest), tag,
            (section is None or section.free_slots == section.slots) and not status.draining_sequences,
            status.draining_sequences > 0, status.health.uptime_s, status.links, status.load_error,
            section is not None and section.is_off, said,
            tuple(Other(plan, s.ram_bytes, s.free_slots == s.slots) for plan, s in sections.values()),
            said.beside is not None,
        )  # fmt: skip


def standing_plan(reports: Mapping[str, Report], known: Plan | None = None) -> Plan | None:
    """Return the newest plan that every board of it holds; None if there is none. Two plans of one epoch aren't mixed
    up, and one that is older than the `known` one of the same model doesn't stand."""
    plans = {r.plan.digest: r.plan for r in reports.values() if r.plan is not None}
    held = {board: r.plan.digest for board, r in reports.items() if r.plan is not None}
    for plan in sorted(plans.values(), key=_age, reverse=True):
        if known is not None and plan.manifest_sha256 == known.manifest_sha256 and plan.epoch < known.epoch:
            continue
        if all(held.get(board) == plan.digest for board in plan.boards):
            return plan
    return None


def newest_plan(reports: Mapping[str, Report]) -> Plan | None:
    """Return the plan of the highest epoch that any board still holds a section of."""
    return max((r.plan for r in reports.values() if r.plan is not None), key=_age, default=None)


def other_models(reports: Mapping[str, Report]) -> dict[str, Plan]:
    """Return by digest the plans of other models that stand: every board of each holds it."""
    plans = {other.plan.digest: other.plan for r in reports.values() for other in r.others}
    held = {b: {other.plan.digest for other in r.others} for b, r in reports.items()}
    return {d: p for d, p in plans.items() if all(d in held.get(b, ()) for b in p.boards)}


def _age(plan: Plan) -> tuple[int, str]:
    """Return what sorts plans in the order in which they were made; plans of one epoch in the same order for every
    manager."""
    return plan.epoch, plan.digest


def committed_of(status: BoardStatus, trust: Trust) -> tuple[Plan | None, dict[str, Address]]:
    """Return the last plan that was committed on a board, and its addresses. A board is believed only for what it
    measures: raises TagError unless an admin has signed all that it says of plans."""
    try:
        if status.committed is None:
            if status.epoch is not None or status.plan is not None:
                raise TagError(f"it reports epoch {status.epoch} without the plan")
            return None, {}
        plan, addresses = trust.plan(status.committed)
        if status.epoch != plan.epoch or status.plan not in (None, plan):
            raise TagError(f"it reports epoch {status.epoch}; what was signed is another plan, of epoch {plan.epoch}")
        return plan, addresses
    except TagError as e:
        raise _liar(status.name, e) from None


def besides_of(status: BoardStatus, trust: Trust) -> dict[str, tuple[Plan, dict[str, Address]]]:
    """Return, by the SHA-256 of its manifest, each plan that a board serves beside the last one, and its addresses.
    Raises TagError unless an admin has signed all of them, and none is newer than the last one."""
    found: dict[str, tuple[Plan, dict[str, Address]]] = {}
    for entry in status.beside or ():
        try:
            plan, addresses = trust.plan(dict(entry.committed))
            if status.epoch is None or plan.epoch >= status.epoch:
                raise TagError(f"it reports epoch {status.epoch}, and beside it a plan of epoch {plan.epoch}")
        except TagError as e:
            raise _liar(status.name, e) from None
        found[plan.manifest_sha256] = plan, addresses
    return found


def _liar(board: str, error: TagError) -> TagError:
    return TagError(
        f"board {board} reports a plan that no admin of this cluster made ({error}). It is left out: deploy to it "
        "again, or remove it.", board,
    )  # fmt: skip


@dataclass
class _Found:
    """What a survey has found so far."""

    reports: dict[str, Report] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    liars: dict[str, str] = field(default_factory=dict)
    unreached: set[str] = field(default_factory=set)
    addresses: dict[str, Address] = field(default_factory=dict)


class Fleet:
    """Connections to all known boards, kept while they live and dialled again when needed. `addresses` follows what
    boards report of others, unless `strangers` is false. With `shared_ram`, boards on loopback share this machine's
    RAM."""

    def __init__(
        self, manifest: Manifest, addresses: Mapping[str, Address], tls: Credentials | None = None, *,
        shared_ram: bool = True, strangers: bool = True,
    ):  # fmt: skip
        self.manifest, self.addresses = manifest, dict(addresses)
        self._shared_ram, self._strangers = shared_ram, strangers
        self.reports: dict[str, Report] = {}
        self.missing: dict[str, str] = {}  # why a board has no report
        self.liars: dict[str, str] = {}  # of these, boards that report what no admin of the cluster signed
        self.unreached: set[str] = set()  # and boards that couldn't even be dialled
        self._connections = Connections(tls)
        self._folder = None if tls is None else tls.folder
        self._trust: Trust | None = None
        self._signed: dict[str, dict[str, Any]] = {}  # by digest, plans that were signed here

    async def __aenter__(self) -> "Fleet":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up on every board."""
        self._connections.close()

    def clients(self, boards: Iterable[str]) -> list[BoardClient]:
        """Return the connections to these boards, all of which have a report. Raises BoardError if one is gone."""
        return [self._connections[b] for b in boards]

    async def sign(self, plan: Plan) -> dict[str, Any]:
        """Return a plan with the addresses of its boards, signed by this manager. Raises ClusterError if it may not
        plan."""
        addresses = {b: self.addresses[b] for b in plan.boards}
        signed = await asyncio.to_thread(sign, plan, addresses, self._folder)
        self._signed = {plan.digest: signed}
        return signed

    def tag_of(self, plan: Plan) -> dict[str, str] | None:
        """Return certificate and signature of a plan that was signed here or reported by a board; None without TLS."""
        reported = [r.tag for r in self.reports.values() if r.plan == plan and r.tag is not None]
        for content in (*reported, *(s for digest, s in self._signed.items() if digest == plan.digest)):
            if content["certificate"] is not None:
                return {name: content[name] for name in ("certificate", "signature")}
        return None

    def drop(self, board: str) -> None:
        """Hang up on a board; the next survey dials it again."""
        self._connections.drop(board)
        self.reports.pop(board, None)

    async def survey(self, needed: Collection[str] | None = None, lost: Collection[str] = ()) -> None:
        """Ask every board, and fill `reports` and `missing`. With `needed` boards, others get a moment only; those that
        were `lost` just now get less time.

        Boards of which others tell are asked too, and those that don't answer are tried where others have them; in one
        further round, so that no answer leads on and on. Raises ClusterError if this manager can't check signed plans.
        """
        found = _Found()
        await self._ask_all(self.addresses, needed, lost, found)
        if elsewhere := self._elsewhere(found):
            await self._ask_all(elsewhere, None if needed is None else {*needed} & elsewhere.keys(), lost, found)
        self.addresses.update(found.addresses)
        self.reports, self.missing, self.liars = found.reports, found.missing, found.liars
        self.unreached = found.unreached
        self._share_ram()

    def _elsewhere(self, found: "_Found") -> dict[str, Address]:
        """Return the addresses, by those who have answered, of boards that aren't known, or that didn't answer at the
        address that is known. The newest plan's count."""
        if not self._strangers:
            return {}
        told: dict[str, Address] = {}
        for report in sorted(found.reports.values(), key=lambda r: -1 if r.epoch is None else r.epoch):
            told.update(report.addresses)
        moved = {b: a for b, a in told.items() if b in found.missing and a != self.addresses.get(b)}
        strangers = [b for b in told if b not in self.addresses]
        return {**moved, **{b: told[b] for b in strangers[: max(0, MAX_BOARDS - len(self.addresses))]}}

    async def _ask_all(
        self, addresses: Mapping[str, Address], needed: Collection[str] | None, lost: Collection[str], found: "_Found"
    ) -> None:
        """Ask these boards, and add what comes of it to `found`."""
        if self._trust is None:  # not before it is needed, because it imports cryptography
            self._trust = await asyncio.to_thread(Trust, self._folder)
        trust = self._trust
        tasks = {name: asyncio.create_task(self._ask(name, at, name in lost, trust)) for name, at in addresses.items()}
        try:
            wanted = [t for name, t in tasks.items() if needed is None or name in needed]
            if wanted:
                await asyncio.wait(wanted)
            late = [t for t in tasks.values() if not t.done()]
            if late:
                await asyncio.wait(late, timeout=_GRACE_S)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        for name, task in tasks.items():
            found.addresses.setdefault(name, addresses[name])
            if task.cancelled():
                found.missing.setdefault(name, f"board {name} does not answer")
                found.unreached.add(name)
            elif isinstance(error := task.exception(), EdgellmError):
                found.missing.setdefault(name, str(error))
                if isinstance(error, DialError):
                    found.unreached.add(name)
                if isinstance(error, TagError):
                    found.liars[name] = str(error)
            elif error is not None:
                raise error
            else:
                found.missing.pop(name, None)
                found.unreached.discard(name)
                found.reports[name], found.addresses[name] = task.result(), addresses[name]

    async def loading(self) -> dict[str, SectionLoading | None]:
        """Return by board what section it is loading; of those that are connected and answer at once."""
        boards = list(self.reports)

        async def ask(board: str) -> SectionLoading | None:
            return (await self._connections[board].status(_LOST_TIMEOUT_S)).loading

        said = await asyncio.gather(*(ask(b) for b in boards), return_exceptions=True)
        return {b: one for b, one in zip(boards, said, strict=True) if not isinstance(one, BaseException)}

    async def reached_by(self, asker: str, addresses: Mapping[str, Address]) -> set[str]:
        """Return which boards `asker`, which has a report, reaches at these addresses; it dials them now."""
        question = m.Reach(reach_content(addresses))
        timeout_s = REACH_TIMEOUT_S * -(-len(addresses) // MAX_DIALS) + _LOST_TIMEOUT_S
        try:
            answer = await self._connections[asker].ask(question, m.Reached, timeout_s)
        except BoardError:
            return set()
        return {b for b, outcome in outcomes_of(answer.content, addresses).items() if outcome and outcome.ok}

    async def _ask(self, name: str, address: Address, lost: bool, trust: Trust) -> Report:
        lost = lost or name in self.missing or self._connections.lost(name)
        timeout_s = _LOST_TIMEOUT_S if lost else _REACH_TIMEOUT_S
        client = await self._connections.to(name, address, timeout_s)
        try:
            return Report.of(await client.status(timeout_s), self.manifest, trust)
        except BoardError:
            self.drop(name)
            raise

    def _share_ram(self) -> None:
        """Give each board that is a process on this machine its part of the RAM that they share."""
        here = [n for n in self.reports if is_loopback(self.addresses[n][0])]
        if self._shared_ram and len(here) > 1:
            import psutil

            part_bytes = psutil.virtual_memory().available // len(here)
            for name in here:
                report = self.reports[name]
                ram_bytes = min(report.capacity.ram_bytes, part_bytes)
                self.reports[name] = replace(report, capacity=replace(report.capacity, ram_bytes=ram_bytes))


def shard_names(shards: ShardsHere, manifest: Manifest) -> frozenset[str]:
    """Return the names of the shard files that a board says it has."""
    names = {manifest.layer(i).name for start, end in shards.layers[: manifest.num_layers]
             for i in range(max(0, start), min(end, manifest.num_layers))}  # fmt: skip
    names |= {manifest.embedding.name} if shards.embedding else set()
    names |= {manifest.head.name} if shards.head else set()
    return frozenset(names)
