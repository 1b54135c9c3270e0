"""A connection to one board: every wait ends with an answer, or with an error that names the board."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from edgellm.config import CONNECT_TIMEOUT_S, PING_EVERY_S, PONG_TIMEOUT_S, STEP_TIMEOUT_S
from edgellm.errors import BoardError
from edgellm.wire import messages as m
from edgellm.wire.credentials import Credentials, manager_name
from edgellm.wire.dial import connect
from edgellm.wire.peer import Peer
from edgellm.wire.status import BoardStatus

ANSWER_TIMEOUT_S = 30.0
_MAX_REQUEST = (1 << 32) - 1
_MAX_UNREAD = 1 << 17  # messages of one sequence: more than an answer has tokens
_Question = m.AskStatus | m.Claim | m.Assign | m.Commit | m.Reach | m.Trace
_Answer = TypeVar("_Answer", m.Status, m.Claimed, m.Assigned, m.Committed, m.Reached, m.Traced)
_T = TypeVar("_T")

Events = asyncio.Queue[tuple["BoardClient", m.Message]]  # messages of one sequence, and who sent each


class BoardClient:
    """The connection to a board of this name at HOST:PORT, over TLS if there are credentials.

    `lost` is done, with the error to raise, once the connection has ended or the board has stopped answering. What
    nobody asked for is dropped.
    """

    def __init__(self, name: str, host: str, port: int, tls: Credentials | None = None):
        self.name, self.host, self.port = name, host, port
        self._tls = tls
        self.peer: Peer | None = None
        self.lost: asyncio.Future[BoardError] = asyncio.get_running_loop().create_future()
        self._requests = 0  # the number of the last question
        self._answers: dict[int, asyncio.Queue[m.Message]] = {}  # to questions, by their number
        self._pinged = 0  # the number of the last ping
        self._pong: asyncio.Future[m.Pong] | None = None  # its answer
        self._sequences: dict[int, Events] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._idle_since_s: float | None = None

    @property
    def idle_s(self) -> float:
        """Seconds for which the board has had nothing to compute, as far as its pongs tell."""
        return 0.0 if self._idle_since_s is None else asyncio.get_running_loop().time() - self._idle_since_s

    async def connect(self, timeout_s: float = CONNECT_TIMEOUT_S) -> "BoardClient":
        """Dial and greet, and watch from then on: a board that stops answering pings is lost. Raises BoardError if it
        can't be reached."""
        me = m.Hello("manager", manager_name(self._tls))
        self.peer = await connect(
            self.host, self.port, me, self._message, self._lost, board=self.name, tls=self._tls, timeout_s=timeout_s
        )
        self._watcher = asyncio.create_task(self._watch())
        return self

    def send(self, message: m.Message) -> None:
        """Write a message; nothing happens on a connection that is lost."""
        if self.peer is not None:
            self.peer.send(message)

    async def ask(self, question: _Question, answer: type[_Answer], timeout_s: float = ANSWER_TIMEOUT_S) -> _Answer:
        """Send `question` and return its answer, of type `answer`. Raises BoardError if the board is lost, or
        `timeout_s` passes first. Any number of tasks may ask at once."""
        async with aclosing(self.ask_for(1, question, answer, timeout_s)) as answers:
            return await anext(answers)

    async def ask_for(
        self, count: int, question: _Question, answer: type[_Answer], timeout_s: float = ANSWER_TIMEOUT_S
    ) -> AsyncGenerator[_Answer, None]:
        """Send `question` and yield its `count` answers, each within `timeout_s`. Raises BoardError as `ask` does."""
        self._requests = self._requests % _MAX_REQUEST + 1
        number, queue = self._requests, asyncio.Queue[m.Message](count)
        self._answers[number] = queue
        try:
            self.send(replace(question, request=number))
            for _ in range(count):
                message = await self.receive(queue, timeout_s, f"no {answer.__name__.lower()}")
                if not isinstance(message, answer):
                    raise self.error(f"answered {type(question).__name__} with {type(message).__name__}")
                yield message
        finally:
            del self._answers[number]

    async def receive(self, queue: asyncio.Queue[_T], timeout_s: float, missing: str) -> _T:
        """Return the next item of `queue`. Raises BoardError if the board is lost or `timeout_s` passes first."""
        getter = asyncio.ensure_future(queue.get())
        try:
            waited: set[asyncio.Future[Any]] = {getter, self.lost}
            await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                return getter.result()
            if self.lost.done():
                raise self.lost.result()
            raise self.error(f"{missing} within {timeout_s:g} s")
        finally:
            getter.cancel()

    async def status(self, timeout_s: float = ANSWER_TIMEOUT_S) -> BoardStatus:
        """Return the board's status."""
        return BoardStatus.from_dict(self.name, (await self.ask(m.AskStatus(), m.Status, timeout_s)).content)

    def subscribe(self, seq_id: int, queue: Events) -> None:
        """Put messages of this sequence into `queue` from now on."""
        self._sequences[seq_id] = queue

    def unsubscribe(self, seq_id: int) -> None:
        """Ignore messages of this sequence from now on."""
        self._sequences.pop(seq_id, None)

    def error(self, reason: str) -> BoardError:
        """Return an error that names the board and its address."""
        return BoardError(f"board {self.name} ({self.host}:{self.port}): {reason}", self.name)

    def close(self) -> None:
        """Hang up; whoever waits for an answer is told."""
        self._give_up("the connection was closed")
        if self._watcher is not None:
            self._watcher.cancel()
        if self.peer is not None:
            self.peer.close()

    def _message(self, peer: Peer, message: m.Message) -> None:
        if isinstance(message, m.Pong):
            if message.number == self._pinged and self._pong is not None and not self._pong.done():
                self._pong.set_result(message)
            return
        seq_id: int | None = getattr(message, "seq_id", None)
        if seq_id is not None:
            events = self._sequences.get(seq_id)
            if events is not None and events.qsize() < _MAX_UNREAD:
                events.put_nowait((self, message))
            elif events is not None:
                peer.refuse(f"{_MAX_UNREAD} messages of one sequence lie unread")
        elif (answers := self._answers.get(getattr(message, "request", 0))) is not None and not answers.full():
            answers.put_nowait(message)

    def _lost(self, peer: Peer, reason: str) -> None:
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(self.error(reason))

    async def _watch(self) -> None:
        """Ping. Give up on a board that answers no ping, or that has work and finishes no step."""
        clock = asyncio.get_running_loop().time
        steps, progress_s = -1, clock()
        while True:
            pong = await self._ping()
            if pong is None:
                self._give_up(f"has not answered for {PONG_TIMEOUT_S:g} s")
                return
            if pong.steps != steps or pong.waiting:
                self._idle_since_s = None
            elif self._idle_since_s is None:
                self._idle_since_s = clock()
            if pong.steps != steps or not pong.waiting:
                steps, progress_s = pong.steps, clock()
            elif clock() - progress_s > STEP_TIMEOUT_S:
                self._give_up(f"has work but has finished no step for {STEP_TIMEOUT_S:g} s")
                return
            await asyncio.sleep(PING_EVERY_S)

    async def _ping(self) -> m.Pong | None:
        """Return the answer to a ping; None if nothing at all comes from the board for a while, or no answer though it
        had time for a step. As long as bytes come, the pong may stand behind them."""
        assert self.peer is not None
        clock = asyncio.get_running_loop().time
        began_s = clock()
        self._pinged += 1
        self._pong = asyncio.get_running_loop().create_future()
        self.send(m.Ping(self._pinged))
        while not self._pong.done():
            heard_s = max(began_s, self.peer.last_heard_s)
            left_s = min(heard_s + PONG_TIMEOUT_S, began_s + STEP_TIMEOUT_S) - clock()
            if left_s <= 0:
                return None
            await asyncio.wait({self._pong}, timeout=left_s)
        return self._pong.result()
