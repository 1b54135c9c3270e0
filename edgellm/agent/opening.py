"""Opens a sequence: gives it its slot, filled with what earlier sequences and pages have of its prompt."""

import logging
from typing import TYPE_CHECKING

from edgellm.agent.pages import PAGE_TOKENS
from edgellm.agent.prefix_cache import Prefixes
from edgellm.agent.sequence import Sequence
from edgellm.agent.slots import HeldSlot, ids_of
from edgellm.wire import messages as m

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage

log = logging.getLogger(__name__)


class Opening:
    """Opens the sequences of `stage`. `prefixes` are the pages that its slots are filled from and kept in; None: there
    are none."""

    def __init__(self, stage: "Stage", prefixes: Prefixes | None):
        self._stage, self.prefixes = stage, prefixes

    def take_slot(self, sequence: Sequence, avoid: set[int]) -> None:
        """Reserve a slot: on the first board the one that saves most, if possible none of `avoid`; on the others the
        one that the sequence says. Raises BusyError if it is taken."""
        stage = self._stage
        sequence.slot, sequence.reused = stage.engine.open(
            sequence.seq_id, sequence.ids, sequence.reuse, stage.is_long(len(sequence.ids)),
            number=None if stage.is_first else sequence.slot, avoid=avoid, cache=sequence.cache, keep=sequence.keep,
        )  # fmt: skip

    def begin(self, sequence: Sequence) -> None:
        """Fill the slot from pages, if that saves time, and answer `opened`: on the first board at once, on the others
        when it is done."""
        stage, promised = self._stage, self._restore(sequence)
        sequence.reused, sequence.checkpoints = stage.engine.begins(sequence.seq_id)
        if stage.is_first and promised > sequence.reused:  # if less is there at its start, it begins earlier
            sequence.reused, sequence.checkpoints = promised, () if stage.section.reuses_any else (promised,)
        if stage.is_first or not promised:
            self._opened(sequence)

    def keep(self, slot: HeldSlot) -> None:
        """Keep what a slot holds, now that its sequence has left it. Called in any thread."""
        if self.prefixes is not None:
            self.prefixes.save(slot, lambda: self._stage.engine.idle)

    def keep_checkpoint(self, slot: HeldSlot) -> None:
        """Keep what a slot remembers only here, in the middle of a prompt. Called by the engine's thread."""
        if self.prefixes is not None:
            self.prefixes.save_checkpoint(slot, lambda: self._stage.engine.idle)

    def _restore(self, sequence: Sequence) -> int:
        """Have the pages of its prompt put into the slot of a sequence, if that saves time; return how many tokens are
        to be there then, 0 if none are read."""
        stage, most = self._stage, min(sequence.reuse, len(sequence.ids) - 1)
        if self.prefixes is None or most <= sequence.reused:
            return 0
        ids, token_s = ids_of(sequence.ids[:most]), None if stage.pace is None else stage.pace.prompt_token_s()
        long = stage.is_long(len(sequence.ids))
        pages = self.prefixes.find(ids, most, sequence.reused, sequence.cache, long, token_s)
        if not pages:
            return 0
        slot, give_back = stage.engine.lend(sequence.seq_id, long)

        def done(tokens: int) -> None:
            if give_back():
                stage.soon(self._restored, sequence)

        sequence.restoring = True
        self.prefixes.restore(slot, ids, sequence.reused, pages, token_s, done)
        return len(pages) * PAGE_TOKENS

    def _restored(self, sequence: Sequence) -> None:
        """Go on with a sequence whose slot holds what pages had."""
        stage = self._stage
        if not stage.holds(sequence):
            return
        sequence.restoring = False
        sequence.reused, sequence.checkpoints = stage.engine.begins(sequence.seq_id)
        if not stage.is_first:
            self._opened(sequence)
        elif sequence.start is not None:
            stage.feeder.begin(sequence, sequence.start)

    def _opened(self, sequence: Sequence) -> None:
        stage, seq_id = self._stage, sequence.seq_id
        sequence.opened_s = stage.loop.time()
        sequence.owner.send(m.Opened(
            stage.epoch, seq_id, sequence.reused, stage.engine.batches, sequence.slot, sequence.checkpoints
        ))  # fmt: skip
        log.info(
            "%s asks: sequence %x in slot %d, %d tokens, %d of them held, epoch %d", sequence.owner.name, seq_id,
            sequence.slot, len(sequence.ids), sequence.reused, stage.epoch,
        )  # fmt: skip
