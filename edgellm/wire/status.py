"""What boards report about themselves and about a sequence: agents build it, managers parse it where it enters.

A report is hostile until parsed. A board of another version, or a broken one, must still be shown and diagnosed, so
`from_dict` raises nothing: a field that isn't well-formed is None, and `faults` says why where a plan depends on it.
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgellm.errors import DIAL_CODES, PlanError
from edgellm.plan.swap import Swapping
from edgellm.plan.types import BOARD_NAME, Capacity, Plan
from edgellm.wire import parsed
from edgellm.wire.addresses import Address, parse_address
from edgellm.wire.section_status import LoadError, SectionBeside, SectionLoading, SectionStatus, swapping_of

_MAX_EPOCH = (1 << 32) - 1
_MAX_RANGES = 4096  # of layers: no model has more
_MAX_LINKS = 64
_MAX_MORE = 16  # models
MAX_DAMAGED = 16  # names of damaged files in a report
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Health:
    """The board's condition. None: unknown."""

    temperature_c: float | None = None  # of the hottest zone
    throttled: bool | None = None  # the CPU is held below its speed now, by heat or voltage
    undervoltage: bool | None = None  # the supply is too weak now
    link_mbit: int | None = None  # what the network interface negotiated
    ram_total_bytes: int | None = None
    uptime_s: float | None = None

    @classmethod
    def from_dict(cls, content: object) -> "Health":
        """Parse JSON; what isn't well-formed is None."""
        said = parsed.object_of(content)
        return cls(
            temperature_c=parsed.number(said.get("temperature_c")),
            throttled=parsed.flag(said.get("throttled")),
            undervoltage=parsed.flag(said.get("undervoltage")),
            link_mbit=parsed.count(said.get("link_mbit")),
            ram_total_bytes=parsed.count(said.get("ram_total_bytes")),
            uptime_s=parsed.seconds(said.get("uptime_s")),
        )


@dataclass(frozen=True)
class Compute:
    """What a board computes with. `cores` are those that its threads are on; empty: the system places them."""

    threads: int | None = None
    cores: tuple[int, ...] | None = None
    kernels: str | None = None  # the instruction set in use
    path: str | None = None  # "generic" if all models are computed by generic sections; else each as it can be

    @classmethod
    def from_dict(cls, content: object) -> "Compute":
        """Parse JSON; what isn't well-formed is None."""
        said = parsed.object_of(content)
        return cls(
            parsed.count(said.get("threads")), parsed.cores(said.get("cores")), parsed.text(said.get("kernels")),
            parsed.text(said.get("path")),
        )  # fmt: skip


@dataclass(frozen=True)
class CacheStatus:
    """The pages of prompts that a board keeps on its disk, and in RAM. `hits` are sequences that took pages since the
    agent's start, and `restored_tokens` what these needn't compute, of which `ram_restored_tokens` came from RAM alone;
    bytes written to the disk are counted by days, UTC."""

    budget_bytes: int | None = None
    pages: int | None = None
    bytes: int | None = None
    hits: int | None = None
    restored_tokens: int | None = None
    written_today_bytes: int | None = None
    ram_budget_bytes: int | None = None
    ram_pages: int | None = None
    ram_bytes: int | None = None
    ram_restored_tokens: int | None = None

    @classmethod
    def from_dict(cls, content: object) -> "CacheStatus":
        """Parse JSON; what isn't well-formed is None."""
        said = parsed.object_of(content)
        return cls(**{name: parsed.count(said.get(name)) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class ShardsHere:
    """Which shard files of the right size lie on a board's disk; `layers` are ranges [start, end). `damaged` are names
    of files whose SHA-256 differs, which don't count: a few of them, if there are many."""

    embedding: bool = False
    layers: tuple[tuple[int, int], ...] = ()
    head: bool = False
    damaged: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, content: object) -> "ShardsHere":
        """Parse JSON; what follows the first malformed range is left out."""
        said, layers = parsed.object_of(content), []
        ranges = said.get("layers")
        for pair in ranges[:_MAX_RANGES] if isinstance(ranges, list) else ():
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)):
                break
            layers.append((pair[0], pair[1]))
        names = said.get("damaged")
        damaged = (parsed.text(name) for name in (names[:MAX_DAMAGED] if isinstance(names, list) else ()))
        return cls(
            said.get("embedding") is True, tuple(layers), said.get("head") is True, tuple(n for n in damaged if n)
        )

    def has(self, start: int, end: int, num_layers: int) -> bool:
        """Return whether all shards of the section [start, end) of a model are here."""
        ends = (start > 0 or self.embedding) and (end < num_layers or self.head)
        return ends and any(first <= start and end <= last for first, last in self.layers)


@dataclass(frozen=True)
class LinkStatus:
    """A board's connection to another one that it dials: `code` is "ok", "lost" (it ended), or one of DIAL_CODES (it
    could not be made), `reason` a part of a sentence, and `age_s` how long ago that was. `hop_s` is what a message and
    its answer take, halved."""

    code: str
    reason: str = ""
    hop_s: float | None = None
    age_s: float | None = None

    @property
    def broken(self) -> bool:
        """Whether the board could not be dialled."""
        return self.code in DIAL_CODES

    @classmethod
    def from_dict(cls, content: object) -> "LinkStatus | None":
        """Parse JSON; None for what isn't well-formed."""
        said = parsed.object_of(content)
        code, reason = said.get("code"), said.get("reason")
        if not isinstance(code, str) or code not in ("ok", "lost", *DIAL_CODES):
            return None
        hop_s, age_s = parsed.seconds(said.get("hop_s")), parsed.seconds(said.get("age_s"))
        return cls(code, parsed.reason(reason) or "", hop_s, age_s)


@dataclass(frozen=True)
class ModelHere:
    """A further model whose shards a board has, and what it offers for a section of it."""

    model: str
    manifest_sha256: str
    shards: ShardsHere
    capacity: Capacity

    @classmethod
    def from_dict(cls, board: str, content: object) -> "ModelHere | None":
        """Parse what `board` said; None if that is not well-formed."""
        said = parsed.object_of(content)
        model, sha256 = parsed.text(said.get("model")), said.get("manifest_sha256")
        try:
            capacity = Capacity.from_dict(said.get("capacity"))
        except PlanError:
            return None
        if model is None or capacity.board != board or not (isinstance(sha256, str) and _SHA256.match(sha256)):
            return None
        return cls(model, sha256, ShardsHere.from_dict(said.get("shards")), capacity)


@dataclass(frozen=True)
class BoardStatus:
    """A board's report (docs/wire.md, Status). None: missing, or not readable.

    `plan` is what it serves, None without a section, and `addresses` are those of its boards, as received. `committed`
    is the last plan that was committed here, with its tag, as JSON: whether to believe it is for wire/signed.py to say.
    `faults` are sentences, with "board NAME" in front, on what no agent would say of its plan, epoch or capacity.
    """

    name: str
    version: str | None = None
    model: str | None = None
    manifest_sha256: str | None = None
    draining: bool = False
    epoch: int | None = None  # of the last plan that was committed here
    claimed: bool = False  # a manager is changing its plan
    plan: Plan | None = None
    addresses: Mapping[str, Address] = field(default_factory=dict)
    shards: ShardsHere = field(default_factory=ShardsHere)
    disk_free_bytes: int | None = None
    health: Health = field(default_factory=Health)
    capacity: Capacity | None = None
    compute: Compute = field(default_factory=Compute)
    section: SectionStatus | None = None
    committed: Mapping[str, Any] | None = None
    draining_sequences: int = 0  # of an older plan, which go on to their end
    load_error: LoadError | None = None
    links: Mapping[str, LinkStatus] = field(default_factory=dict)
    cache: CacheStatus | None = None  # None: it keeps no pages
    more: tuple[ModelHere, ...] = ()  # models beside `model`, whose shards are here too
    beside: tuple[SectionBeside, ...] | None = None  # None: an earlier edgellm, which serves one model at a time
    loading: SectionLoading | None = None
    faults: tuple[str, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that a Status message carries."""
        content = asdict(self)
        del content["faults"]
        content["plan"] = None if self.plan is None else self.plan.to_dict()
        content["addresses"] = None if self.plan is None else dict(self.addresses)
        content["beside"] = None if self.beside is None else [entry.to_dict() for entry in self.beside]
        return content

    @property
    def sections(self) -> dict[str, tuple[Plan, SectionStatus]]:
        """What it serves, by the SHA-256 of each model's manifest: the plan, and the board's section."""
        found = {entry.plan.manifest_sha256: (entry.plan, entry.section) for entry in self.beside or ()}
        if self.plan is not None:
            found[self.plan.manifest_sha256] = self.plan, self.section or SectionStatus()
        return found

    def serves(self, plan: Plan) -> bool:
        """Return whether the board serves this plan, perhaps beside another model's."""
        held = self.sections.get(plan.manifest_sha256)
        return held is not None and held[0] == plan

    def of_model(self, manifest_sha256: str) -> "BoardStatus":
        """Return the same status with `shards` and `capacity` for that model, if the board has it, and with `plan` and
        `section` if it serves it: then these and `beside` change places. If not, they stay what they are, so they may
        be of another model."""
        said = self
        for here in self.more:
            if here.manifest_sha256 == manifest_sha256:
                said = replace(
                    self, model=here.model, manifest_sha256=manifest_sha256, shards=here.shards, capacity=here.capacity
                )
        own = next((entry for entry in self.beside or () if entry.plan.manifest_sha256 == manifest_sha256), None)
        if own is not None:
            others = [entry for entry in self.beside or () if entry is not own]
            if self.plan is not None:
                others.append(SectionBeside(self.plan, self.committed or {}, self.section or SectionStatus()))
            said = replace(said, plan=own.plan, section=own.section, committed=own.committed, beside=tuple(others))
        return said

    @classmethod
    def from_dict(cls, board: str, content: object) -> "BoardStatus":
        """Parse what `board` said. `name` is the one used here, no matter what the board calls itself."""
        said, faults = parsed.object_of(content), []
        plan = capacity = None
        try:
            if said.get("plan") is not None:
                plan = Plan.from_dict(said["plan"])
                plan.section_of(board)
        except PlanError as e:
            plan = None
            faults.append(f"board {board} reports an invalid plan: {e}")
        try:
            capacity = Capacity.from_dict(said.get("capacity"))
            if capacity.board != board:
                faults.append(f"board {board} reports the capacity of {capacity.board}")
                capacity = None
        except PlanError as e:
            faults.append(f"board {board} reports an invalid capacity: {e}")
        epoch = said.get("epoch")
        if epoch is not None and not (type(epoch) is int and 0 <= epoch <= _MAX_EPOCH):
            faults.append(f"board {board} reports {reprlib.repr(epoch)} as its epoch")
            epoch = None
        elif plan is not None and plan.epoch != epoch:
            faults.append(f"board {board} reports a plan that isn't of its epoch {epoch}")
        beside = None if said.get("beside") is None else _beside(board, plan, said["beside"], faults)
        told = parsed.object_of(said.get("addresses"))
        places = {b: parse_address(told.get(b)) for b in plan.boards} if plan is not None else {}
        sha256 = said.get("manifest_sha256")
        return cls(
            name=board,
            version=parsed.text(said.get("version")),
            model=parsed.text(said.get("model")),
            manifest_sha256=sha256 if isinstance(sha256, str) and _SHA256.match(sha256) else None,
            draining=said.get("draining") is True,
            epoch=epoch,
            claimed=said.get("claimed") is True,
            plan=plan,
            addresses={b: place for b, place in places.items() if place is not None},
            shards=ShardsHere.from_dict(said.get("shards")),
            disk_free_bytes=parsed.count(said.get("disk_free_bytes")),
            health=Health.from_dict(said.get("health")),
            capacity=capacity,
            compute=Compute.from_dict(said.get("compute")),
            section=None if said.get("section") is None else SectionStatus.from_dict(said["section"]),
            committed=said["committed"] if isinstance(said.get("committed"), dict) else None,
            draining_sequences=parsed.count(said.get("draining_sequences")) or 0,
            load_error=LoadError.from_dict(said.get("load_error")),
            links=_links(said.get("links")),
            cache=None if said.get("cache") is None else CacheStatus.from_dict(said["cache"]),
            more=_more(board, said.get("more")),
            beside=beside,
            loading=SectionLoading.from_dict(said.get("loading")),
            faults=tuple(faults),
        )


@dataclass(frozen=True)
class SequenceStats:
    """What one board did for one sequence (docs/wire.md, Closed). Seconds are computing time; steps that ran together
    share it."""

    path: str | None = None  # which code computed
    reused_tokens: int = 0  # of the prompt, that a slot held already
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_steps: int = 0
    decode_s: float = 0.0
    draft_tokens: int = 0  # in decode steps
    accepted_tokens: int = 0  # of these, as the last board knows
    sent_bytes: int = 0  # to other boards, in decode steps
    degraded: Swapping | None = None  # how its section swaps experts that don't fit into RAM

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that a Closed message carries."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: object) -> "SequenceStats | None":
        """Parse what a board said; None for an empty object, which is for a sequence that the board doesn't have. What
        isn't well-formed is 0."""
        said = parsed.object_of(content)
        if not said:
            return None
        return cls(
            path=parsed.text(said.get("path")),
            reused_tokens=parsed.count(said.get("reused_tokens")) or 0,
            prefill_tokens=parsed.count(said.get("prefill_tokens")) or 0,
            prefill_s=parsed.seconds(said.get("prefill_s")) or 0.0,
            decode_steps=parsed.count(said.get("decode_steps")) or 0,
            decode_s=parsed.seconds(said.get("decode_s")) or 0.0,
            draft_tokens=parsed.count(said.get("draft_tokens")) or 0,
            accepted_tokens=parsed.count(said.get("accepted_tokens")) or 0,
            sent_bytes=parsed.count(said.get("sent_bytes")) or 0,
            degraded=swapping_of(said.get("degraded")),
        )


def _links(value: object) -> dict[str, LinkStatus]:
    found = {}
    for board, told in list(parsed.object_of(value).items())[:_MAX_LINKS]:
        if BOARD_NAME.match(board) and (link := LinkStatus.from_dict(told)) is not None:
            found[board] = link
    return found


def _more(board: str, value: object) -> tuple[ModelHere, ...]:
    told = value[:_MAX_MORE] if isinstance(value, list) else []
    return tuple(here for entry in told if (here := ModelHere.from_dict(board, entry)) is not None)


def _beside(board: str, plan: Plan | None, value: object, faults: list[str]) -> tuple[SectionBeside, ...]:
    """Return the sections that a board serves beside that of `plan`; what is wrong with them is added to `faults`."""
    models, found = set() if plan is None else {plan.manifest_sha256}, []
    for entry in value[:_MAX_MORE] if isinstance(value, list) else []:
        try:
            one = SectionBeside.from_dict(board, entry)
        except PlanError as e:
            faults.append(f"board {board} reports an invalid plan: {e}")
            continue
        if one.plan.manifest_sha256 in models:
            faults.append(f"board {board} reports two plans of {one.plan.model}")
            continue
        models.add(one.plan.manifest_sha256)
        found.append(one)
    return tuple(found)
