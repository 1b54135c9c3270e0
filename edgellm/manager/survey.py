"""Asks all boards at once for their status, and finds the plan that stands."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from edgellm.errors import BoardError, EdgellmError
from edgellm.manager.board import BoardClient
from edgellm.manager.connections import Connections
from edgellm.plan import Capacity, Plan
from edgellm.shards.manifest import Manifest
from edgellm.wire.addresses import Address, is_loopback
from edgellm.wire.credentials import Credentials
from edgellm.wire.status import BoardStatus, ShardsHere

_REACH_TIMEOUT_S = 4.0  # to connect, and again to answer: a board that is well takes milliseconds
_LOST_TIMEOUT_S = 1.0  # the same, for a board that was lost or missing a moment ago
_GRACE_S = 0.5  # for boards that aren't needed


@dataclass(frozen=True)
class Report:
    """The part of a board's status from which plans are made. `plan` is what it serves, None without a section;
    `shards` the names of the shard files on its disk.
    """

    board: str
    capacity: Capacity
    epoch: int | None
    plan: Plan | None
    addresses: Mapping[str, Address]
    claimed: bool
    shards: frozenset[str]

    @property
    def held(self) -> tuple[int, int] | None:
        """The layers [start, end) that the board has loaded."""
        if self.plan is None:
            return None
        own = self.plan.section_of(self.board)
        return own.start, own.end

    @classmethod
    def of(cls, status: BoardStatus, manifest: Manifest) -> "Report":
        """Return the report in a status. Raises BoardError for what no agent would say, a board that is stopping, or
        one that has another model."""
        board = status.name
        if status.manifest_sha256 != manifest.sha256:
            model = status.model or "unknown"
            raise BoardError(f"board {board} has the shards of another model ({model}). Deploy again.", board)
        if status.draining:
            raise BoardError(f"board {board} is stopping", board)
        if status.faults:
            raise BoardError(status.faults[0], board)
        plan = status.plan
        if plan is not None and (plan.manifest_sha256, plan.num_layers) != (manifest.sha256, manifest.num_layers):
            raise BoardError(f"board {board} reports a plan that isn't of its model", board)
        if status.capacity is None:
            raise BoardError(f"board {board} reports no capacity", board)
        shards = _names(status.shards, manifest)
        return cls(board, status.capacity, status.epoch, plan, status.addresses, status.claimed, shards)


def standing_plan(reports: Mapping[str, Report]) -> Plan | None:
    """Return the newest plan that every board of it holds; None if there is none. Two plans of one epoch aren't mixed
    up."""
    plans = {r.plan.digest: r.plan for r in reports.values() if r.plan is not None}
    held = {board: r.plan.digest for board, r in reports.items() if r.plan is not None}
    for plan in sorted(plans.values(), key=_age, reverse=True):
        if all(held.get(board) == plan.digest for board in plan.boards):
            return plan
    return None


def newest_plan(reports: Mapping[str, Report]) -> Plan | None:
    """Return the plan of the highest epoch that any board still holds a section of."""
    return max((r.plan for r in reports.values() if r.plan is not None), key=_age, default=None)


def _age(plan: Plan) -> tuple[int, str]:
    """Return what sorts plans in the order in which they were made; plans of one epoch in the same order for every
    manager."""
    return plan.epoch, plan.digest


class Fleet:
    """Connections to all known boards, kept while they live and dialled again when needed. `addresses` grows by
    what boards report of others, unless `strangers` is false. With `shared_ram`, boards on loopback share this
    machine's RAM."""

    def __init__(
        self, manifest: Manifest, addresses: Mapping[str, Address], tls: Credentials | None = None, *,
        shared_ram: bool = True, strangers: bool = True,
    ):  # fmt: skip
        self.manifest, self.addresses = manifest, dict(addresses)
        self._shared_ram, self._strangers = shared_ram, strangers
        self.reports: dict[str, Report] = {}
        self.missing: dict[str, str] = {}  # why a board has no report
        self._connections = Connections(tls)

    async def __aenter__(self) -> "Fleet":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up on every board."""
        self._connections.close()

    def clients(self, boards: Iterable[str]) -> list[BoardClient]:
        """Return the connections to these boards, all of which have a report."""
        return [self._connections[b] for b in boards]

    def drop(self, board: str) -> None:
        """Hang up on a board; the next survey dials it again."""
        self._connections.drop(board)
        self.reports.pop(board, None)

    async def survey(self, needed: Collection[str] | None = None) -> None:
        """Ask every board, and fill `reports` and `missing`. With `needed` boards, others get a moment only."""
        tasks = {name: asyncio.create_task(self._ask(name)) for name in self.addresses}
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
        self.reports, self.missing = {}, {}
        for name, task in tasks.items():
            if task.cancelled():
                self.missing[name] = f"board {name} does not answer"
            elif isinstance(error := task.exception(), EdgellmError):
                self.missing[name] = str(error)
            elif error is not None:
                raise error
            else:
                self.reports[name] = task.result()
        self._share_ram()
        strangers = {b: a for r in self.reports.values() for b, a in r.addresses.items() if b not in self.addresses}
        if strangers and self._strangers:
            self.addresses.update(strangers)
            await self.survey(needed)

    async def _ask(self, name: str) -> Report:
        lost = name in self.missing or self._connections.lost(name)
        timeout_s = _LOST_TIMEOUT_S if lost else _REACH_TIMEOUT_S
        client = await self._connections.to(name, self.addresses[name], timeout_s)
        try:
            return Report.of(await client.status(timeout_s), self.manifest)
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


def _names(shards: ShardsHere, manifest: Manifest) -> frozenset[str]:
    """Return the names of the shard files that a board says it has."""
    names = {manifest.layer(i).name for start, end in shards.layers[: manifest.num_layers]
             for i in range(max(0, start), min(end, manifest.num_layers))}  # fmt: skip
    names |= {manifest.embedding.name} if shards.embedding else set()
    names |= {manifest.head.name} if shards.head else set()
    return frozenset(names)
