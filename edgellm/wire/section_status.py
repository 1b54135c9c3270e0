"""What boards report about a section: one that they hold, one that is being loaded, one that could not be loaded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgellm.plan.swap import Swapping
from edgellm.plan.types import Plan
from edgellm.wire import parsed

_MAX_DRAFTERS = 8
OFF = 1.2  # times as long or as short, from which on a prediction counts as wrong


def swapping_of(content: object) -> Swapping | None:
    """Parse how a section swaps experts; None for what isn't well-formed."""
    said = parsed.object_of(content)
    experts, held, read = (parsed.count(said.get(name)) for name in ("expert_bytes", "held_bytes", "read_bytes"))
    rate, wait_s = (parsed.seconds(said.get(name)) for name in ("disk_bytes_per_s", "wait_s"))
    if experts is None or held is None or read is None or not rate or wait_s is None:
        return None
    return Swapping(experts, held, read, rate, said.get("assumed") is True, wait_s)


@dataclass(frozen=True)
class SectionStatus:
    """The section that a board holds, and what it has computed under this plan."""

    epoch: int | None = None
    start: int | None = None
    end: int | None = None
    path: str | None = None  # which code computes it
    slots: int | None = None
    free_slots: int | None = None
    steps: int | None = None
    sent_bytes: int | None = None  # to other boards
    decode_steps: int | None = None
    decode_s: float | None = None
    predicted_s: float | None = None  # of one token alone, when the plan was made
    token_s: float | None = None  # the same as the last steps tell
    ram_bytes: int | None = None  # that its weights, its slots and its scratch memory take
    degraded: Swapping | None = None  # how it swaps experts that don't fit into RAM
    draft_model: str | None = None  # that drafts here, on the last board
    drafts: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # by who made them: verified, accepted

    @classmethod
    def from_dict(cls, content: object) -> "SectionStatus":
        """Parse JSON; what isn't well-formed is None."""
        said = parsed.object_of(content)
        return cls(
            epoch=parsed.count(said.get("epoch")),
            start=parsed.count(said.get("start")),
            end=parsed.count(said.get("end")),
            path=parsed.text(said.get("path")),
            slots=parsed.count(said.get("slots")),
            free_slots=parsed.count(said.get("free_slots")),
            steps=parsed.count(said.get("steps")),
            sent_bytes=parsed.count(said.get("sent_bytes")),
            decode_steps=parsed.count(said.get("decode_steps")),
            decode_s=parsed.seconds(said.get("decode_s")),
            predicted_s=parsed.seconds(said.get("predicted_s")),
            token_s=parsed.seconds(said.get("token_s")),
            ram_bytes=parsed.count(said.get("ram_bytes")),
            degraded=swapping_of(said.get("degraded")),
            draft_model=parsed.text(said.get("draft_model")),
            drafts=_drafts(said.get("drafts")),
        )

    @property
    def is_off(self) -> bool:
        """Whether a token takes something else than the plan was made with: a fifth more, or less. Nobody
        knows that well how long it waits for a disk."""
        if not self.predicted_s or not self.token_s or self.degraded is not None:
            return False
        return max(self.token_s, self.predicted_s) > OFF * min(self.token_s, self.predicted_s)


@dataclass(frozen=True)
class SectionBeside:
    """A section that a board serves of another model than that of its last plan. `committed` is its plan as an admin
    signed it, as JSON: whether to believe it is for wire/signed.py to say."""

    plan: Plan
    committed: Mapping[str, Any]
    section: SectionStatus

    @classmethod
    def from_dict(cls, board: str, content: object) -> "SectionBeside":
        """Parse what `board` said. Raises PlanError for a plan that isn't well-formed, or has no section for it."""
        said = parsed.object_of(content)
        committed = parsed.object_of(said.get("committed"))
        plan = Plan.from_dict(committed.get("plan"))
        plan.section_of(board)
        return cls(plan, committed, SectionStatus.from_dict(said.get("section")))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of it in a Status."""
        return {"committed": dict(self.committed), "section": asdict(self.section)}


@dataclass(frozen=True)
class SectionLoading:
    """The section [start, end) that a board is loading for a plan of `epoch`: how many bytes of its shards it has read,
    of how many, and for how long it has been at it."""

    epoch: int
    model: str
    start: int
    end: int
    read_bytes: int
    total_bytes: int
    age_s: float | None = None

    @classmethod
    def from_dict(cls, content: object) -> "SectionLoading | None":
        """Parse JSON; None for what isn't well-formed."""
        said = parsed.object_of(content)
        model = parsed.text(said.get("model"))
        names = ("epoch", "start", "end", "read_bytes", "total_bytes")
        epoch, start, end, read_bytes, total_bytes = (parsed.count(said.get(name)) for name in names)
        if model is None or epoch is None or start is None or end is None or read_bytes is None or total_bytes is None:
            return None
        return cls(
            epoch, model, start, end, min(read_bytes, total_bytes), total_bytes, parsed.seconds(said.get("age_s"))
        )


@dataclass(frozen=True)
class LoadError:
    """The last load of a section [start, end) that failed, and how long ago."""

    start: int
    end: int
    reason: str
    age_s: float | None = None

    @classmethod
    def from_dict(cls, content: object) -> "LoadError | None":
        """Parse JSON; None for what isn't well-formed."""
        said = parsed.object_of(content)
        start, end = parsed.count(said.get("start")), parsed.count(said.get("end"))
        reason = parsed.reason(said.get("reason"))
        if start is None or end is None or reason is None:
            return None
        return cls(start, end, reason, parsed.seconds(said.get("age_s")))


def _drafts(value: object) -> dict[str, tuple[int, int]]:
    """Return how many drafts were verified and accepted, by who made them: of what is well-formed, and of a few."""
    found = {}
    for name, counts in list(parsed.object_of(value).items())[:_MAX_DRAFTERS]:
        if not (isinstance(counts, list | tuple) and len(counts) == 2):
            continue
        verified, accepted = (parsed.count(number) for number in counts)
        if (shown := parsed.text(name)) and verified is not None and accepted is not None:
            found[shown] = verified, accepted
    return found
