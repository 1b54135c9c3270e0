"""Loads this board's sections, one at a time, and tells how far it is and what has failed."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgellm.agent.draft_model import DraftModel, load_draft_model
from edgellm.agent.models import Models
from edgellm.agent.threads import in_own_thread
from edgellm.errors import EdgellmError
from edgellm.model.protocols import Section, Slot
from edgellm.plan import Plan
from edgellm.shards.reading import watched
from edgellm.wire.section_status import LoadError, SectionLoading

log = logging.getLogger(__name__)
Load = Callable[..., Section[Any]]  # (manifest, folder, start, end), and swaps=True where experts don't fit into RAM


@dataclass(frozen=True)
class Loaded:
    """A section in memory, with its KV slots, and the model that drafts beside it, if there is one."""

    section: Section[Any]
    slots: list[Slot]
    draft_model: DraftModel | None = None


@dataclass
class _Work:
    """A section that is being loaded, since `began_s`."""

    plan: Plan
    start: int
    end: int
    total_bytes: int
    began_s: float
    read_bytes: int = 0  # counted by the loading thread alone

    def read(self, count: int) -> None:
        self.read_bytes += count


class Loading:
    """Loads sections for `board`."""

    def __init__(self, board: str):
        self._board = board
        self._work: _Work | None = None
        self._error: tuple[int, int, str, float] | None = None  # section, reason, when

    @property
    def status(self) -> SectionLoading | None:
        """The section that is being loaded; None if none is."""
        work = self._work
        if work is None:
            return None
        plan, age_s = work.plan, round(time.monotonic() - work.began_s, 1)
        read_bytes = min(work.read_bytes, work.total_bytes)
        return SectionLoading(plan.epoch, plan.model, work.start, work.end, read_bytes, work.total_bytes, age_s)

    @property
    def error(self) -> LoadError | None:
        """The last load that failed, unless that section was loaded since."""
        if self._error is None:
            return None
        start, end, reason, at_s = self._error
        return LoadError(start, end, reason, round(time.monotonic() - at_s, 1))

    async def fill(self, plan: Plan, models: Models, load: Load, swaps: bool = False) -> Loaded:
        """Return the board's section of a plan of one of `models`, loaded by `load`, with slots; and the plan's draft
        model, if it belongs here. With `swaps`, the section's experts don't all fit into RAM. Raises what `load`
        raises, and PlanError for a draft model that can't be this one's.
        """
        model = models.of(plan)
        own = plan.section_of(self._board)
        log.info("loads layers %d-%d of %s, epoch %d", own.start, own.end, plan.model, plan.epoch)
        draft = models.draft_of(plan, self._board)
        shards = [*model.manifest.section_shards(own.start, own.end), *(draft.manifest.shards if draft else ())]
        total_bytes = sum(shard.bytes for shard in shards)
        work = self._work = _Work(plan, own.start, own.end, total_bytes, time.monotonic())

        def fill() -> Loaded:
            with watched(work.read):
                how = {"swaps": True} if swaps else {}
                section = load(model.manifest, model.folder, own.start, own.end, **how)
                draft_model = None
                if draft is not None:
                    draft_model = load_draft_model(
                        plan, (model.manifest, model.folder), (draft.manifest, draft.folder), load
                    )
            slots = [section.new_slot(plan.context, plan.kv_dtype) for _ in range(plan.slots)]
            return Loaded(section, slots, draft_model)

        try:
            loaded = await in_own_thread(fill)
        except Exception as e:  # a model's code may raise anything
            reason = str(e) if isinstance(e, EdgellmError) else f"{type(e).__name__}: {e}"
            self._error = own.start, own.end, reason, time.monotonic()
            raise
        finally:
            self._work = None
        failed = self._error
        if failed is not None and own.start <= failed[0] and failed[1] <= own.end:
            self._error = None
        return loaded
