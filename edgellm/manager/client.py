"""The boards of one plan, as long as it stands: opens sequences on all of them, and streams the tokens."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from edgellm.config import PING_EVERY_S, PONG_TIMEOUT_S, STALL_TIMEOUT_S, WAIT_S
from edgellm.errors import AnswerError, BoardError, BusyError, LinkError, LocalProtocolError, RemoteProtocolError
from edgellm.manager.board import ANSWER_TIMEOUT_S, BoardClient, Events
from edgellm.manager.connections import Connections
from edgellm.plan import Plan
from edgellm.sampling import Sampling
from edgellm.structure import Constraint
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address
from edgellm.wire.asking import Asking, Computed, Done, Event, Failure, InLine, Sends, State, Stray, Token, Vector
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
    vector: bytes | None = field(default=None, repr=False)  # an embedding, float32, in place of a token


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
        logprobs: int = 0, constraint: Constraint | None = None, pool: str = "", cache: str = "",
        stats: dict[str, SequenceStats] | None = None, speculate: bool = True, reuse: bool = True,
        began: int | None = None, wait_s: float = WAIT_S, queued: Callable[[int], None] = lambda position: None,
        progress: Callable[[int], None] | None = None, tell: Callable[[str], None] = lambda text: None,
        ended: Callable[[], bool] = lambda: False,
    ) -> AsyncGenerator[Chosen, None]:  # fmt: skip
        """Stream the answer to the prompt `ids`, token by token; the last one has a finish reason.

        With `speculate`, boards that can do so draft the next tokens and verify them, which changes only the time; with
        `reuse`, the part of the prompt that they hold isn't computed again, and only questions of the same `cache`
        share such parts. `logprobs` asks for the probabilities of so many likeliest tokens, and the answer matches
        `constraint`. With `pool`, the prompt's embedding comes in place of an answer: one `Chosen` with a `vector`. If
        `ids` end with a part of the answer, it `began` at this position, and `max_tokens` are those of the whole
        answer.

        Where no slot is free the sequence stands in line for up to `wait_s`; `queued(position)` is called whenever it
        moves, 1 is next. `progress(count)` is called now and then while the prompt is computed: `count` tokens of it
        are. Leaving the iteration early, or cancelling it, stops the boards' work and waits for nothing. Once the
        answer has ended, `stats`, if given, is filled with what each board reports, which takes a moment; `ended()`
        tells whether an answer that is left early has ended all the same, by a judgement of the caller's. `tell(text)`
        is called when a board says what is not its business.

        Raises BusyError when no slot becomes free, AnswerError when a board can't compute this, BoardError when one is
        lost, hangs, or has moved on to another plan: always naming it.
        """
        options = {
            "sampling": sampling.to_wire(), "max_tokens": max_tokens, "eos": list(eos), "logits": logits,
            "logprobs": logprobs, "began": len(ids) if began is None else began, "reuse": len(ids) if reuse else 0,
            "cache": cache, "keep": reuse, "progress": progress is not None,
        }  # fmt: skip
        if constraint is not None:
            options["constraint"] = constraint.to_wire()
        if pool:
            options["pool"] = pool
        async with self._asking(ids, options) as (asking, events):
            await self._open(asking, events, wait_s, queued)
            self._send(asking.start(speculate))
            if progress is not None and asking.reuse:
                progress(asking.reuse)
            try:
                async with aclosing(self._tokens(asking, events, tell, progress)) as tokens:
                    async for chosen in tokens:
                        yield chosen
            except GeneratorExit:
                if asking.state is State.ENDED or ended():
                    await self._close(asking, events, stats)
                raise
            await self._close(asking, events, stats)

    @contextlib.asynccontextmanager
    async def hold(self, ids: list[int], wait_s: float = WAIT_S) -> AsyncIterator["Held"]:
        """Hold a slot on every board for the sequence `ids`, to trace it. Raises as `generate` does."""
        async with self._asking(ids, {"max_tokens": 1}) as (asking, events):
            await self._open(asking, events, wait_s, lambda position: None)
            yield Held(self, asking.seq_id, events)

    @contextlib.asynccontextmanager
    async def _asking(self, ids: list[int], options: dict[str, Any]) -> AsyncIterator[tuple[Asking, Events]]:
        """Have a new sequence, of which the boards' messages are kept; at the end all boards close it."""
        events: Events = asyncio.Queue()
        options = {**options, "plan": self.plan.digest}
        asking = Asking(self.plan.epoch, secrets.randbits(64), self.plan.boards, ids, options)
        for board in self.boards:
            board.subscribe(asking.seq_id, events)
        try:
            yield asking, events
        finally:
            self._send(asking.close())
            for board in self.boards:
                board.unsubscribe(asking.seq_id)

    def _send(self, sends: Sends) -> None:
        boards = dict(zip(self.plan.boards, self.boards, strict=True))
        for name, message in sends:
            with contextlib.suppress(LocalProtocolError):  # the board may be lost at this very moment
                boards[name].send(message)

    async def _happened(self, asking: Asking, events: Events, timeout_s: float | None) -> list[Event]:
        """Wait for the boards' next message, send what is due then, and return what has happened. Raises what a failure
        means."""
        board, message = await self._event(events, timeout_s)
        try:
            sends, happened = asking.receive(board.name, message)
        except RemoteProtocolError as e:
            raise board.error(str(e)) from None
        self._send(sends)
        for event in happened:
            if isinstance(event, Failure):
                raise _error(board, event)
        return happened

    async def _open(
        self, asking: Asking, events: Events, wait_s: float, queued: Callable[[int], None]
    ) -> None:
        """Take a slot on the first board, in its turn, then the same slot on all others."""
        self._send(asking.open(wait_s))
        while asking.state is not State.OPEN:
            # In line, the board itself keeps the time.
            timeout_s = ANSWER_TIMEOUT_S + (wait_s if asking.state is State.IN_LINE else 0)
            for event in await self._happened(asking, events, timeout_s):
                if isinstance(event, InLine):
                    queued(event.position)

    async def _tokens(
        self, asking: Asking, events: Events, tell: Callable[[str], None], progress: Callable[[int], None] | None
    ) -> AsyncGenerator[Chosen, None]:
        """Stream the tokens of a sequence that has started."""
        clock = asyncio.get_running_loop().time
        while asking.state is State.STARTED:
            happened = await self._happened(asking, events, None)
            now_s = clock()
            for event in happened:
                if isinstance(event, Token):
                    yield Chosen(event.position, event.token, event.finish, now_s, event.logits, event.logprobs)
                elif isinstance(event, Vector):
                    yield Chosen(0, 0, "embedded", now_s, vector=event.data)
                elif isinstance(event, Computed) and progress is not None:
                    progress(event.position)
                elif isinstance(event, Stray):
                    last = self.boards[-1].name
                    tell(f"board {event.board} sends tokens, which only board {last} may choose; they are ignored")

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

    async def _close(self, asking: Asking, events: Events, stats: dict[str, SequenceStats] | None) -> None:
        """Close a sequence on all boards; if there are `stats` to fill, wait a moment for what those did for it."""
        self._send(asking.close())
        with contextlib.suppress(TimeoutError, BoardError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                while stats is not None and not asking.closed_by_all:
                    for event in await self._happened(asking, events, _CLOSE_TIMEOUT_S):
                        told = SequenceStats.from_dict(event.stats) if isinstance(event, Done) else None
                        if told is not None and isinstance(event, Done):
                            stats[event.board] = told


class Held:
    """A sequence that holds a slot on every board of `cluster`, for traces."""

    def __init__(self, cluster: ClusterClient, seq_id: int, events: Events):
        self._cluster, self._seq_id, self._events = cluster, seq_id, events

    async def trace(
        self, board: BoardClient, layers: tuple[int, int], position: int, pass_len: int, count: int, data: bytes,
    ) -> list[bytes]:  # fmt: skip
        """Return what each of `layers` [start, end), those of the board, gives for `count` tokens from `position` on,
        of a sequence of `pass_len`: float32 [count, hidden_size] each. `data` is what its section takes. Raises
        BoardError if it can't."""
        start, end = layers
        piece = m.Trace(self._cluster.plan.epoch, start, count, data, self._seq_id, position, pass_len)
        answers = asyncio.ensure_future(self._answers(board, piece, end - start))
        failure = asyncio.ensure_future(self._events.get())
        try:
            await asyncio.wait((answers, failure), return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                failed, said = failure.result()
                if isinstance(said, m.Failed):
                    raise _error(failed, Failure(failed.name, m.FAILURES[said.code], said.reason, said.board))
                raise failed.error(f"answered a trace with {type(said).__name__.lower()}")
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


def _error(board: BoardClient, failure: Failure) -> BoardError:
    """Return what a failure means."""
    if failure.code == "busy":
        return BusyError(f"board {board.name} is busy: {failure.reason}", board.name)
    text = str(board.error(failure.reason))
    if failure.code == "link" and failure.other:
        return LinkError(text, board.name, failure.other)
    kind = AnswerError if failure.code in ("error", "unknown") else BoardError
    return kind(text, board.name)
