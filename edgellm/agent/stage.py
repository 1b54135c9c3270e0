"""This board's stage of a running plan: sequences come in, hidden states go to the next board, tokens close the loop.

All of it runs in the event loop; only `_deliver` and `_congested` are called by the engine's thread. Messages have
passed checks.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import replace
from typing import Any

import numpy as np

from edgellm.agent import report
from edgellm.agent.admission import Ended, Granting, Taking
from edgellm.agent.chooser import Chooser
from edgellm.agent.constraint import Grammars
from edgellm.agent.draft import Drafter
from edgellm.agent.engine import Engine
from edgellm.agent.link import Link, Links
from edgellm.agent.pace import SectionPace
from edgellm.agent.pages import PAGE_TOKENS
from edgellm.agent.prefix_cache import Prefixes
from edgellm.agent.sequence import Sequence, agreed
from edgellm.agent.slots import HeldSlot, ids_of
from edgellm.agent.steps import Outcome, Step
from edgellm.agent.trace import Traces
from edgellm.agent.turns import Turns
from edgellm.config import STALL_TIMEOUT_S, START_TIMEOUT_S
from edgellm.errors import BusyError, UsageError
from edgellm.model.protocols import Section, Slot
from edgellm.plan import Plan
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address
from edgellm.wire.peer import Peer
from edgellm.wire.status import SequenceStats

log = logging.getLogger(__name__)
_SWEEP_S = 0.5
_MAX_WAITING_BYTES = 64 << 20  # hidden states that may wait here before a board is made to send no more


class Stage:
    """`section` with its KV `slots` under `plan` on board `board`. `addresses` gives (host, port) by board, and
    `links` is what it reaches them with. `hidden_from` and `tokens_from` name the boards that may send those; None:
    nobody. `prefixes` are the pages of prompts that its slots are filled from and kept in; None: there are none. It
    computes in turns with the board's other stages that have the same `turns`.
    """

    def __init__(
        self, plan: Plan, board: str, addresses: dict[str, Address], section: Section[Any], slots: list[Slot],
        rope_switch_len: int | None = None, *, links: Links, pace: SectionPace | None = None,
        grammars: Grammars | None = None, prefixes: Prefixes | None = None, turns: Turns | None = None,
    ):  # fmt: skip
        self.pace, self._prefixes = pace, prefixes
        self.plan, self.board, self.section, self.addresses = plan, board, section, addresses
        self.epoch = plan.epoch
        own = plan.section_of(board)
        self.is_first, self.is_last = own.start == 0, own.end == plan.num_layers
        self.hidden_from = None if self.is_first else plan.boards[plan.stage_of(board) - 1]
        self.tokens_from = plan.boards[-1] if self.is_first else None
        self.loop = asyncio.get_running_loop()
        self._rope_switch_len = rope_switch_len
        self._sequences: dict[int, Sequence] = {}
        self._paused: set[Peer] = set()

        def link_to(other: str) -> Link:
            return links.to(other, addresses[other], lambda board, reason: self._fail_all("link", reason, board))

        after = plan.next_board(board)
        self._next = link_to(after) if after is not None else None  # takes hidden states
        self._first = link_to(plan.boards[0]) if self.is_last and not self.is_first else None  # takes tokens
        self._chooser, self._traces, self._ended = Chooser(self, self._first, grammars), Traces(self), Ended()
        self._door: Granting | Taking = Granting(self) if self.is_first else Taking(self)
        groups = len(plan.boards) if self.is_first else 0
        self.engine = Engine(
            section, slots, self._deliver, self._congested, groups, plan.chunk,
            freed=lambda: self._soon(self._serve), died=lambda error: self._soon(self._engine_died, error),
            left=self._left, pace=pace, turns=turns,
        )  # fmt: skip
        self._stopped = False
        self._swept_s = self.loop.time()
        self._watched_s = 0.0  # a clock that stands while this process does, because nothing arrives then
        self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)

    @property
    def running(self) -> int:
        """How many sequences hold a slot."""
        return len(self._sequences)

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
        self._relieve(all_of_them=True)
        for link in self._links:
            link.close()
        self.engine.stop()

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
            self._fail(sequence, "error", reason)
            return
        sequence.used = True
        if sequence.restoring:
            sequence.start = message
        else:
            self._begin(sequence, message)

    def _begin(self, sequence: Sequence, message: m.Start) -> None:
        sequence.started = True
        if message.speculate and self.engine.batches and not sequence.pool:
            sequence.drafter = Drafter(sequence.ids)
        sequence.progress.begin(self._watched_s, len(sequence.ids))
        self._feed(sequence, min(message.reuse, sequence.reused))

    def trace(self, peer: Peer, message: m.Trace, x: np.ndarray) -> None:
        """Queue a piece of a trace, which is answered by one `traced` a layer. Raises UsageError for a sequence that
        isn't open for one."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is None or sequence.owner is not peer or sequence.started:
            raise UsageError(f"trace of sequence {message.seq_id:x}, which isn't open for it")
        if sequence.traced is not None:
            raise UsageError(f"two pieces of a trace of sequence {message.seq_id:x} at once")
        sequence.traced, sequence.used = replace(message, data=b""), True
        long = self._is_long(message.pass_len)
        self._submit(Step(message.seq_id, x, message.position, message.pass_len, 0, (), long, trace=True))

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
        seq_id, ids = sequence.seq_id, sequence.ids
        number = None if self.is_first else sequence.slot
        sequence.slot, sequence.reused = self.engine.open(
            seq_id, ids, sequence.reuse, self._is_long(len(ids)), number=number, avoid=self._ended.slots,
            cache=sequence.cache, keep=sequence.keep,
        )  # fmt: skip
        self._ended.taken(sequence.slot)
        self._sequences[seq_id] = sequence
        if self.is_last:
            self._chooser.constrain(sequence)
        for link in self._links:
            link.ensure()
        promised = self._restore(sequence)
        if self.is_first:
            sequence.reused = max(promised, sequence.reused)  # and if less is there at its start, it begins earlier
        if self.is_first or not promised:
            self._opened(sequence)

    def _restore(self, sequence: Sequence) -> int:
        """Have the pages of its prompt put into the slot of a sequence, if that saves time; return how many tokens are
        to be there then, 0 if none are read."""
        most, long = min(sequence.reuse, len(sequence.ids) - 1), self._is_long(len(sequence.ids))
        if self._prefixes is None or most <= sequence.reused:
            return 0
        ids, token_s = ids_of(sequence.ids[:most]), None if self.pace is None else self.pace.prompt_token_s()
        pages = self._prefixes.find(ids, most, sequence.reused, sequence.cache, long, token_s)
        if not pages:
            return 0
        slot, give_back = self.engine.lend(sequence.seq_id, long)

        def done(tokens: int) -> None:
            if give_back():
                self._soon(self._restored, sequence, tokens)

        sequence.restoring = True
        self._prefixes.restore(slot, ids, sequence.reused, pages, token_s, done)
        return len(pages) * PAGE_TOKENS

    def _restored(self, sequence: Sequence, tokens: int) -> None:
        """Go on with a sequence whose slot holds so many tokens now."""
        if not self.holds(sequence):
            return
        sequence.restoring, sequence.reused = False, tokens
        if not self.is_first:
            self._opened(sequence)
        elif sequence.start is not None:
            self._begin(sequence, sequence.start)

    def _opened(self, sequence: Sequence) -> None:
        seq_id, ids = sequence.seq_id, sequence.ids
        sequence.opened_s = self.loop.time()
        sequence.owner.send(m.Opened(self.epoch, seq_id, sequence.reused, self.engine.batches, sequence.slot))
        log.info(
            "%s asks: sequence %x in slot %d, %d tokens, %d of them held, epoch %d", sequence.owner.name, seq_id,
            sequence.slot, len(ids), sequence.reused, self.epoch,
        )  # fmt: skip

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
        # Not copied: NumPy would let go of the GIL, and the engine begin without the steps that came along.
        x = np.frombuffer(message.data, "<f4").reshape(len(message.ids), -1).astype(np.float32, copy=False)
        long = self._is_long(message.pass_len)
        self._submit(Step(
            message.seq_id, x, message.position, message.pass_len, message.logits, message.ids, long,
            pool=self._pools(message.seq_id),
        ))  # fmt: skip
        if self.engine.waiting_bytes > _MAX_WAITING_BYTES and peer not in self._paused:
            self._paused.add(peer)
            peer.pause_reading()

    def tokens(self, message: m.Tokens) -> None:
        """Continue with tokens that the last board has chosen. Repeated ones change nothing."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is None:
            return
        if message.finish:
            self.end(message.seq_id)  # the slot is free for the next one, whenever the manager closes
            return
        known = len(sequence.ids)
        if message.position > known:
            self._fail(sequence, "error", f"tokens for position {message.position}, expected position {known}")
            return
        fresh = message.ids[known - message.position :]
        if not fresh:
            return
        if known + len(fresh) > self.plan.context:
            self._fail(sequence, "error", f"{known + len(fresh)} tokens, a slot holds {self.plan.context}")
            return
        sequence.ids += fresh
        crossed = not self._is_long(known) and self._is_long(len(sequence.ids))
        computed = agreed(sequence.drafts, fresh)
        if sequence.drafter is not None:
            sequence.drafter.learn(len(sequence.drafts), computed)
            sequence.drafter.extend(fresh)
        if crossed:
            self._feed(sequence, 0)
        else:
            self._go_on(sequence, known + computed)

    # From other threads

    def computed_soon(self, outcomes: list[Outcome]) -> None:
        """Have the loop take outcomes, with what was chosen from them."""
        self._soon(self._computed, outcomes)

    def fail_soon(self, sequence: Sequence, error: Exception) -> None:
        """Have the loop end a sequence, if it is still open."""

        def fail() -> None:
            if self.holds(sequence):
                self._fail(sequence, *_told(error))

        self._soon(fail)

    # Inside

    def _soon(self, function: Callable[..., None], *args: object) -> None:
        """Have the event loop call a function, from any thread; nobody does once the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *args)

    def _left(self, slot: HeldSlot) -> None:
        """Keep what a slot holds, now that its sequence has left it. Called in any thread."""
        if self._prefixes is not None:
            self._prefixes.save(slot, lambda: self.engine.idle)

    def _serve(self) -> None:
        if not self._stopped:
            self._door.serve()

    @property
    def _links(self) -> list[Link]:
        return [link for link in (self._next, self._first) if link is not None]

    def _is_long(self, pass_len: int) -> bool:
        """Return whether a pass of this length has the long rotary factors (LongRoPE)."""
        return self._rope_switch_len is not None and pass_len > self._rope_switch_len

    def _pools(self, seq_id: int) -> bool:
        """Return whether an embedding is made here of a sequence's steps."""
        sequence = self._sequences.get(seq_id)
        return self.is_last and sequence is not None and bool(sequence.pool)

    def _feed(self, sequence: Sequence, start: int) -> None:
        """Queue ids[start:]; a token is to be chosen after the last of them."""
        sequence.drafts = ()
        self._submit_ids(sequence, start, sequence.ids[start:], 0 if sequence.pool else 1)

    def _go_on(self, sequence: Sequence, start: int) -> None:
        """Queue ids[start:], the last token and those that a constraint has forced before it, and drafts behind it."""
        ids, sequence.drafts = sequence.ids[start:], ()
        if sequence.drafter is not None:
            most = sequence.most_drafts(self.plan.context, self._rope_switch_len, len(self._sequences), len(ids))
            sequence.drafts = sequence.drafter.propose(most)
        self._submit_ids(sequence, start, (*ids, *sequence.drafts), 1 + len(sequence.drafts))

    def _submit_ids(self, sequence: Sequence, position: int, ids: Ids[int], logits: int) -> None:
        x, end = np.asarray(ids, dtype=np.int64), position + len(ids)
        pool = self._pools(sequence.seq_id)
        self._submit(Step(sequence.seq_id, x, position, end, logits, ids, self._is_long(end), pool=pool))

    def _submit(self, step: Step) -> None:
        try:
            self.engine.submit(step)
        except ValueError as e:
            if step.seq_id in self._sequences:
                self._fail(self._sequences[step.seq_id], "error", str(e))

    def _congested(self) -> bool:
        return self._next is not None and self._next.congested

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """Choose tokens where there are logits, then hand them to the loop: each sequence's choice at once, so that the
        first board doesn't wait for the others'. Runs in the engine's thread."""
        if not self.is_last:
            self.loop.call_soon_threadsafe(self._computed, outcomes)
            return
        for outcome in outcomes:
            sequence = self._sequences.get(outcome.step.seq_id)
            if outcome.result is not None and sequence is not None and not outcome.step.alone:
                if sequence.matching is not None:  # the engine goes on meanwhile
                    self._chooser.choose_apart(sequence, outcome)
                    continue
                try:
                    self._chooser.choose(sequence, outcome)
                except Exception as e:  # NaN, or anything else: it ends this sequence
                    outcome.error = e
            self.loop.call_soon_threadsafe(self._computed, [outcome])

    def _relieve(self, all_of_them: bool = False) -> None:
        """Read again from paused boards, if enough of the waiting states are gone."""
        if self._paused and (all_of_them or self.engine.waiting_bytes <= _MAX_WAITING_BYTES // 2):
            for peer in self._paused:
                peer.resume_reading()
            self._paused.clear()

    def _computed(self, outcomes: list[Outcome]) -> None:
        self._relieve()
        computed: list[tuple[Sequence, Step, np.ndarray]] = []  # what goes to the next board
        for outcome in outcomes:
            step, result, sequence = outcome.step, outcome.result, self._sequences.get(outcome.step.seq_id)
            if sequence is None:
                continue
            if outcome.error is not None:
                self._fail(sequence, *_told(outcome.error))
            elif result is None:
                self._chooser.prefilled(sequence, step.end, self.loop.time())  # a chunk in mid-prompt
            elif step.trace:
                self._traces.send(sequence, result)
            elif step.pool:
                self._chooser.pooled(sequence, step, result)
            elif not self.is_last:
                computed.append((sequence, step, result))
            else:
                self._chooser.chosen(sequence, outcome)
        if computed and self._next is not None:
            self._push(self._next, computed)

    def _push(self, link: Link, computed: list[tuple[Sequence, Step, np.ndarray]]) -> None:
        """Send steps that ran together in one piece, so that they run together on the next board too."""
        before = link.sent_bytes
        link.send(*(
            m.Hidden(
                self.epoch, step.seq_id, step.position, step.pass_len, step.logits, tuple(step.ids),
                result.astype("<f4", copy=False).tobytes(),
            )
            for _, step, result in computed
        ))  # fmt: skip
        sent, tokens = link.sent_bytes - before, sum(len(step.x) for _, step, _ in computed)
        for sequence, step, _ in computed:
            if step.is_decode:
                sequence.sent_bytes += sent * len(step.x) // tokens

    def _drop(self, seq_id: int) -> SequenceStats | None:
        """Free what a sequence holds here; return what was done for it, or None if it isn't open."""
        sequence = self._sequences.pop(seq_id, None)
        stats = self.engine.close(seq_id)
        self._relieve()
        if sequence is not None and sequence.matching is not None:
            sequence.matching.close()
        if sequence is None or stats is None:
            return None
        return report.sequence_stats(sequence, stats, self.section.path)

    def _fail(self, sequence: Sequence, code: str, reason: str, board: str = "") -> None:
        self._drop(sequence.seq_id)
        log.warning("sequence %x failed: %s", sequence.seq_id, reason)
        sequence.owner.send(m.Failed(self.epoch, sequence.seq_id, m.FAILURES.index(code), reason, board))

    def _fail_all(self, code: str, reason: str, board: str = "") -> None:
        for sequence in list(self._sequences.values()):
            self._fail(sequence, code, reason, board)

    def _engine_died(self, error: Exception) -> None:
        reason = f"board {self.board} can't compute any more ({type(error).__name__}: {error}) and has to be restarted"
        self.turn_away("draining", reason)
        self._fail_all("draining", reason)

    def _sweep(self) -> None:
        """Notice what nobody else would: waits that are over, slots that nobody uses, steps that were lost."""
        self._sweeping = self.loop.call_later(_SWEEP_S, self._sweep)
        now_s = self.loop.time()
        self._watched_s += min(now_s - self._swept_s, 2 * _SWEEP_S)
        self._swept_s = now_s
        self._door.sweep(now_s)
        for sequence in list(self._sequences.values()) if self.is_first else ():
            if not sequence.used and now_s - sequence.opened_s > START_TIMEOUT_S:
                reason = f"a slot was held for {START_TIMEOUT_S:g} s without a start or a trace"
                self._fail(sequence, "error", reason)
            if not sequence.started:
                continue
            seq_id, known = sequence.seq_id, len(sequence.ids)
            computed, busy = self.engine.steps_of(seq_id), self.engine.has_work(seq_id)
            if sequence.progress.is_stuck(self._watched_s, known, computed, busy):
                reason = f"no token came back to board {self.board} for {STALL_TIMEOUT_S:g} s: a step was lost"
                self._fail(sequence, "link", reason)


def _told(error: Exception) -> tuple[str, str]:
    """Return the code of a failure, and what a manager is told of it."""
    if isinstance(error, BusyError):
        return "busy", str(error)
    return "error", str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
