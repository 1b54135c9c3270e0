"""The boards of one plan, as long as it stands: opens sequences on all of them, and streams the tokens."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellm.config import PING_EVERY_S, PONG_TIMEOUT_S, STALL_TIMEOUT_S
from edgellm.errors import AnswerError, BoardError, BusyError
from edgellm.manager.board import ANSWER_TIMEOUT_S, BoardClient, Events
from edgellm.manager.connections import Connections
from edgellm.plan import Plan
from edgellm.sampling import Sampling
from edgellm.wire import messages as m
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.status import SequenceStats

_CLOSE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Chosen:
    """A token of the answer. `finish` is "" until the last one; `logits` is float32 bytes where asked for."""

    position: int
    token: int
    finish: str
    at_s: float
    logits: bytes | None = field(default=None, repr=False)


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
        stats: dict[str, SequenceStats] | None = None, speculate: bool = True, reuse: bool = True,
    ) -> AsyncGenerator[Chosen, None]:  # fmt: skip
        """Stream the answer to the prompt `ids`, token by token; the last one has a finish reason.

        With `speculate`, boards that can do so draft the next tokens and verify them, which changes only the time; with
        `reuse`, the part of the prompt that their slots hold isn't computed again.

        Leaving the iteration early (or being cancelled) stops the boards' work. `stats` is filled at the end with
        what each board reports. Raises BusyError when a board has no free slot, AnswerError when one can't compute
        this, BoardError when one is lost, hangs, or has moved on to another plan: always naming it.
        """
        seq_id = secrets.randbits(64)
        events: Events = asyncio.Queue()
        clock = asyncio.get_running_loop().time
        for board in self.boards:
            board.subscribe(seq_id, events)
        reusable = len(ids) if reuse else 0

        def opening() -> m.Open:
            options = {
                "plan": self.plan.digest, "sampling": sampling.to_wire(), "max_tokens": max_tokens, "eos": list(eos),
                "logits": logits, "reuse": reusable, "speculate": speculate,
            }  # fmt: skip
            return m.Open(self.plan.epoch, seq_id, options, tuple(ids))

        try:
            # The first board starts when it is opened: the others first. It begins behind what all of them hold.
            for board in self.boards[1:]:
                board.send(opening())
            for _ in self.boards[1:]:
                opened = _opened(*await self._event(events, ANSWER_TIMEOUT_S))
                reusable = min(reusable, opened.reused)
                speculate = speculate and opened.batches
            self.boards[0].send(opening())
            expected = len(ids)
            held: dict[int, bytes] = {}
            while True:
                board, message = await self._event(events, None)
                match message:
                    case m.Failed():
                        _opened(board, message)
                    case m.Logits() if expected <= message.position < expected + m.MAX_CHOICES:
                        held[message.position] = message.data
                    case m.Tokens() if message.position <= expected:
                        now, end = clock(), message.position + len(message.ids)
                        for token in message.ids[expected - message.position :]:
                            finish = m.FINISH[message.finish] if expected == end - 1 else ""
                            expected += 1
                            yield Chosen(expected - 1, token, finish, now, held.pop(expected - 1, None))
                        if message.finish and expected == end:
                            return
        finally:
            await self._close_sequence(seq_id, events, stats)

    async def _event(self, events: Events, timeout_s: float | None) -> tuple[BoardClient, m.Message]:
        """Return the next message of a sequence from any board. Raises the BoardError of the first board that is lost.

        Without `timeout_s` the boards may compute for as long as they make progress, but not idle.
        """
        getter = asyncio.ensure_future(events.get())
        losses = {b.lost for b in self.boards}
        waited: set[asyncio.Future[Any]] = {getter, *losses}
        try:
            wait_s = PING_EVERY_S if timeout_s is None else timeout_s
            while True:
                await asyncio.wait(waited, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if timeout_s is not None or getter.done() or any(lost.done() for lost in losses):
                    break
                if all(board.idle_s > STALL_TIMEOUT_S for board in self.boards):
                    raise BoardError(f"the answer stalled: no board has had work for {STALL_TIMEOUT_S:g} s. Ask again.")
            # A dead board also makes its neighbours report a broken link; name the dead one.
            if getter.done() and not _is_link_failure(getter.result()[1]):
                return getter.result()
            if getter.done():
                await asyncio.wait(losses, timeout=PONG_TIMEOUT_S + PING_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            for board in self.boards:
                if board.lost.done():
                    raise board.lost.result()
            if getter.done():
                return getter.result()
            raise BoardError(f"no board answered within {wait_s:g} s")
        finally:
            getter.cancel()

    async def _close_sequence(
        self, seq_id: int, events: Events, stats: dict[str, SequenceStats] | None
    ) -> None:
        waiting = [b for b in self.boards if not b.lost.done()]
        for board in waiting:
            with contextlib.suppress(Exception):  # it may be lost at this very moment
                board.send(m.Close(self.plan.epoch, seq_id))
        with contextlib.suppress(TimeoutError, BoardError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                while waiting and not any(b.lost.done() for b in waiting):
                    board, message = await self._event(events, _CLOSE_TIMEOUT_S)
                    if isinstance(message, m.Closed) and board in waiting:
                        waiting.remove(board)
                        told = SequenceStats.from_dict(message.stats)
                        if stats is not None and told is not None:
                            stats[board.name] = told
        for board in self.boards:
            board.unsubscribe(seq_id)


def _is_link_failure(message: m.Message) -> bool:
    return isinstance(message, m.Failed) and m.FAILURES[message.code] == "link"


def _opened(board: BoardClient, message: m.Message) -> m.Opened:
    """Return the message. Raises what a Failed means, and BoardError for any other."""
    if isinstance(message, m.Failed):
        if m.FAILURES[message.code] == "busy":
            raise BusyError(f"board {board.name} is busy: {message.reason}", board.name)
        kind = AnswerError if m.FAILURES[message.code] in ("error", "unknown") else BoardError
        raise kind(str(board.error(message.reason)), board.name)
    if not isinstance(message, m.Opened):
        raise BoardError(str(board.error(f"answered an open with {type(message).__name__.lower()}")), board.name)
    return message
