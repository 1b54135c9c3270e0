"""Notices what nobody else would: slots that nobody uses, and steps that were lost."""

from typing import TYPE_CHECKING

from edgellm.agent.sequence import Sequence
from edgellm.config import STALL_TIMEOUT_S, START_TIMEOUT_S

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage


class Watch:
    """Looks after the sequences of `stage`, the first of its plan; `every_s` is how often."""

    def __init__(self, stage: "Stage", every_s: float):
        self._stage, self._every_s = stage, every_s
        self._looked_s = stage.loop.time()
        self.watched_s = 0.0  # a clock that stands while this process does, because nothing arrives then

    def look(self, now_s: float, sequences: list[Sequence]) -> None:
        """End sequences that nobody uses, and those of which a step was lost."""
        self.watched_s += min(now_s - self._looked_s, 2 * self._every_s)
        self._looked_s = now_s
        stage = self._stage
        for sequence in sequences if stage.is_first else ():
            if not sequence.used and now_s - sequence.opened_s > START_TIMEOUT_S:
                reason = f"a slot was held for {START_TIMEOUT_S:g} s without a start or a trace"
                stage.fail(sequence, "error", reason)
            if not sequence.started:
                continue
            seq_id, known = sequence.seq_id, len(sequence.ids)
            computed, busy = stage.engine.steps_of(seq_id), stage.engine.has_work(seq_id)
            if sequence.progress.is_stuck(self.watched_s, known, computed, busy):
                reason = f"no token came back to board {stage.board} for {STALL_TIMEOUT_S:g} s: a step was lost"
                stage.fail(sequence, "link", reason)
