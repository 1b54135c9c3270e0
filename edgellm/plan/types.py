"""The planner's values: what a board offers, what is asked for, and the plan. All are validated where they enter.

They come from files and from the wire as plain dicts and are hostile until parsed; PlanError names the field.
"""

import hashlib
import json
import re
import reprlib
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgellm import config
from edgellm.errors import PlanError
from edgellm.shards.slot_memory import KV_BYTES

BOARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
KV_DTYPES = tuple(KV_BYTES)
OBJECTIVES = ("latency", "throughput")
# Fields that JSON has only where they say something: boards that don't know them take every plan that needs none.
MAY_LACK: dict[str, Any] = {"swap_experts": False, "disk_bytes_per_s": None, "draft": None}

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MAX_BYTES = 1 << 50
_MAX_SECONDS = 3600
_MAX_LAYERS = 4096
_MAX_TOKENS = 1 << 24
_MAX_EPOCH = (1 << 32) - 1  # what a frame can carry


@dataclass(frozen=True)
class Capacity:
    """What a board's agent measured.

    `ram_bytes` is offered for weights, KV and activations (the agent's own runtime is already subtracted). Seconds:
    `layer_s` decodes one token through a layer of mean size, `head_s` through the head; `hop_s` is a hop out of this
    board. `batch_layer_s` is what each further token of a batch adds a layer, `prefill_layer_s` what a prompt token
    takes a layer in a chunk; None: not measured yet. `disk_bytes_per_s` is how fast it reads experts from its disk;
    None: not measured, as for a model without experts.
    """

    board: str
    ram_bytes: int
    layer_s: float
    head_s: float
    hop_s: float
    cores: int = 1
    batch_layer_s: float | None = None
    prefill_layer_s: float | None = None
    disk_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        _check_board(self.board, "capacity: board")
        what = f"capacity of {self.board}"
        _check_int(self.ram_bytes, 0, _MAX_BYTES, f"{what}: ram_bytes")
        for name in ("layer_s", "head_s", "hop_s"):
            _check_seconds(getattr(self, name), f"{what}: {name}")
        for name in ("batch_layer_s", "prefill_layer_s"):
            if getattr(self, name) is not None:
                _check_seconds(getattr(self, name), f"{what}: {name}")
        if self.layer_s == 0:
            raise PlanError(f"{what}: layer_s is 0, expected more. Let its agent measure again.")
        _check_int(self.cores, 1, 4096, f"{what}: cores")
        if self.disk_bytes_per_s is not None:
            _check_rate(self.disk_bytes_per_s, f"{what}: disk_bytes_per_s")

    def to_dict(self) -> dict[str, Any]:
        return _without_defaults(asdict(self))

    @classmethod
    def from_dict(cls, content: object) -> "Capacity":
        """Parse what an agent reports; raises PlanError naming the field."""
        return cls(**_exactly(cls, content, "capacity"))


@dataclass(frozen=True)
class Draft:
    """A small model that drafts, whole on the last board of a plan, and the RAM that it needs there: for its weights,
    for each slot, and to compute."""

    model: str
    manifest_sha256: str
    weights_bytes: int
    slot_bytes: int
    scratch_bytes: int

    def __post_init__(self) -> None:
        _check_model(self.model, self.manifest_sha256, "draft")
        for name in ("weights_bytes", "slot_bytes", "scratch_bytes"):
            _check_int(getattr(self, name), 0, _MAX_BYTES, f"draft: {name}")

    @classmethod
    def from_dict(cls, content: object) -> "Draft | None":
        """Parse JSON; None for null. Raises PlanError naming the field."""
        return None if content is None else cls(**_exactly(cls, content, "draft"))


@dataclass(frozen=True)
class Settings:
    """What the plan is to hold: `slots` sequences of up to `context` tokens, prefilled `chunk` tokens at a time, which
    are never more than `context`; and the model that drafts for them, if there is one. With `swap_experts`, a board may
    get a section whose experts don't fit into its RAM, if the model fits nowhere otherwise."""

    context: int
    slots: int = 1
    chunk: int = config.DEFAULT_CHUNK
    kv_dtype: str = "float32"
    objective: str = "latency"
    swap_experts: bool = False
    draft: Draft | None = None

    def __post_init__(self) -> None:
        _check_settings(self, "settings")
        # Boards keep room for a whole chunk, and no prompt has one that is longer than a slot.
        object.__setattr__(self, "chunk", min(self.chunk, self.context))

    def to_dict(self) -> dict[str, Any]:
        return _without_defaults(asdict(self))

    @classmethod
    def from_dict(cls, content: object) -> "Settings":
        """Parse JSON, in which `draft` may be left out; raises PlanError naming the field."""
        return cls(**_and_draft(_exactly(cls, content, "settings")))


@dataclass(frozen=True)
class Section:
    """Layers [start, end) on one board."""

    board: str
    start: int
    end: int

    def __post_init__(self) -> None:
        _check_board(self.board, "section: board")
        what = f"section of {self.board}"
        _check_int(self.start, 0, _MAX_LAYERS, f"{what}: start")
        _check_int(self.end, self.start + 1, _MAX_LAYERS, f"{what}: end")

    @property
    def num_layers(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"layers {self.start}-{self.end}"


@dataclass(frozen=True)
class Plan:
    """Sections → boards under an epoch. `sections` are in pipeline order, cover [0, num_layers) exactly once, and name
    each board at most once. The last one's board also holds the model that drafts, if there is one."""

    epoch: int
    model: str
    manifest_sha256: str
    num_layers: int
    objective: str
    context: int
    slots: int
    chunk: int
    kv_dtype: str
    sections: tuple[Section, ...]
    swap_experts: bool = False
    draft: Draft | None = None

    def __post_init__(self) -> None:
        _check_int(self.epoch, 0, _MAX_EPOCH, "plan: epoch")
        _check_model(self.model, self.manifest_sha256, "plan")
        _check_int(self.num_layers, 1, _MAX_LAYERS, "plan: num_layers")
        _check_settings(self, "plan")
        if not (isinstance(self.sections, tuple) and all(isinstance(s, Section) for s in self.sections)):
            raise PlanError("plan: sections is not a tuple of sections")
        reached = 0
        for section in self.sections:
            if section.start != reached:
                raise PlanError(f"plan: sections: {section.board} starts at layer {section.start}, expected {reached}")
            reached = section.end
        if reached != self.num_layers:
            raise PlanError(f"plan: sections: they end at layer {reached}, the model has {self.num_layers}")
        if len(set(self.boards)) != len(self.sections):
            raise PlanError("plan: sections: a board is named twice")

    @property
    def settings(self) -> Settings:
        return Settings(
            self.context, self.slots, self.chunk, self.kv_dtype, self.objective, self.swap_experts, self.draft
        )

    @property
    def boards(self) -> tuple[str, ...]:
        """The boards' names in pipeline order."""
        return tuple(s.board for s in self.sections)

    @property
    def digest(self) -> str:
        """16 hex digits that tell this plan from any other, also of the same epoch: SHA-256 of its JSON (sorted keys,
        no spaces)."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def stage_of(self, board: str) -> int:
        """Return the board's position in the pipeline. Raises PlanError if it has none."""
        for stage, section in enumerate(self.sections):
            if section.board == board:
                return stage
        raise PlanError(f"board {board} has no section in the plan of epoch {self.epoch} (it has {self.boards})")

    def section_of(self, board: str) -> Section:
        """Return the board's section. Raises PlanError if it has none."""
        return self.sections[self.stage_of(board)]

    def drafts_on(self, board: str) -> Draft | None:
        """Return the model that drafts on a board; None if none does."""
        return self.draft if self.boards[-1] == board else None

    def next_board(self, board: str) -> str | None:
        """Return where the board pushes its hidden states; None for the last one."""
        stage = self.stage_of(board) + 1
        return self.sections[stage].board if stage < len(self.sections) else None

    def to_dict(self) -> dict[str, Any]:
        return _without_defaults({**asdict(self), "sections": [asdict(s) for s in self.sections]})

    @classmethod
    def from_dict(cls, content: object) -> "Plan":
        """Parse a plan from JSON, in which `draft` may be left out; raises PlanError naming the field."""
        said = _and_draft(_exactly(cls, content, "plan"))
        if not (isinstance(said["sections"], list) and len(said["sections"]) <= _MAX_LAYERS):
            raise PlanError("plan: sections is not a list")
        sections = tuple(Section(**_exactly(Section, s, "plan: section")) for s in said["sections"])
        return cls(**{**said, "sections": sections})


def _check_settings(value: Settings | Plan, what: str) -> None:
    for name in ("context", "slots", "chunk"):
        _check_int(getattr(value, name), 1, _MAX_TOKENS, f"{what}: {name}")
    for name, allowed in (("kv_dtype", KV_DTYPES), ("objective", OBJECTIVES)):
        given = getattr(value, name)
        if not (isinstance(given, str) and given in allowed):
            raise PlanError(f"{what}: {name} is {reprlib.repr(given)}, expected {' or '.join(allowed)}")
    if not isinstance(value.swap_experts, bool):
        raise PlanError(f"{what}: swap_experts is {reprlib.repr(value.swap_experts)}, expected true or false")


def _check_model(name: object, sha256: object, what: str) -> None:
    if not (isinstance(name, str) and 0 < len(name) <= 256 and name.isprintable()):
        raise PlanError(f"{what}: model is {reprlib.repr(name)}, expected a printable name")
    if not (isinstance(sha256, str) and _SHA256.match(sha256)):
        raise PlanError(f"{what}: manifest_sha256 is {reprlib.repr(sha256)}, expected 64 hex digits")


def _and_draft(said: dict[str, Any]) -> dict[str, Any]:
    """Return what was said with its draft parsed."""
    return {**said, "draft": Draft.from_dict(said.get("draft"))}


def _check_board(value: object, what: str) -> None:
    if not (isinstance(value, str) and BOARD_NAME.match(value)):
        raise PlanError(f"{what} is {reprlib.repr(value)}, expected letters, digits, '.', '_' or '-', at most 63")


def _check_int(value: object, low: int, high: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise PlanError(f"{what} is {reprlib.repr(value)}, expected an integer from {low} to {high}")


def _check_seconds(value: object, what: str) -> None:
    # The comparison is false for NaN, and never turns a huge integer into a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_SECONDS:
        raise PlanError(f"{what} is {reprlib.repr(value)}, expected seconds from 0 to {_MAX_SECONDS}")


def _check_rate(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _MAX_BYTES:
        raise PlanError(f"{what} is {reprlib.repr(value)}, expected bytes a second from 1 to {_MAX_BYTES}")


def _without_defaults(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content without those of MAY_LACK that say what leaving them out says."""
    return {name: value for name, value in content.items() if not (name in MAY_LACK and value == MAY_LACK[name])}


def _exactly(cls: type[Any], content: object, what: str) -> dict[str, Any]:
    """Return `content` if it is a dict with exactly the fields of `cls`, but for those of MAY_LACK. Raises PlanError
    otherwise."""
    if not isinstance(content, dict):
        raise PlanError(f"{what} is {reprlib.repr(content)}, expected an object")
    expected = {f.name for f in fields(cls)}
    if missing := sorted(expected - content.keys() - MAY_LACK.keys()):
        raise PlanError(f"{what} lacks {', '.join(missing)}")
    if extra := sorted(str(k) for k in content.keys() - expected):
        raise PlanError(f"{what} has an unknown field {reprlib.repr(extra[0])}")
    return content
