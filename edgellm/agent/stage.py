"""This board's stage of a running plan: sequences come in, hidden states go to the next board, tokens close the loop.

All of it runs in the event loop; only `_deliver` is called by the engine's thread.
"""

import asyncio
import logging

import numpy as np

from edgellm.agent.draft import Drafter
from edgellm.agent.engine import Engine
from edgellm.agent.link import Link
from edgellm.agent.sequence import Sequence, choose, finish_of, most_drafts, parse_open
from edgellm.agent.steps import Outcome, Step
from edgellm.agent.trace import answer_trace
from edgellm.errors import BusyError, EdgellmError
from edgellm.plan import Plan
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer

log = logging.getLogger(__name__)
_MAX_WAITING_BYTES = 64 << 20  # hidden states that may wait here before a board is made to send no more


class Stage:
    """`section` with its KV `slots` under `plan` on board `board`. `addresses` gives (host, port) by board; `tls` is
    the SSL context to dial them with."""

    def __init__(
        self, plan: Plan, board: str, addresses: dict[str, tuple[str, int]], section, slots: list, rope_switch_len=None,
        *, tls=None,
    ):  # fmt: skip
        self.plan, self.board, self.section, self.addresses = plan, board, section, addresses
        self.epoch = plan.epoch
        own = plan.section_of(board)
        self.is_first, self.is_last = own.start == 0, own.end == plan.num_layers
        self._rope_switch_len = rope_switch_len
        self._sequences: dict[int, Sequence] = {}
        self._paused: set[Peer] = set()
        self._tasks: set[asyncio.Task] = set()
        self.loop = asyncio.get_running_loop()
        me = m.Hello("board", board)
        stage = plan.stage_of(board)
        self._hidden_from = plan.boards[stage - 1]
        self._tokens_from = plan.boards[-1]
        self._next = self._first = None
        if not self.is_last:
            after = plan.next_board(board)
            self._next = Link(after, *addresses[after], me, self._link_failed, tls=tls)
        elif not self.is_first:
            first = plan.sections[0].board
            self._first = Link(first, *addresses[first], me, self._link_failed, tls=tls)
        groups = len(plan.boards) if self.is_first else 0
        self.engine = Engine(section, list(slots), self._deliver, self._congested, groups)

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._sequences)

    @property
    def link_sent_bytes(self) -> int:
        """Bytes sent to other boards so far."""
        return sum(link.sent_bytes for link in (self._next, self._first) if link)

    def stop(self, reason: str, code: str = "epoch") -> None:
        """End every sequence with `reason`, hang up, and have the engine end after its running step."""
        for sequence in list(self._sequences.values()):
            self._fail(sequence, code, reason)
        self._relieve(all_of_them=True)
        for link in (self._next, self._first):
            if link:
                link.close()
        self.engine.stop()

    # From a manager

    def open(self, peer: Peer, message: m.Open) -> None:
        """Reserve a slot and answer `opened`; on the first board, start with the prompt. Answers `failed` if not."""
        if message.options.get("plan") != self.plan.digest:
            reason = f"board {self.board} holds another plan of epoch {self.epoch} than the one that was asked for"
            self._refuse(peer, message, "epoch", reason)
            return
        try:
            sequence = parse_open(peer, message, self.plan.context, self.section.vocab_size)
            reused = self.engine.open(message.seq_id, message.ids, sequence.reuse, self._is_long(len(message.ids)))
        except BusyError as e:
            self._refuse(peer, message, "busy", str(e))
            return
        except EdgellmError as e:
            self._refuse(peer, message, "error", str(e))
            return
        self._sequences[message.seq_id] = sequence
        for link in (self._next, self._first):
            if link:
                link.ensure()
        peer.send(m.Opened(self.epoch, message.seq_id, reused, self.engine.batches))
        log.info(
            "sequence %x opened, %d tokens, %d of them held, epoch %d",
            message.seq_id, sequence.prompt_len, reused, self.epoch,
        )  # fmt: skip
        if self.is_first:
            self._feed(sequence, reused)
            if sequence.speculate and self.engine.batches:
                sequence.drafter = Drafter(sequence.ids)

    def close(self, peer: Peer, message: m.Close) -> None:
        """Free the slot and answer `closed` with what was done; of an unknown sequence, with nothing."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is not None and sequence.owner is not peer:
            return
        peer.send(m.Closed(self.epoch, message.seq_id, self._drop(message.seq_id)))

    def trace(self, peer: Peer, message: m.Trace) -> None:
        """Run the section over a whole sequence in a slot of its own; answer with each layer's output."""
        answer_trace(self, peer, message)

    def manager_lost(self, peer: Peer) -> None:
        """Free what the manager's sequences hold here."""
        for sequence in [s for s in self._sequences.values() if s.owner is peer]:
            log.info("sequence %x dropped: its manager is gone", sequence.seq_id)
            self._drop(sequence.seq_id)
        self.engine.forget_jobs(peer)

    # From other boards

    def hidden(self, peer: Peer, message: m.Hidden) -> None:
        """Queue a step; one of a sequence that isn't open here (cancelled meanwhile) is dropped."""
        if self.is_first or peer.name != self._hidden_from:
            expected = "nobody" if self.is_first else self._hidden_from
            peer.refuse(f"hidden states from {peer.name}; board {self.board} takes them from {expected}")
            return
        count, hidden_size = len(message.ids), self.section.hidden_size
        if len(message.data) != 4 * count * hidden_size or message.pass_len > self.plan.context:
            peer.refuse(
                f"hidden states of size {len(message.data) // (4 * count)} up to position {message.pass_len}; "
                f"expected size {hidden_size} and at most {self.plan.context}"
            )
            return
        if max(message.ids) >= self.section.vocab_size:
            peer.refuse(f"hidden states of token id {max(message.ids)}; the vocabulary has {self.section.vocab_size}")
            return
        if message.logits > 1 and not self.engine.batches:
            peer.refuse(f"hidden states of {message.logits - 1} drafts; board {self.board} can't verify any")
            return
        # Not copied: NumPy would let go of the GIL, and the engine begin without the steps that came along.
        x = np.frombuffer(message.data, "<f4").reshape(count, hidden_size).astype(np.float32, copy=False)
        long = self._is_long(message.pass_len)
        self._submit(
            Step(message.seq_id, x, message.position, message.pass_len, message.logits, message.ids, long)
        )
        if self.engine.waiting_bytes > _MAX_WAITING_BYTES and peer not in self._paused:
            self._paused.add(peer)
            peer.pause_reading()

    def tokens_from(self, peer: Peer, message: m.Tokens) -> None:
        """Tokens over the wire; only the last board's count."""
        if not self.is_first or peer.name != self._tokens_from:
            peer.refuse(f"tokens from {peer.name}; board {self.board} takes none from it")
        elif max(message.ids) >= self.section.vocab_size:
            peer.refuse(f"token id {max(message.ids)}; the vocabulary has {self.section.vocab_size}")
        else:
            self.tokens(message)

    def tokens(self, message: m.Tokens) -> None:
        """The last board has chosen: go on with it. Those that were seen already change nothing."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is None or not self.is_first:
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

    def _is_long(self, pass_len: int) -> bool:
        """Whether a pass of this length has the long rotary factors (LongRoPE)."""
        return self._rope_switch_len is not None and pass_len > self._rope_switch_len

    def _feed(self, sequence: Sequence, start: int) -> None:
        """Queue ids[start:] in chunks; after the last one a token is wanted."""
        end, long = len(sequence.ids), self._is_long(len(sequence.ids))
        sequence.drafts = ()
        for position in range(start, end, self.plan.chunk):
            until = min(position + self.plan.chunk, end)
            ids = sequence.ids[position:until]
            x = np.asarray(ids, dtype=np.int64)
            self._submit(Step(sequence.seq_id, x, position, end, int(until == end), ids, long))

    def _go_on(self, sequence: Sequence) -> None:
        """Queue the last token, and what may follow it."""
        position, sequence.drafts = len(sequence.ids) - 1, ()
        if sequence.drafter is not None:
            most = most_drafts(sequence, self.plan.context, self._rope_switch_len, len(self._sequences))
            sequence.drafts = sequence.drafter.propose(most)
        ids = (sequence.ids[position], *sequence.drafts)
        end = position + len(ids)
        x = np.asarray(ids, dtype=np.int64)
        self._submit(Step(sequence.seq_id, x, position, end, len(ids), ids, self._is_long(end)))

    def _submit(self, step: Step) -> None:
        try:
            self.engine.submit(step)
        except ValueError as e:
            if step.seq_id in self._sequences:
                self._fail(self._sequences[step.seq_id], "error", str(e))

    def _congested(self) -> bool:
        return self._next is not None and self._next.congested

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """In the engine's thread: choose tokens where there are logits, then hand over to the loop. Each sequence's
        choice is handed over at once, so that the first board doesn't wait for the others'."""
        if not self.is_last:
            self.loop.call_soon_threadsafe(self._computed, [(*outcome, None) for outcome in outcomes])
            return
        for step, result, error in outcomes:
            logits, sequence = None, self._sequences.get(step.seq_id)
            if error is None and result is not None and sequence is not None:
                penalized = sequence.sampling.repeat_penalty != 1.0
                history = sequence.ids[: step.end - len(result) + 1] if penalized else ()
                try:
                    logits, result = result, choose(result, step.ids, history, sequence.sampling, step.end)
                except Exception as e:
                    error = e
            self.loop.call_soon_threadsafe(self._computed, [(step, result, error, logits)])

    def _relieve(self, all_of_them: bool = False) -> None:
        """Read again from boards that were made to wait, if enough of what waited is gone."""
        if self._paused and (all_of_them or self.engine.waiting_bytes <= _MAX_WAITING_BYTES // 2):
            for peer in self._paused:
                peer.resume_reading()
            self._paused.clear()

    def _computed(self, outcomes: list[tuple]) -> None:
        self._relieve()
        computed = []  # what goes to the next board
        for step, result, error, logits in outcomes:
            sequence = self._sequences.get(step.seq_id)
            if sequence is None:
                continue
            if error is not None:
                self._fail(sequence, "error", f"{type(error).__name__}: {error}")
            elif not self.is_last:
                computed.append((sequence, step, result))
            elif result is not None:
                first = step.end - len(logits) + 1  # where the first of the chosen goes
                if sequence.logits and sequence.owner.congested:
                    self._waiting_for_owner(sequence, first, result, logits)
                else:
                    self._chosen(sequence, first, result, logits)
        if computed:
            self._push(computed)

    def _push(self, computed: list[tuple[Sequence, Step, np.ndarray]]) -> None:
        """Steps that ran together go together, so that they run together on the next board too."""
        before = self._next.sent_bytes
        self._next.send(*(
            m.Hidden(
                self.epoch, step.seq_id, step.position, step.pass_len, step.logits, tuple(step.ids),
                result.astype("<f4", copy=False).tobytes(),
            )
            for _, step, result in computed
        ))  # fmt: skip
        sent, tokens = self._next.sent_bytes - before, sum(len(step.x) for _, step, _ in computed)
        for sequence, step, _ in computed:
            if step.is_decode:
                sequence.sent_bytes += sent * len(step.x) // tokens

    def _chosen(self, sequence: Sequence, position: int, ids: list[int], logits: np.ndarray) -> None:
        """Tell first board and manager of the tokens from `position` on, as far as the answer goes."""
        if position < sequence.prompt_len or sequence.ended:
            return
        finish = ""
        for count, token in enumerate(ids, 1):
            finish = finish_of(sequence, position + count - 1, token, self.plan.context)
            if finish:
                ids = ids[:count]
                break
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

    def _waiting_for_owner(self, *chosen) -> None:
        """Logits are large: a manager that doesn't read them gets no more, and its sequence waits."""

        async def wait(sequence, *rest):
            await sequence.owner.drain()
            if self._sequences.get(sequence.seq_id) is sequence:
                self._chosen(sequence, *rest)

        task = asyncio.create_task(wait(*chosen))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop(self, seq_id: int) -> dict:
        sequence = self._sequences.pop(seq_id, None)
        stats = self.engine.close(seq_id)
        self._relieve()
        if sequence is None or stats is None:
            return {}
        return {
            **vars(stats), "accepted_tokens": sequence.accepted, "sent_bytes": sequence.sent_bytes,
            "path": self.section.path,
        }  # fmt: skip

    def _fail(self, sequence: Sequence, code: str, reason: str) -> None:
        self._drop(sequence.seq_id)
        log.warning("sequence %x failed: %s", sequence.seq_id, reason)
        sequence.owner.send(m.Failed(self.epoch, sequence.seq_id, m.FAILURES.index(code), reason))

    def _refuse(self, peer: Peer, message: m.Open, code: str, reason: str) -> None:
        peer.send(m.Failed(self.epoch, message.seq_id, m.FAILURES.index(code), reason))

    def _link_failed(self, reason: str) -> None:
        for sequence in list(self._sequences.values()):
            self._fail(sequence, "link", reason)
