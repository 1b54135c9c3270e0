"""The boards of one plan, as long as it stands: opens sequences on all of them, and streams the tokens."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgellm.config import PING_EVERY_S, PONG_TIMEOUT_S, STALL_TIMEOUT_S, WAIT_S
from edgellm.errors import AnswerError, BoardError, BusyError, LinkError
from edgellm.manager.board import ANSWER_TIMEOUT_S, BoardClient, Events
from edgellm.manager.connections import Connections
from edgellm.plan import Plan
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.status import SequenceStats

_CLOSE_TIMEOUT_S = 3.0
TRACE_TIMEOUT_S = 120.0  # for a layer of a piece


@dataclass(frozen=True)
class Chosen:
    """A token of the answer. `finish` is "" until the last one; `logits` is float32 bytes where asked for, and
    `logprobs` are (token id, natural logarithm of its probability), first of this token, then of the likeliest."""

    position: int
    token: int
    finish: str
    at_s: float
    logits: bytes | None = field(default=None, repr=False)
    logprobs: tuple[tuple[int, float], ...] = field(default=(), repr=False)


@dataclass
class _Sequence:
    """A sequence on the boards: its id, and what they say about it."""

    seq_id: int
    events: Events = field(default_factory=asyncio.Queue)
    closed: bool = False


class _Slots(NamedTuple):
    """What the boards said when they opened a sequence: where computing may begin, and whether all verify drafts."""

    reuse: int
    batches: bool


class ClusterClient:
    """The boards of a plan, in pipeline order, connected. As `async with ClusterClient.dial(…)` they are connected here
    and let go at the end."""

    def __init__(self, plan: Plan, boards: list[BoardClient]):
        self.plan, self.boards = plan, boards

    @classmethod
    @contextlib.asynccontextmanager
    async def dial(
        cls, plan: Plan, addresses: Mapping[str, Address], tls: Credentials | None = None
    ) -> AsyncIterator["ClusterClient"]:
        """Connect to all boards of `plan` at once. Raises BoardError naming the first that can't be reached."""
        async with Connections(tls) as connections:
            yield cls(plan, await connections.to_all({name: addresses[name] for name in plan.boards}))

    async def generate(
        self, ids: list[int], *, sampling: Sampling, max_tokens: int, eos: tuple[int, ...], logits: bool = False,
        logprobs: int = 0, stats: dict[str, SequenceStats] | None = None, speculate: bool = True, reuse: bool = True,
        began: int | None = None, wait_s: float = WAIT_S, queued: Callable[[int], None] = lambda position: None,
        tell: Callable[[str], None] = lambda text: None, ended: Callable[[], bool] = lambda: False,
    ) -> AsyncGenerator[Chosen, None]:  # fmt: skip
        """Stream the answer to the prompt `ids`, token by token; the last one has a finish reason.

        With `speculate`, boards that can do so draft the next tokens and verify them, which changes only the time; with
        `reuse`, the part of the prompt that their slots hold isn't computed again. `logprobs` asks for the
        probabilities of so many likeliest tokens. If `ids` end with a part of the answer, it `began` at this position,
        and `max_tokens` are those of the whole answer.

        Where no slot is free the sequence stands in line for up to `wait_s`; `queued(position)` is called whenever it
        moves, 1 is next. Leaving the iteration early, or cancelling it, stops the boards' work and waits for nothing.
        Once the answer has ended, `stats`, if given, is filled with what each board reports, which takes a moment;
        `ended()` tells whether an answer that is left early has ended all the same, by a judgement of the caller's.
        `tell(text)` is called when a board says what is not its business.

        Raises BusyError when no slot becomes free, AnswerError when a board can't compute this, BoardError when one is
        lost, hangs, or has moved on to another plan: always naming it.
        """
        options = {
            "sampling": sampling.to_wire(), "max_tokens": max_tokens, "eos": list(eos), "logits": logits,
            "logprobs": logprobs, "began": len(ids) if began is None else began, "reuse": len(ids) if reuse else 0,
        }  # fmt: skip
        sequence = self._begin()
        try:
            slots = await self._open(sequence, ids, options, wait_s, queued)
            speculate = speculate and slots.batches
            self.boards[0].send(m.Start(self.plan.epoch, sequence.seq_id, slots.reuse, speculate))
            finish = ""
            try:
                async with aclosing(self._tokens(sequence, len(ids), tell)) as tokens:
                    async for chosen in tokens:
                        finish = chosen.finish
                        yield chosen
            except GeneratorExit:
                if finish or ended():
                    await self._close(sequence, stats)
                raise
            await self._close(sequence, stats)
        finally:
            self._end(sequence)

    @contextlib.asynccontextmanager
    async def hold(self, ids: list[int], wait_s: float = WAIT_S) -> AsyncIterator["Held"]:
        """Hold a slot on every board for the sequence `ids`, to trace it. Raises as `generate` does."""
        sequence = self._begin()
        try:
            await self._open(sequence, ids, {"max_tokens": 1}, wait_s, lambda position: None)
            yield Held(self, sequence)
        finally:
            self._end(sequence)

    def _begin(self) -> _Sequence:
        """Return a new sequence, of which the boards' messages are kept."""
        sequence = _Sequence(secrets.randbits(64))
        for board in self.boards:
            board.subscribe(sequence.seq_id, sequence.events)
        return sequence

    def _end(self, sequence: _Sequence) -> None:
        """Have all boards close a sequence, and wait for nothing."""
        self._send_close(sequence)
        for board in self.boards:
            board.unsubscribe(sequence.seq_id)

    def _send_close(self, sequence: _Sequence) -> None:
        if not sequence.closed:
            sequence.closed = True
            for board in self.boards:
                with contextlib.suppress(Exception):  # it may be lost at this very moment
                    board.send(m.Close(self.plan.epoch, sequence.seq_id))

    async def _open(
        self, sequence: _Sequence, ids: list[int], options: dict[str, Any], wait_s: float,
        queued: Callable[[int], None],
    ) -> _Slots:  # fmt: skip
        """Take a slot on the first board, in its turn, then the same slot on all others."""
        first, others, seq_id, events = self.boards[0], self.boards[1:], sequence.seq_id, sequence.events
        options = {**options, "plan": self.plan.digest}
        first.send(m.Open(self.plan.epoch, seq_id, {**options, "wait_s": wait_s}, tuple(ids)))
        opened, timeout_s = None, ANSWER_TIMEOUT_S
        while opened is None:
            board, message = await self._event(events, timeout_s)
            if isinstance(message, m.Queued) and board is first:
                timeout_s = wait_s + ANSWER_TIMEOUT_S  # the board itself keeps the time
                queued(message.position)
            elif isinstance(message, m.Failed) or board is first:
                opened = _opened(board, message)
        reuse, batches = opened.reused, opened.batches
        waited = set(others)
        for board in others:
            board.send(m.Open(self.plan.epoch, seq_id, {**options, "reuse": reuse, "slot": opened.slot}, tuple(ids)))
        while waited:
            board, message = await self._event(events, ANSWER_TIMEOUT_S)
            if isinstance(message, m.Failed) or board in waited:
                answer = _opened(board, message)
                waited.discard(board)
                reuse, batches = min(reuse, answer.reused), batches and answer.batches
        return _Slots(reuse, batches)

    async def _tokens(
        self, sequence: _Sequence, expected: int, tell: Callable[[str], None]
    ) -> AsyncGenerator[Chosen, None]:
        """Stream the tokens from position `expected` on. They count only from the last board."""
        clock = asyncio.get_running_loop().time
        logits: dict[int, bytes] = {}
        logprobs: dict[int, tuple[tuple[int, float], ...]] = {}
        told: set[BoardClient] = set()
        while True:
            board, message = await self._event(sequence.events, None)
            if isinstance(message, m.Failed):
                _opened(board, message)
            if board is not self.boards[-1]:
                if isinstance(message, m.Tokens | m.Logits | m.Logprobs) and board not in told:
                    told.add(board)
                    last = self.boards[-1].name
                    tell(f"board {board.name} sends tokens, which only board {last} may choose; they are ignored")
                continue
            match message:
                case m.Logits() if expected <= message.position < expected + m.MAX_CHOICES:
                    logits[message.position] = message.data
                case m.Logprobs() if expected <= message.position < expected + m.MAX_CHOICES:
                    logprobs[message.position] = tuple(zip(message.ids, message.logprobs, strict=True))
                case m.Tokens() if message.position <= expected:
                    now, end = clock(), message.position + len(message.ids)
                    for token in message.ids[expected - message.position :]:
                        finish = m.FINISH[message.finish] if expected == end - 1 else ""
                        at, expected = expected, expected + 1
                        yield Chosen(at, token, finish, now, logits.pop(at, None), logprobs.pop(at, ()))
                    if message.finish and expected == end:
                        return

    async def _event(self, events: Events, timeout_s: float | None) -> tuple[BoardClient, m.Message]:
        """Return the next message of a sequence from any board. Raises the BoardError of the first board that is lost.

        Without `timeout_s` the boards may compute for as long as they make progress, but not idle.
        """
        got = None if events.empty() else events.get_nowait()
        if got is None:
            got = await self._arrival(events, timeout_s)
        # A dead board also makes its neighbours report a broken link; name the dead one.
        if got is not None and not _is_link_failure(got[1]):
            return got
        losses = {b.lost for b in self.boards}
        if got is not None:
            await asyncio.wait(losses, timeout=PONG_TIMEOUT_S + PING_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
        for board in self.boards:
            if board.lost.done():
                raise board.lost.result()
        if got is not None:
            return got
        raise BoardError(f"no board answered within {timeout_s:g} s")

    async def _arrival(self, events: Events, timeout_s: float | None) -> tuple[BoardClient, m.Message] | None:
        """Wait for a message, and return it; None if a board is lost or the time is over instead."""
        getter = asyncio.ensure_future(events.get())
        losses = {b.lost for b in self.boards}
        waited: set[asyncio.Future[Any]] = {getter, *losses}
        clock = asyncio.get_running_loop().time
        began_s = clock()
        try:
            while True:
                wait_s = PING_EVERY_S if timeout_s is None else timeout_s
                await asyncio.wait(waited, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    return getter.result()
                if timeout_s is not None or any(lost.done() for lost in losses):
                    return None
                # Boards may have been idle for long before this sequence gave them work.
                if min(clock() - began_s, *(board.idle_s for board in self.boards)) > STALL_TIMEOUT_S:
                    raise BoardError(f"the answer stalled: no board has had work for {STALL_TIMEOUT_S:g} s. Ask again.")
        finally:
            getter.cancel()

    async def _close(self, sequence: _Sequence, stats: dict[str, SequenceStats] | None) -> None:
        """Close a sequence on all boards; if there are `stats` to fill, wait a moment for what those did for it."""
        self._send_close(sequence)
        waited = set(self.boards)
        with contextlib.suppress(TimeoutError, BoardError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                while waited and stats is not None:
                    board, message = await self._event(sequence.events, _CLOSE_TIMEOUT_S)
                    if isinstance(message, m.Closed) and board in waited:
                        waited.remove(board)
                        told = SequenceStats.from_dict(message.stats)
                        if told is not None:
                            stats[board.name] = told


class Held:
    """A sequence that holds a slot on every board of `cluster`, for traces."""

    def __init__(self, cluster: ClusterClient, sequence: _Sequence):
        self._cluster, self._sequence = cluster, sequence

    async def trace(
        self, board: BoardClient, layers: tuple[int, int], position: int, pass_len: int, count: int, data: bytes,
    ) -> list[bytes]:  # fmt: skip
        """Return what each of `layers` [start, end), those of the board, gives for `count` tokens from `position` on,
        of a sequence of `pass_len`: float32 [count, hidden_size] each. `data` is what its section takes. Raises
        BoardError if it can't."""
        start, end = layers
        epoch, seq_id = self._cluster.plan.epoch, self._sequence.seq_id
        piece = m.Trace(epoch, start, count, data, seq_id, position, pass_len)
        answers = asyncio.ensure_future(self._answers(board, piece, end - start))
        failure = asyncio.ensure_future(self._sequence.events.get())
        try:
            await asyncio.wait((answers, failure), return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                _opened(*failure.result())
            return await answers
        finally:
            answers.cancel()
            failure.cancel()

    async def _answers(self, board: BoardClient, piece: m.Trace, count: int) -> list[bytes]:
        found: list[bytes] = []
        async with aclosing(board.ask_for(count, piece, m.Traced, TRACE_TIMEOUT_S)) as layers:
            async for message in layers:
                expected = piece.layer + len(found)
                if (message.layer, message.count) != (expected, piece.count):
                    raise board.error(f"traced layer {message.layer}, expected {expected}")
                found.append(message.data)
        return found


def _is_link_failure(message: m.Message) -> bool:
    return isinstance(message, m.Failed) and m.FAILURES[message.code] == "link"


def _opened(board: BoardClient, message: m.Message) -> m.Opened:
    """Return the message. Raises what a Failed means, and BoardError for any other."""
    if isinstance(message, m.Failed):
        if m.FAILURES[message.code] == "busy":
            raise BusyError(f"board {board.name} is busy: {message.reason}", board.name)
        if m.FAILURES[message.code] == "link" and message.board:
            raise LinkError(str(board.error(message.reason)), board.name, message.board)
        kind = AnswerError if m.FAILURES[message.code] in ("error", "unknown") else BoardError
        raise kind(str(board.error(message.reason)), board.name)
    if not isinstance(message, m.Opened):
        raise BoardError(str(board.error(f"answered an open with {type(message).__name__.lower()}")), board.name)
    return message
