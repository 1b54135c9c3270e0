"""This board's stage of a running plan: sequences come in, hidden states go to the next board, tokens close the loop.

All of it runs in the event loop; only `_deliver` and `_congested` are called by the engine's thread. Messages have
passed checks.py.
"""

import asyncio
import logging
from collections.abc import Sequence as Ids
from typing import Any

import numpy as np

from edgellm.agent import report
from edgellm.agent.draft import Drafter
from edgellm.agent.engine import Engine
from edgellm.agent.link import Link
from edgellm.agent.sequence import Sequence, choose
from edgellm.agent.steps import Outcome, Step
from edgellm.model.protocols import Section, Slot
from edgellm.model.sampler import Sampler
from edgellm.plan import Plan
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.peer import Peer
from edgellm.wire.status import SequenceStats

log = logging.getLogger(__name__)
_MAX_WAITING_BYTES = 64 << 20  # hidden states that may wait here before a board is made to send no more


class Stage:
    """`section` with its KV `slots` under `plan` on board `board`. `addresses` gives (host, port) by board; `tls` is
    the credentials for dialling them. `hidden_from` and `tokens_from` name the boards that may send those; None:
    nobody.
    """

    def __init__(
        self, plan: Plan, board: str, addresses: dict[str, Address], section: Section[Any], slots: list[Slot],
        rope_switch_len: int | None = None, *, tls: Credentials | None = None,
    ):  # fmt: skip
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
        self._tasks: set[asyncio.Task] = set()

        def link_to(other: str) -> Link:
            return Link(other, *addresses[other], m.Hello("board", board), self._link_failed, tls=tls)

        after = plan.next_board(board)
        self._next = link_to(after) if after is not None else None  # takes hidden states
        self._first = link_to(plan.boards[0]) if self.is_last and not self.is_first else None  # takes tokens
        groups = len(plan.boards) if self.is_first else 0
        self.engine = Engine(section, slots, self._deliver, self._congested, groups, plan.chunk)

    @property
    def running(self) -> int:
        """How many sequences hold a slot."""
        return len(self._sequences)

    @property
    def link_sent_bytes(self) -> int:
        """Bytes sent to other boards so far."""
        return sum(link.sent_bytes for link in self._links)

    def stop(self, reason: str, code: str = "epoch") -> None:
        """End every sequence with `reason`, hang up, and have the engine end after its running step."""
        for sequence in list(self._sequences.values()):
            self._fail(sequence, code, reason)
        self._relieve(all_of_them=True)
        for link in self._links:
            link.close()
        self.engine.stop()

    def let_go(self) -> None:
        """Release the section, because the next one may need its memory. The engine must have ended."""
        del self.section

    # From a manager

    def open(self, sequence: Sequence) -> None:
        """Reserve a slot and answer `opened`; on the first board, start with the prompt. Raises BusyError if no slot is
        free, or the sequence is open already."""
        seq_id, ids = sequence.seq_id, sequence.ids
        reused = self.engine.open(seq_id, ids, sequence.reuse, self._is_long(len(ids)))
        self._sequences[seq_id] = sequence
        for link in self._links:
            link.ensure()
        sequence.owner.send(m.Opened(self.epoch, seq_id, reused, self.engine.batches))
        log.info("sequence %x opened, %d tokens, %d of them held, epoch %d", seq_id, len(ids), reused, self.epoch)
        if self.is_first:
            self._feed(sequence, reused)
            if sequence.speculate and self.engine.batches:
                sequence.drafter = Drafter(ids)

    def close(self, peer: Peer, message: m.Close) -> None:
        """Free the slot and answer `closed` with what was done; for an unknown sequence, with nothing."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is not None and sequence.owner is not peer:
            return
        stats = self._drop(message.seq_id)
        peer.send(m.Closed(self.epoch, message.seq_id, {} if stats is None else stats.to_dict()))

    def manager_lost(self, peer: Peer) -> None:
        """Free what the manager's sequences hold here."""
        for sequence in [s for s in self._sequences.values() if s.owner is peer]:
            log.info("sequence %x dropped: its manager is gone", sequence.seq_id)
            self._drop(sequence.seq_id)
        self.engine.forget_jobs(peer)

    # From other boards

    def hidden(self, peer: Peer, message: m.Hidden) -> None:
        """Queue a step. One of a sequence that isn't open here, because it was cancelled, is dropped."""
        # Not copied: NumPy would let go of the GIL, and the engine begin without the steps that came along.
        x = np.frombuffer(message.data, "<f4").reshape(len(message.ids), -1).astype(np.float32, copy=False)
        self._submit(message.seq_id, x, message.position, message.pass_len, message.logits, message.ids)
        if self.engine.waiting_bytes > _MAX_WAITING_BYTES and peer not in self._paused:
            self._paused.add(peer)
            peer.pause_reading()

    def tokens(self, message: m.Tokens) -> None:
        """Continue with tokens that the last board has chosen. Repeated ones change nothing."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is None:
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
        if sequence.drafter is not None:
            sequence.drafter.learn(len(sequence.drafts), len(fresh) - 1)
            sequence.drafter.extend(fresh)
        if crossed:
            self._feed(sequence, 0)
        else:
            self._go_on(sequence)

    # Inside

    @property
    def _links(self) -> list[Link]:
        return [link for link in (self._next, self._first) if link is not None]

    def _is_long(self, pass_len: int) -> bool:
        """Return whether a pass of this length has the long rotary factors (LongRoPE)."""
        return self._rope_switch_len is not None and pass_len > self._rope_switch_len

    def _feed(self, sequence: Sequence, start: int) -> None:
        """Queue ids[start:]; a token is to be chosen after the last of them."""
        sequence.drafts = ()
        self._submit_ids(sequence, start, sequence.ids[start:], 1)

    def _go_on(self, sequence: Sequence) -> None:
        """Queue the last token, and drafts behind it."""
        sequence.drafts = ()
        if sequence.drafter is not None:
            most = sequence.most_drafts(self.plan.context, self._rope_switch_len, len(self._sequences))
            sequence.drafts = sequence.drafter.propose(most)
        ids = (sequence.ids[-1], *sequence.drafts)
        self._submit_ids(sequence, len(sequence.ids) - 1, ids, len(ids))

    def _submit_ids(self, sequence: Sequence, position: int, ids: Ids[int], logits: int) -> None:
        x = np.asarray(ids, dtype=np.int64)
        self._submit(sequence.seq_id, x, position, position + len(ids), logits, ids)

    def _submit(self, seq_id: int, x: np.ndarray, position: int, pass_len: int, logits: int, ids: Ids[int]) -> None:
        try:
            self.engine.submit(Step(seq_id, x, position, pass_len, logits, ids, self._is_long(pass_len)))
        except ValueError as e:
            if seq_id in self._sequences:
                self._fail(self._sequences[seq_id], "error", str(e))

    def _congested(self) -> bool:
        return self._next is not None and self._next.congested

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """Choose tokens where there are logits, then hand them to the loop: each sequence's choice at once, so that the
        first board doesn't wait for the others'. Runs in the engine's thread."""
        if not self.is_last:
            self.loop.call_soon_threadsafe(self._computed, outcomes)
            return
        for outcome in outcomes:
            step, logits, sequence = outcome.step, outcome.result, self._sequences.get(outcome.step.seq_id)
            if logits is not None and sequence is not None:
                if sequence.sampler is None:
                    sequence.sampler = Sampler(sequence.sampling, self.section.vocab_size)
                try:
                    outcome.chosen = choose(sequence.sampler, sequence.ids, logits, step.ids, step.end)
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
                self._fail(sequence, "error", f"{type(outcome.error).__name__}: {outcome.error}")
            elif result is None:
                pass  # a chunk in mid-prompt
            elif not self.is_last:
                computed.append((sequence, step, result))
            elif sequence.logits and sequence.owner.congested:
                self._wait_for_owner(sequence, outcome)
            else:
                self._chosen(sequence, outcome)
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

    def _chosen(self, sequence: Sequence, outcome: Outcome) -> None:
        """Send the chosen tokens to the first board and to the manager, up to the answer's end."""
        logits = outcome.result
        assert logits is not None
        position = outcome.step.end - len(logits) + 1  # where the first of them goes
        if position < sequence.prompt_len or sequence.ended:
            return
        ids, finish = sequence.end_with(position, outcome.chosen, self.plan.context)
        sequence.ended = bool(finish)
        sequence.accepted += len(ids) - 1
        message = m.Tokens(self.epoch, sequence.seq_id, position, m.FINISH.index(finish), tuple(ids))
        if not finish:
            if self._first is not None:
                before = self._first.sent_bytes
                self._first.send(message)
                sequence.sent_bytes += self._first.sent_bytes - before
                if position <= len(sequence.ids):
                    sequence.ids += ids[len(sequence.ids) - position :]
            else:
                self.loop.call_soon(self.tokens, message)
        if sequence.logits:
            for at, row in enumerate(logits[: len(ids)], position):
                sequence.owner.send(m.Logits(self.epoch, sequence.seq_id, at, row.astype("<f4").tobytes()))
        sequence.owner.send(message)

    def _wait_for_owner(self, sequence: Sequence, outcome: Outcome) -> None:
        """Make a sequence wait until its manager has read more, because logits are large."""

        async def wait() -> None:
            await sequence.owner.drain()
            if self._sequences.get(sequence.seq_id) is sequence:
                self._chosen(sequence, outcome)

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop(self, seq_id: int) -> SequenceStats | None:
        """Free what a sequence holds here; return what was done for it, or None if it isn't open."""
        sequence = self._sequences.pop(seq_id, None)
        stats = self.engine.close(seq_id)
        self._relieve()
        if sequence is None or stats is None:
            return None
        return report.sequence_stats(sequence, stats, self.section.path)

    def _fail(self, sequence: Sequence, code: str, reason: str) -> None:
        self._drop(sequence.seq_id)
        log.warning("sequence %x failed: %s", sequence.seq_id, reason)
        sequence.owner.send(m.Failed(self.epoch, sequence.seq_id, m.FAILURES.index(code), reason))

    def _link_failed(self, reason: str) -> None:
        for sequence in list(self._sequences.values()):
            self._fail(sequence, "link", reason)
