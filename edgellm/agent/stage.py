"""This board's stage of a running plan: sequences come in, hidden states go to the next board, tokens close the loop.

All of it runs in the event loop; only `_deliver` is called by the engine's thread.
"""

import asyncio
import logging
import reprlib
from dataclasses import dataclass

import numpy as np

from edgellm.agent.link import Link
from edgellm.agent.run import Engine, Step
from edgellm.agent.trace import answer_trace
from edgellm.config import Sampling
from edgellm.errors import BusyError, EdgellmError, UsageError
from edgellm.plan import Plan
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer

log = logging.getLogger(__name__)
_MAX_WAITING_BYTES = 64 << 20  # hidden states that may wait here before a board is made to send no more


@dataclass
class _Sequence:
    """An answer in the making, as this board knows it. `ids` only grows on the first and the last board."""

    seq_id: int
    owner: Peer
    ids: list[int]
    prompt_len: int
    max_tokens: int
    eos: frozenset[int]
    sampling: Sampling
    logits: bool
    sent_bytes: int = 0  # of decode steps, to the next board
    ended: bool = False


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
        self._sequences: dict[int, _Sequence] = {}
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
        self.engine = Engine(section, list(slots), self._deliver, self._congested)

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
            sequence = self._parse(peer, message)
            self.engine.open(message.seq_id)
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
        peer.send(m.Opened(self.epoch, message.seq_id))
        log.info("sequence %x opened, %d tokens, epoch %d", message.seq_id, sequence.prompt_len, self.epoch)
        if self.is_first:
            self._feed(sequence, 0)

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

    # From other boards

    def hidden(self, peer: Peer, message: m.Hidden) -> None:
        """Queue a step; one of a sequence that isn't open here (cancelled meanwhile) is dropped."""
        if self.is_first or peer.name != self._hidden_from:
            expected = "nobody" if self.is_first else self._hidden_from
            peer.refuse(f"hidden states from {peer.name}; board {self.board} takes them from {expected}")
            return
        x = np.frombuffer(message.data, "<f4").reshape(message.count, -1).astype(np.float32)
        if x.shape[1] != self.section.hidden_size or message.pass_len > self.plan.context:
            peer.refuse(
                f"hidden states of size {x.shape[1]} up to position {message.pass_len}; "
                f"expected size {self.section.hidden_size} and at most {self.plan.context}"
            )
            return
        self._submit(Step(message.seq_id, x, message.position, message.pass_len, message.want_logits))
        if self.engine.waiting_bytes > _MAX_WAITING_BYTES and peer not in self._paused:
            self._paused.add(peer)
            peer.pause_reading()

    def token_from(self, peer: Peer, message: m.Token) -> None:
        """A token over the wire; only the last board's count."""
        if not self.is_first or peer.name != self._tokens_from:
            peer.refuse(f"a token from {peer.name}; board {self.board} takes none from it")
        elif message.token >= self.section.vocab_size:
            peer.refuse(f"token id {message.token}; the vocabulary has {self.section.vocab_size}")
        else:
            self.token(message)

    def token(self, message: m.Token) -> None:
        """The last board has chosen: go on with it. One that was seen already changes nothing."""
        sequence = self._sequences.get(message.seq_id)
        if sequence is None or not self.is_first or message.position < len(sequence.ids):
            return
        if message.position > len(sequence.ids):
            self._fail(
                sequence, "error", f"token for position {message.position}, expected position {len(sequence.ids)}"
            )
            return
        sequence.ids.append(message.token)
        crossed = self._rope_switch_len is not None and len(sequence.ids) == self._rope_switch_len + 1
        self._feed(sequence, 0 if crossed else len(sequence.ids) - 1)

    # Inside

    def _parse(self, peer: Peer, message: m.Open) -> _Sequence:
        options = message.options
        try:
            sampling = Sampling.from_dict(options.get("sampling", {}))
        except (KeyError, TypeError) as e:
            raise UsageError(f"open: bad options ({e})") from None
        max_tokens, eos = options.get("max_tokens"), options.get("eos", [])
        if type(max_tokens) is not int or max_tokens < 1:
            raise UsageError(f"open: max_tokens is {reprlib.repr(max_tokens)}, expected a number from 1")
        if not isinstance(eos, list) or any(type(i) is not int for i in eos):
            raise UsageError(f"open: eos is {reprlib.repr(eos)}, expected a list of token ids")
        least, most = (1, self.plan.context) if self.is_first or self.is_last else (0, 0)
        if not least <= len(message.ids) <= most:
            raise UsageError(f"a prompt of {len(message.ids)} tokens; board {self.board} takes {least} to {most}")
        if any(i >= self.section.vocab_size for i in message.ids):
            raise UsageError(f"token id {max(message.ids)}; the vocabulary has {self.section.vocab_size}")
        return _Sequence(
            message.seq_id, peer, list(message.ids), len(message.ids), max_tokens, frozenset(eos), sampling,
            options.get("logits") is True,
        )  # fmt: skip

    def _feed(self, sequence: _Sequence, start: int) -> None:
        """Queue ids[start:] in chunks; after the last one a token is wanted."""
        end = len(sequence.ids)
        for position in range(start, end, self.plan.chunk):
            until = min(position + self.plan.chunk, end)
            x = np.asarray(sequence.ids[position:until], dtype=np.int64)
            self._submit(Step(sequence.seq_id, x, position, end, until == end))

    def _submit(self, step: Step) -> None:
        try:
            self.engine.submit(step)
        except ValueError as e:
            if step.seq_id in self._sequences:
                self._fail(self._sequences[step.seq_id], "error", str(e))

    def _congested(self) -> bool:
        return self._next is not None and self._next.congested

    def _deliver(self, step: Step, result, error: Exception | None) -> None:
        """In the engine's thread: choose the token where there are logits, then hand over to the loop."""
        logits = None
        sequence = self._sequences.get(step.seq_id)
        if error is None and self.is_last and result is not None and sequence is not None:
            from edgellm.model.sampling import sample

            history = sequence.ids[: step.end] if sequence.sampling.repeat_penalty != 1.0 else ()
            try:
                logits, result = result, sample(result, history, sequence.sampling, step.end)
            except Exception as e:
                error = e
        self.loop.call_soon_threadsafe(self._computed, step, result, logits, error)

    def _relieve(self, all_of_them: bool = False) -> None:
        """Read again from boards that were made to wait, if enough of what waited is gone."""
        if self._paused and (all_of_them or self.engine.waiting_bytes <= _MAX_WAITING_BYTES // 2):
            for peer in self._paused:
                peer.resume_reading()
            self._paused.clear()

    def _computed(self, step: Step, result, logits, error) -> None:
        self._relieve()
        sequence = self._sequences.get(step.seq_id)
        if sequence is None:
            return
        if error is not None:
            self._fail(sequence, "error", f"{type(error).__name__}: {error}")
        elif not self.is_last:
            self._push(sequence, step, result)
        elif result is not None:
            if sequence.logits and sequence.owner.congested:
                self._waiting_for_owner(sequence, step.end, result, logits)
            else:
                self._chosen(sequence, step.end, result, logits)

    def _push(self, sequence: _Sequence, step: Step, result: np.ndarray) -> None:
        before = self._next.sent_bytes
        self._next.send(
            m.Hidden(
                self.epoch, sequence.seq_id, step.position, len(step.x), step.pass_len, step.want_logits,
                result.astype("<f4", copy=False).tobytes(),
            )  # fmt: skip
        )
        if step.is_decode:
            sequence.sent_bytes += self._next.sent_bytes - before

    def _chosen(self, sequence: _Sequence, position: int, token: int, logits: np.ndarray | None) -> None:
        if position < sequence.prompt_len or sequence.ended:
            return
        finish = ""
        if token in sequence.eos:
            finish = "eos"
        elif position - sequence.prompt_len + 1 >= sequence.max_tokens:
            finish = "length"
        elif position >= self.plan.context:
            finish = "context"
        sequence.ended = bool(finish)
        message = m.Token(self.epoch, sequence.seq_id, position, token, m.FINISH.index(finish))
        if not finish:
            if self._first is not None:
                before = self._first.sent_bytes
                self._first.send(message)
                sequence.sent_bytes += self._first.sent_bytes - before
                if position == len(sequence.ids):
                    sequence.ids.append(token)
            else:
                self.loop.call_soon(self.token, message)
        if sequence.logits:
            data = logits.astype("<f4").tobytes()
            sequence.owner.send(m.Logits(self.epoch, sequence.seq_id, position, data))
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
        return {**vars(stats), "sent_bytes": sequence.sent_bytes, "path": self.section.path}

    def _fail(self, sequence: _Sequence, code: str, reason: str) -> None:
        self._drop(sequence.seq_id)
        log.warning("sequence %x failed: %s", sequence.seq_id, reason)
        sequence.owner.send(m.Failed(self.epoch, sequence.seq_id, m.FAILURES.index(code), reason))

    def _refuse(self, peer: Peer, message: m.Open, code: str, reason: str) -> None:
        peer.send(m.Failed(self.epoch, message.seq_id, m.FAILURES.index(code), reason))

    def _link_failed(self, reason: str) -> None:
        for sequence in list(self._sequences.values()):
            self._fail(sequence, "link", reason)
