"""The first board's part of an answer: queues its prompt, then each chosen token, with the drafts that came with it."""

from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

import numpy as np

from edgellm.agent.sequence import Sequence, agreed
from edgellm.agent.steps import Step
from edgellm.wire import messages as m

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage


class Feeder:
    """Feeds the sequences of `stage`, which is the first of its plan."""

    def __init__(self, stage: "Stage"):
        self._stage = stage

    def begin(self, sequence: Sequence, message: m.Start) -> None:
        """Begin with the prompt of a sequence."""
        sequence.started = True
        sequence.speculates = message.speculate and self._stage.engine.batches and not sequence.pool
        sequence.progress.begin(self._stage.watched_s, len(sequence.ids))
        begin = message.reuse
        if begin > sequence.reused:  # less was restored than expected, and a window may not go back so far elsewhere
            begin = 0 if self._stage.forgets else sequence.reused
        self.feed(sequence, begin)

    def tokens(self, sequence: Sequence, message: m.Tokens) -> None:
        """Continue with tokens that the last board has chosen. Repeated ones change nothing."""
        known, context = len(sequence.ids), self._stage.plan.context
        if message.position > known:
            reason = f"tokens for position {message.position}, expected position {known}"
            self._stage.fail(sequence, "error", reason)
            return
        fresh = message.ids[known - message.position :]
        if not fresh:
            return
        if known + len(fresh) > context:
            self._stage.fail(sequence, "error", f"{known + len(fresh)} tokens, a slot holds {context}")
            return
        sequence.ids += fresh
        crossed = not self._stage.is_long(known) and self._stage.is_long(len(sequence.ids))
        if crossed:
            self.feed(sequence, 0)
        else:
            self._go_on(sequence, known + agreed(sequence.drafts, fresh), message.drafts)

    def feed(self, sequence: Sequence, start: int) -> None:
        """Queue ids[start:]; a token is to be chosen after the last of them."""
        sequence.drafts = ()
        self._submit(sequence, start, sequence.ids[start:], 0 if sequence.pool else 1)

    def _go_on(self, sequence: Sequence, start: int, drafts: Ids[int]) -> None:
        """Queue ids[start:], the last token and those that a constraint has forced before it, and as many of `drafts`
        behind it as the step may have now."""
        stage, ids, sequence.drafts = self._stage, sequence.ids[start:], ()
        if sequence.speculates:
            known, context = len(sequence.ids), stage.plan.context
            most = sequence.most_drafts(known, context, stage.rope_switch_len, stage.running, len(ids))
            sequence.drafts = tuple(drafts[:most])
        self._submit(sequence, start, (*ids, *sequence.drafts), 1 + len(sequence.drafts))

    def _submit(self, sequence: Sequence, position: int, ids: Ids[int], logits: int) -> None:
        stage, x, end = self._stage, np.asarray(ids, dtype=np.int64), position + len(ids)
        pool, drafts = stage.pools(sequence.seq_id), stage.most_drafts if sequence.speculates else 0
        stage.submit(Step(
            sequence.seq_id, x, position, end, logits, ids, stage.is_long(end), pool=pool, drafts=drafts
        ))  # fmt: skip
