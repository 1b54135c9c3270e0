"""What the boards say of themselves, all asked at once, and which plan stands."""

import asyncio
import contextlib
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgellm.errors import BoardError, EdgellmError
from edgellm.manager.board import BoardClient
from edgellm.manager.cluster_file import is_host, is_loopback
from edgellm.plan import Capacity, Plan
from edgellm.shards.manifest import Manifest

_REACH_TIMEOUT_S = 4.0  # to connect, and again to answer: a board that is well takes milliseconds
_LOST_TIMEOUT_S = 1.0  # the same, for a board that was lost or missing a moment ago
_GRACE_S = 0.5  # for boards that aren't needed


@dataclass(frozen=True)
class Report:
    """One board's word. `held` is its loaded section as (start, end); `plan` the plan that it serves, None without a
    section; `shards` the names of the shard files on its disk; `status` all it said."""

    board: str
    capacity: Capacity
    epoch: int | None
    plan: Plan | None
    addresses: dict[str, tuple[str, int]]
    claimed: bool
    shards: frozenset[str]
    status: dict = field(repr=False, compare=False)

    @property
    def held(self) -> tuple[int, int] | None:
        if self.plan is None:
            return None
        own = self.plan.section_of(self.board)
        return own.start, own.end

    @classmethod
    def parse(cls, board: str, status: dict, manifest: Manifest) -> "Report":
        """Out of a status message; raises EdgellmError for what no agent would say, or a board of another model."""
        if status.get("manifest_sha256") != manifest.sha256:
            model = str(status.get("model"))[:60]
            raise BoardError(f"board {board} has the shards of another model ({model}). Deploy again.", board)
        if status.get("draining"):
            raise BoardError(f"board {board} is stopping", board)
        epoch = status.get("epoch")
        if epoch is not None and not (type(epoch) is int and 0 <= epoch < 1 << 32):
            raise BoardError(f"board {board} reports {reprlib.repr(epoch)} as its epoch", board)
        plan = None if status.get("plan") is None else Plan.from_dict(status["plan"])
        if plan is not None:
            plan.section_of(board)
            if (plan.epoch, plan.manifest_sha256, plan.num_layers) != (epoch, manifest.sha256, manifest.num_layers):
                raise BoardError(f"board {board} reports a plan that isn't of its epoch {epoch} and its model", board)
        capacity = Capacity.from_dict(status.get("capacity"))
        if capacity.board != board:
            raise BoardError(f"board {board} reports the capacity of {capacity.board}", board)
        return cls(
            board, capacity, epoch, plan, _addresses(status.get("addresses"), plan), status.get("claimed") is True,
            _shards(status.get("shards"), manifest), status,
        )  # fmt: skip


def standing_plan(reports: Mapping[str, Report]) -> Plan | None:
    """The newest plan that every board of it holds; None if there is none. Two plans of one epoch aren't mixed up."""
    plans = {r.plan.digest: r.plan for r in reports.values() if r.plan is not None}
    for plan in sorted(plans.values(), key=_age, reverse=True):
        if all(b in reports and reports[b].plan is not None and reports[b].plan.digest == plan.digest
               for b in plan.boards):  # fmt: skip
            return plan
    return None


def newest_plan(reports: Mapping[str, Report]) -> Plan | None:
    """The plan of the highest epoch that any board still holds a section of."""
    return max((r.plan for r in reports.values() if r.plan is not None), key=_age, default=None)


def _age(plan: Plan) -> tuple[int, str]:
    """Plans in the order in which they were made; of one epoch, in the same order for every manager."""
    return plan.epoch, plan.digest


class Fleet:
    """Connections to all boards that are known, kept while they live and made anew when asked. `addresses` grows by
    what boards report of others, unless `strangers` is false. With `shared_ram`, boards on loopback share this
    machine's RAM."""

    def __init__(
        self, manifest: Manifest, addresses: dict[str, tuple[str, int]], tls=None, *, shared_ram=True, strangers=True
    ):  # fmt: skip
        self.manifest, self.addresses, self._tls = manifest, dict(addresses), tls
        self._shared_ram, self._strangers = shared_ram, strangers
        self.reports: dict[str, Report] = {}
        self.missing: dict[str, str] = {}  # why a board has no report
        self._clients: dict[str, BoardClient] = {}

    async def __aenter__(self) -> "Fleet":
        return self

    async def __aexit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def clients(self, boards) -> list[BoardClient]:
        """The connections to these boards, all of which have a report."""
        return [self._clients[b] for b in boards]

    def drop(self, board: str) -> None:
        """Hang up on a board; the next survey dials it again."""
        client = self._clients.pop(board, None)
        if client is not None:
            client.close()
        self.reports.pop(board, None)

    async def survey(self, needed=None) -> None:
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
        client = self._clients.get(name)
        lost = name in self.missing or (client is not None and client.lost.done())
        timeout_s = _LOST_TIMEOUT_S if lost else _REACH_TIMEOUT_S
        if client is None or client.lost.done():
            self.drop(name)
            client = BoardClient(name, *self.addresses[name], self._tls)
            try:
                await client.connect(timeout_s)
            except BaseException:
                client.close()
                raise
            self._clients[name] = client
        try:
            return Report.parse(name, await client.status(timeout_s), self.manifest)
        except BoardError:
            self.drop(name)
            raise

    def _share_ram(self) -> None:
        """Boards that are processes on this machine can't each have all of its RAM."""
        here = [n for n in self.reports if is_loopback(self.addresses[n][0])]
        if self._shared_ram and len(here) > 1:
            import psutil

            part_bytes = psutil.virtual_memory().available // len(here)
            for name in here:
                report = self.reports[name]
                ram_bytes = min(report.capacity.ram_bytes, part_bytes)
                self.reports[name] = replace(report, capacity=replace(report.capacity, ram_bytes=ram_bytes))


def _addresses(content, plan: Plan | None) -> dict[str, tuple[str, int]]:
    """Where a board says that the boards of its plan are; what isn't well-formed is left out."""
    found = {}
    for board in plan.boards if plan is not None and isinstance(content, dict) else ():
        match content.get(board):
            case [str(host), port] if is_host(host) and type(port) is int and 0 < port < 1 << 16:
                found[board] = (host, port)
    return found


def _shards(content, manifest: Manifest) -> frozenset[str]:
    """Names of the shards that a board says it has."""
    names = set()
    with contextlib.suppress(KeyError, TypeError, ValueError):
        for start, end in content["layers"][: manifest.num_layers]:
            names |= {manifest.layer(i).name for i in range(max(0, start), min(end, manifest.num_layers))}
    with contextlib.suppress(KeyError, TypeError):
        names |= {manifest.embedding.name} if content["embedding"] is True else set()
        names |= {manifest.head.name} if content["head"] is True else set()
    return frozenset(names)
