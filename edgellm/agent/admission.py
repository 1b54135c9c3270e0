"""Which sequence gets which slot, and when. The first board decides, in the order of its line; on the others a sequence
takes the slot of the same number, so that in it all boards hold the same."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.agent.door import Door
from edgellm.agent.sequence import Sequence
from edgellm.agent.slots import Ids, ids_of
from edgellm.config import SLOT_TIMEOUT_S
from edgellm.errors import BusyError
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer
from edgellm.wire.status import SequenceStats

if TYPE_CHECKING:
    from edgellm.agent.stage import Stage

log = logging.getLogger(__name__)
_MAX_ENDED = 256  # answers that their managers haven't closed yet
_ASLEEP_S = 3.0  # a sequence without a step for this long, while its slot is wanted, counts as ended


class _Line:
    """Sequences that wait on the board of `stage`. Their prompts are kept as arrays, which take a tenth of a list's
    memory."""

    def __init__(self, stage: "Stage"):
        self._stage = stage
        self._door = Door()
        self._waiting: dict[int, tuple[Sequence, Ids]] = {}

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._waiting

    def forget(self, owner: Peer, seq_id: int | None = None) -> None:
        """Take the sequences of `owner`, or this one, out of the line."""
        for sequence, _ in list(self._waiting.values()):
            if sequence.owner is owner and seq_id in (None, sequence.seq_id):
                self._leave(sequence.seq_id)
        self._moved()

    def has_owner(self, owner: Peer) -> bool:
        """Return whether a sequence of this manager waits."""
        return any(sequence.owner is owner for sequence, _ in self._waiting.values())

    def turn_away(self, code: str, reason: str) -> None:
        """Refuse all that wait."""
        for seq_id in list(self._waiting):
            self._stage.refuse(self._leave(seq_id), code, reason)

    def _enter(self, sequence: Sequence, wait_s: float) -> None:
        """Put a sequence at the end of the line. Raises BusyError if that is full."""
        deadline_s = self._stage.loop.time() + wait_s
        self._door.enter(sequence.seq_id, sequence.owner.identity, len(sequence.ids), deadline_s)
        self._waiting[sequence.seq_id] = sequence, ids_of(sequence.ids)
        sequence.ids = []

    def _leave(self, seq_id: int) -> Sequence:
        self._door.leave(seq_id)
        sequence, ids = self._waiting.pop(seq_id)
        sequence.ids = ids.tolist()
        return sequence

    def _admit(self, seq_id: int) -> None:
        sequence = self._leave(seq_id)
        try:
            self._stage.admit(sequence)
        except BusyError as e:
            self._stage.refuse(sequence, "busy", str(e))

    def _moved(self) -> None:
        """Tell those who want to know that they stand elsewhere in the line."""


class Granting(_Line):
    """The first board's side: a sequence gets the slot that saves most, or stands in line."""

    def ask(self, sequence: Sequence) -> None:
        """Admit the sequence now, or put it in line. Raises BusyError if it may not wait."""
        engine = self._stage.engine
        if engine.free_slots and not self._waiting:
            self._stage.admit(sequence)
            return
        if sequence.wait_s <= 0:
            raise BusyError(f"all {engine.num_slots} slots are taken; ask again when an answer has ended")
        self._enter(sequence, sequence.wait_s)
        self._moved()

    def serve(self) -> None:
        """Admit those who are next, while slots are free."""
        while self._stage.engine.free_slots and (seq_id := self._door.next()) is not None:
            self._admit(seq_id)
        self._moved()

    def sweep(self, now_s: float) -> None:
        """Refuse those that have waited for as long as they wanted to."""
        for seq_id in self._door.late(now_s):
            sequence = self._leave(seq_id)
            slots = self._stage.engine.num_slots
            self._stage.refuse(sequence, "busy", f"none of {slots} slots became free within {sequence.wait_s:g} s")
        self._moved()

    def _moved(self) -> None:
        for seq_id, position in self._door.moved():
            sequence, _ = self._waiting[seq_id]
            sequence.owner.send(m.Queued(self._stage.epoch, seq_id, position))


@dataclass
class _Holder:
    """Who has a slot that is wanted, how much had been computed for it, and since when that hasn't changed."""

    seq_id: int | None = None
    computed: int = 0
    quiet_since_s: float = 0.0


class Taking(_Line):
    """The side of the boards behind the first: a sequence takes the slot that the first board chose. If another still
    has it there, that one has ended: the Close of its manager is on the way, or its manager sleeps."""

    def __init__(self, stage: "Stage"):
        super().__init__(stage)
        self._holders: dict[int, _Holder] = {}  # by slot

    def ask(self, sequence: Sequence) -> None:
        """Admit the sequence now, or when its slot is free. Raises BusyError if too many wait."""
        self._enter(sequence, SLOT_TIMEOUT_S)
        self.serve()

    def serve(self) -> None:
        """Admit those whose slot is free, in order."""
        for seq_id, (sequence, _) in list(self._waiting.items()):
            if self._stage.engine.is_free(sequence.slot):
                self._admit(seq_id)

    def sweep(self, now_s: float) -> None:
        """End those that sleep in a slot which the first board has given to another, and refuse who waits in vain."""
        for seq_id in self._door.late(now_s):
            sequence = self._leave(seq_id)
            reason = f"slot {sequence.slot} is taken by another answer for over {SLOT_TIMEOUT_S:g} s"
            self._stage.refuse(sequence, "busy", reason)
        wanted = {sequence.slot for sequence, _ in self._waiting.values()}
        self._holders = {slot: self._holders.get(slot) or _Holder(quiet_since_s=now_s) for slot in wanted}
        for slot, before in self._holders.items():
            engine = self._stage.engine
            holder = engine.holder_of(slot)
            if holder is None:  # its running step is about to end
                continue
            computed = engine.steps_of(holder)
            if engine.has_work(holder) or (before.seq_id, before.computed) != (holder, computed):
                self._holders[slot] = _Holder(holder, computed, now_s)
            elif now_s - before.quiet_since_s >= _ASLEEP_S:
                self._stage.evict(holder)


@dataclass
class _Ended:
    owner: Peer
    slot: int | None  # None: another sequence has it by now
    stats: SequenceStats


class Ended:
    """Answers whose slots are free already, and what was done for them, until their managers close them."""

    def __init__(self) -> None:
        self._ended: dict[int, _Ended] = {}

    @property
    def slots(self) -> set[int]:
        """Slots that other boards may not have free yet."""
        return {ended.slot for ended in self._ended.values() if ended.slot is not None}

    def add(self, sequence: Sequence, stats: SequenceStats) -> None:
        """Keep what was done for a sequence; what was kept for longest goes if it is too much."""
        self._ended[sequence.seq_id] = _Ended(sequence.owner, sequence.slot, stats)
        while len(self._ended) > _MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def taken(self, slot: int) -> None:
        """Record that another sequence has a slot."""
        for ended in self._ended.values():
            if ended.slot == slot:
                ended.slot = None

    def take(self, owner: Peer, seq_id: int) -> SequenceStats | None:
        """Return and forget what was done for a sequence of this manager; None if it isn't here."""
        ended = self._ended.get(seq_id)
        if ended is None or ended.owner is not owner:
            return None
        del self._ended[seq_id]
        return ended.stats

    def forget(self, owner: Peer) -> None:
        """Forget what was done for a manager that is gone."""
        for seq_id in [seq_id for seq_id, ended in self._ended.items() if ended.owner is owner]:
            del self._ended[seq_id]
