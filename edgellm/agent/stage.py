"""This board's stage of a running plan: sequences come in, hidden states go to the next board, tokens close the loop.

All of it runs in the event loop; the engine's thread calls only what says so. Its parts have files of their own: who
gets a slot (admission.py, opening.py), the first board's (feeder.py), the last board's (chooser.py), and what passes
between boards (passing.py). Messages have passed checks.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from collections.abc import Sequence as Sequence_
from typing import Any

import numpy as np

from edgellm.agent import report
from edgellm.agent.admission import Ended, Granting, Taking
from edgellm.agent.chooser import Chooser
from edgellm.agent.constraint import Grammars
from edgellm.agent.drafters import Drafter
from edgellm.agent.drafting import Drafting
from edgellm.agent.engine import Engine
from edgellm.agent.feeder import Feeder
from edgellm.agent.link import Link, Links
from edgellm.agent.mtp import mtp_drafter
from edgellm.agent.opening import Opening
from edgellm.agent.pace import SectionPace
from edgellm.agent.passing import Computed, Passing
from edgellm.agent.prefix_cache import Prefixes
from edgellm.agent.sequence import Sequence
from edgellm.agent.steps import Outcome, Step
from edgellm.agent.trace import Traces
from edgellm.agent.turns import Turns
from edgellm.agent.watch import Watch
from edgellm.errors import BusyError, UsageError
from edgellm.model.protocols import Section, Slot
from edgellm.plan import Plan, Swapping
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address
from edgellm.wire.peer import Peer
from edgellm.wire.status import SequenceStats

log = logging.getLogger(__name__)
_SWEEP_S = 0.5


class Stage:
    """`section` with its KV `slots` under `plan` on board `board`. `addresses` gives (host, port) by board, and
    `links` is what it reaches them with. `hidden_from` and `tokens_from` name the boards that may send those; None:
    nobody. `prefixes` are the pages of prompts that its slots are filled from and kept in; None: there are none. It
    computes in turns with the board's other stages that have the same `turns`. With `forgets`, a slot of some board of
    the plan can't go back to every position that it holds. `waits` is how it swaps experts that don't fit into RAM. The
    last stage drafts with `drafters`, with a head that the model brings, and from the text.
    """

    def __init__(
        self, plan: Plan, board: str, addresses: dict[str, Address], section: Section[Any], slots: list[Slot],
        rope_switch_len: int | None = None, *, links: Links, forgets: bool = False, pace: SectionPace | None = None,
        grammars: Grammars | None = None, prefixes: Prefixes | None = None, turns: Turns | None = None,
        waits: Swapping | None = None, drafters: Sequence_[Drafter] = (),
    ):  # fmt: skip
        self.waits = waits
        self.pace, self.forgets = pace, forgets
        self.plan, self.board, self.section, self.addresses = plan, board, section, addresses
        self.epoch = plan.epoch
        own = plan.section_of(board)
        self.is_first, self.is_last = own.start == 0, own.end == plan.num_layers
        self.hidden_from = None if self.is_first else plan.boards[plan.stage_of(board) - 1]
        self.tokens_from = plan.boards[-1] if self.is_first else None
        self.loop = asyncio.get_running_loop()
        self.rope_switch_len = rope_switch_len
        self._sequences: dict[int, Sequence] = {}

        def link_to(other: str) -> Link:
            return links.to(other, addresses[other], lambda board, reason: self._fail_all("link", reason, board))

        after = plan.next_board(board)
        self._next = link_to(after) if after is not None else None  # takes hidden states
        self._first = link_to(plan.boards[0]) if self.is_last and not self.is_first else None  # takes tokens
        turns = turns or Turns()
        self.drafting: Drafting | None = None
        head = mtp_drafter(section, slots) if self.is_last else None
        if self.is_last:
            drafters = (*drafters, head) if head else drafters
            self.drafting = Drafting(drafters, turns.mine, lambda: self.engine.queued, self.soon)
        self._chooser, self._traces, self._ended = Chooser(self, self._first, grammars), Traces(self), Ended()
        self._opening, self.feeder, self.passing = Opening(self, prefixes), Feeder(self), Passing(self, self._next)
        self._door: Granting | Taking = Granting(self) if self.is_first else Taking(self)
        groups = len(plan.boards) if self.is_first else 0
        deliver = self._chooser.deliver if self.is_last else self.computed_soon
        self.engine = Engine(
            section, slots, deliver, lambda: self.passing.congested, groups, plan.chunk,
            freed=lambda: self.soon(self._serve), died=lambda error: self.soon(self._engine_died, error),
            left=self._opening.keep, passes=self._opening.keep_checkpoint, pace=pace, turns=turns, cuts=forgets,
            drafter=head,
        )  # fmt: skip
        self._stopped = False
        self._watch = Watch(self, _SWEEP_S)
        self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)

    @property
    def running(self) -> int:
        """How many sequences hold a slot."""
        return len(self._sequences)

    @property
    def most_drafts(self) -> int:
        """How many drafts a step may have, so that those of all sequences together stay as small as one may be."""
        return max(0, m.MAX_CHOICES // max(1, self.running) - 1)

    @property
    def watched_s(self) -> float:
        """Seconds on a clock that stands while this process does."""
        return self._watch.watched_s

    @property
    def link_sent_bytes(self) -> int:
        """Bytes sent to other boards so far."""
        return sum(link.sent_bytes for link in self._links)

    def drain(self, reason: str) -> None:
        """Let the sequences that have a slot go on to their end; whoever waits for one is told `reason`."""
        self.turn_away("epoch", reason)

    def stop(self, reason: str, code: str = "epoch") -> None:
        """End every sequence with `reason`, hang up, and have the engine end after its running step."""
        self._stopped = True
        self._sweeping.cancel()
        self.turn_away(code, reason)
        self._fail_all(code, reason)
        self.passing.relieve(all_of_them=True)
        for link in self._links:
            link.close()
        if self.drafting is not None:
            self.drafting.stop()
        self.engine.stop()

    def join(self) -> None:
        """Wait until nothing is computed here any more. Takes as long as a step: not for an event loop."""
        self.engine.join()
        if self.drafting is not None:
            self.drafting.join()

    def holds(self, sequence: Sequence) -> bool:
        """Return whether a sequence still has its slot here."""
        return self._sequences.get(sequence.seq_id) is sequence

    def let_go(self) -> None:
        """Release the section, because the next one may need its memory. The engine must have ended."""
        del self.section

    # From a manager

    def open(self, sequence: Sequence) -> None:
        """Give the sequence a slot and answer `opened`, now or when it is its turn; on the first board the slot is
        chosen, on the others it is told. Raises BusyError if there is none and it may not wait, or the sequence is
        open already."""
        if sequence.seq_id in self._sequences or sequence.seq_id in self._door:
            raise BusyError(f"sequence {sequence.seq_id:x} is open here already")
        self._door.ask(sequence)

    def start(self, peer: Peer, message: m.Start) -> None:
        """Begin with the prompt of an open sequence. Starting it again changes nothing."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is None or sequence.owner is not peer or sequence.started:
            return
        if message.reuse > sequence.reused:
            reason = f"a start at position {message.reuse}; the slot holds {sequence.reused} tokens"
            self.fail(sequence, "error", reason)
            return
        sequence.used = True
        if sequence.restoring:
            sequence.start = message
        else:
            self.feeder.begin(sequence, message)

    def trace(self, peer: Peer, message: m.Trace, x: np.ndarray) -> None:
        """Queue a piece of a trace, which is answered by one `traced` a layer. Raises UsageError for a sequence that
        isn't open for one."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is None or sequence.owner is not peer or sequence.started:
            raise UsageError(f"trace of sequence {message.seq_id:x}, which isn't open for it")
        self._traces.begin(sequence, message, x)

    def close(self, peer: Peer, message: m.Close) -> None:
        """Free the slot and answer `closed` with what was done; for an unknown sequence, with nothing."""
        seq_id = message.seq_id
        sequence = self._sequences.get(seq_id)
        if sequence is not None and sequence.owner is not peer:
            return
        self._door.forget(peer, seq_id)
        stats = self._ended.take(peer, seq_id) if sequence is None else self._drop(seq_id)
        peer.send(m.Closed(self.epoch, seq_id, {} if stats is None else stats.to_dict()))

    def has_owner(self, peer: Peer) -> bool:
        """Return whether a manager has sequences here, or in line."""
        return any(s.owner is peer for s in self._sequences.values()) or self._door.has_owner(peer)

    def manager_lost(self, peer: Peer) -> None:
        """Free what the manager's sequences hold here."""
        self._door.forget(peer)
        self._ended.forget(peer)
        for sequence in [s for s in self._sequences.values() if s.owner is peer]:
            log.info("sequence %x dropped: its manager is gone", sequence.seq_id)
            self._drop(sequence.seq_id)

    def turn_away(self, code: str, reason: str) -> None:
        """Refuse the sequences that wait for a slot, because no more are taken."""
        self._door.turn_away(code, reason)

    # From whoever decides about slots (admission.py)

    def admit(self, sequence: Sequence) -> None:
        """Open a sequence, for which a slot is free."""
        self._opening.take_slot(sequence, self._ended.slots)
        self._ended.taken(sequence.slot)
        self._sequences[sequence.seq_id] = sequence
        if self.is_last:
            self._chooser.constrain(sequence)
        for link in self._links:
            link.ensure()
        self._opening.begin(sequence)

    def refuse(self, sequence: Sequence, code: str, reason: str) -> None:
        """Tell a sequence's manager why it gets no slot."""
        sequence.owner.send(m.Failed(self.epoch, sequence.seq_id, m.FAILURES.index(code), reason))

    def end(self, seq_id: int) -> None:
        """Free the slot of a sequence whose answer has ended; what was done for it waits for its Close."""
        sequence = self._sequences[seq_id]
        stats = self._drop(seq_id)
        if stats is not None:
            self._ended.add(sequence, stats)

    def evict(self, seq_id: int) -> None:
        """End a sequence whose slot the first board has given to another. Its manager is told, in case that it still
        waits for an answer."""
        sequence = self._sequences[seq_id]
        self.end(seq_id)
        log.info("sequence %x has ended: its slot %d belongs to another", seq_id, sequence.slot)
        self.refuse(sequence, "epoch", f"slot {sequence.slot} was given to another sequence")

    # From other boards

    def hidden(self, peer: Peer, message: m.Hidden) -> None:
        """Queue a step. One of a sequence that isn't open here, because it was cancelled, is dropped."""
        self.passing.hidden(peer, message)

    def tokens(self, message: m.Tokens) -> None:
        """Continue with tokens that the last board has chosen, or end the sequence."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is None:
            return
        if message.finish:
            self.end(message.seq_id)  # the slot is free for the next one, whenever the manager closes
        else:
            self.feeder.tokens(sequence, message)

    # For the parts of a stage

    def soon(self, function: Callable[..., None], *args: object) -> None:
        """Have the event loop call a function, from any thread; nobody does once the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *args)

    def submit(self, step: Step) -> None:
        """Queue a step; one that can't be fails its sequence."""
        try:
            self.engine.submit(step)
        except ValueError as e:
            if step.seq_id in self._sequences:
                self.fail(self._sequences[step.seq_id], "error", str(e))

    def fail(self, sequence: Sequence, code: str, reason: str, board: str = "") -> None:
        """End a sequence, and tell its manager why."""
        self._drop(sequence.seq_id)
        log.warning("sequence %x failed: %s", sequence.seq_id, reason)
        sequence.owner.send(m.Failed(self.epoch, sequence.seq_id, m.FAILURES.index(code), reason, board))

    def is_long(self, pass_len: int) -> bool:
        """Return whether a pass of this length has the long rotary factors (LongRoPE)."""
        return self.rope_switch_len is not None and pass_len > self.rope_switch_len

    def sequence_of(self, seq_id: int) -> Sequence | None:
        """Return the open sequence of this number."""
        return self._sequences.get(seq_id)

    def pools(self, seq_id: int) -> bool:
        """Return whether an embedding is made here of a sequence's steps."""
        sequence = self._sequences.get(seq_id)
        return self.is_last and sequence is not None and bool(sequence.pool)

    # From other threads

    def computed_soon(self, outcomes: list[Outcome]) -> None:
        """Have the loop take outcomes, with what was chosen from them. Called in any thread."""
        self.soon(self._computed, outcomes)

    def fail_soon(self, sequence: Sequence, error: Exception) -> None:
        """Have the loop end a sequence, if it is still open."""

        def fail() -> None:
            if self.holds(sequence):
                self.fail(sequence, *_told(error))

        self.soon(fail)

    # Inside

    def _serve(self) -> None:
        if not self._stopped:
            self._door.serve()

    @property
    def _links(self) -> list[Link]:
        return [link for link in (self._next, self._first) if link is not None]

    def _computed(self, outcomes: list[Outcome]) -> None:
        self.passing.relieve()
        computed: list[Computed] = []  # what goes to the next board
        for outcome in outcomes:
            step, result, sequence = outcome.step, outcome.result, self._sequences.get(outcome.step.seq_id)
            if sequence is None:
                continue
            if outcome.error is not None:
                self.fail(sequence, *_told(outcome.error))
            elif result is None:
                self._chooser.speculation(sequence, step)  # a chunk in mid-prompt
                self._chooser.prefilled(sequence, step.end, self.loop.time())
            elif step.trace:
                self._traces.send(sequence, result)
            elif step.pool:
                self._chooser.pooled(sequence, step, result)
            elif not self.is_last:
                computed.append((sequence, step, result))
            else:
                self._chooser.chosen(sequence, outcome)
        self.passing.push(computed)

    def _drop(self, seq_id: int) -> SequenceStats | None:
        """Free what a sequence holds here; return what was done for it, or None if it isn't open."""
        sequence = self._sequences.pop(seq_id, None)
        stats = self.engine.close(seq_id)
        if self.drafting is not None:
            self.drafting.forget(seq_id)
        self.passing.relieve()
        if sequence is not None and sequence.matching is not None:
            sequence.matching.close()
        if sequence is None or stats is None:
            return None
        return report.sequence_stats(sequence, stats, self.section.path, self.waits)

    def _fail_all(self, code: str, reason: str, board: str = "") -> None:
        for sequence in list(self._sequences.values()):
            self.fail(sequence, code, reason, board)

    def _engine_died(self, error: Exception) -> None:
        reason = f"board {self.board} can't compute any more ({type(error).__name__}: {error}) and has to be restarted"
        self.turn_away("draining", reason)
        self._fail_all("draining", reason)

    def _sweep(self) -> None:
        """Notice what nobody else would: waits that are over, slots that nobody uses, steps that were lost."""
        self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)
        now_s = self.loop.time()
        self._door.sweep(now_s)
        self._watch.look(now_s, list(self._sequences.values()))


def _told(error: Exception) -> tuple[str, str]:
    """Return the code of a failure, and what a manager is told of it."""
    if isinstance(error, BusyError):
        return "busy", str(error)
    return "error", str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
