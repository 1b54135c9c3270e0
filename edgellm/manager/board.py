"""A connection to one board: every wait ends with an answer, or with an error that names the board."""

import asyncio

from edgellm.config import CONNECT_TIMEOUT_S, PING_EVERY_S, PONG_TIMEOUT_S, STEP_TIMEOUT_S
from edgellm.errors import BoardError
from edgellm.wire import messages as m
from edgellm.wire.credentials import Credentials
from edgellm.wire.dial import connect
from edgellm.wire.peer import Peer
from edgellm.wire.status import BoardStatus

ANSWER_TIMEOUT_S = 30.0


class BoardClient:
    """A board of this name at HOST:PORT, spoken to over `tls` if there is one."""

    def __init__(self, name: str, host: str, port: int, tls: Credentials | None = None):
        self.name, self.host, self.port = name, host, port
        self._tls = tls
        self.peer: Peer | None = None
        self.lost = asyncio.get_running_loop().create_future()
        self._answers: dict[type, asyncio.Queue] = {}
        self._sequences: dict[int, asyncio.Queue] = {}
        self._watcher: asyncio.Task | None = None
        self._idle_since_s: float | None = None

    @property
    def idle_s(self) -> float:
        """For how long the board has had nothing to compute, as far as its pongs tell."""
        return 0.0 if self._idle_since_s is None else asyncio.get_running_loop().time() - self._idle_since_s

    async def connect(self, timeout_s: float = CONNECT_TIMEOUT_S) -> "BoardClient":
        """Dial and greet, and keep watch from then on: a board that stops answering pings is lost. Raises BoardError
        if it can't be reached."""
        me = m.Hello("manager", "edgellm")
        self.peer = await connect(
            self.host, self.port, me, self._message, self._lost, board=self.name, tls=self._tls, timeout_s=timeout_s
        )
        self._watcher = asyncio.create_task(self._watch())
        return self

    def send(self, message) -> None:
        self.peer.send(message)

    async def ask(self, message, answer: type, timeout_s: float = ANSWER_TIMEOUT_S):
        """Send (unless `message` is None), and wait for the next message of type `answer`."""
        queue = self._answers.setdefault(answer, asyncio.Queue())
        if message is not None:
            while not queue.empty():  # answers that came too late for whoever asked
                queue.get_nowait()
            self.send(message)
        return await self.receive(queue, timeout_s, f"no {answer.__name__.lower()}")

    async def receive(self, queue: asyncio.Queue, timeout_s: float | None, missing: str):
        """The next item of `queue`; raises BoardError if the board is lost or `timeout_s` passes before."""
        getter = asyncio.ensure_future(queue.get())
        try:
            await asyncio.wait({getter, self.lost}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                return getter.result()
            if self.lost.done():
                raise self.lost.result()
            raise self.error(f"{missing} within {timeout_s:g} s")
        finally:
            getter.cancel()

    async def status(self, timeout_s: float = ANSWER_TIMEOUT_S) -> BoardStatus:
        """Return what the board says of itself."""
        return BoardStatus.from_dict(self.name, (await self.ask(m.AskStatus(), m.Status, timeout_s)).content)

    def subscribe(self, seq_id: int, queue: asyncio.Queue) -> None:
        """Messages of this sequence go to `queue`, as (board client, message)."""
        self._sequences[seq_id] = queue

    def unsubscribe(self, seq_id: int) -> None:
        self._sequences.pop(seq_id, None)

    def error(self, reason: str) -> BoardError:
        return BoardError(f"board {self.name} ({self.host}:{self.port}): {reason}", self.name)

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        if self.peer is not None:
            self.peer.close()

    def _message(self, peer: Peer, message) -> None:
        seq_id = getattr(message, "seq_id", None)
        if seq_id in self._sequences:
            self._sequences[seq_id].put_nowait((self, message))
        elif type(message) in self._answers:
            self._answers[type(message)].put_nowait(message)

    def _lost(self, peer: Peer, reason: str) -> None:
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(self.error(reason))

    async def _watch(self) -> None:
        """Ping; give up on a board that answers none, or that is asked to compute and finishes no step."""
        pongs = self._answers.setdefault(m.Pong, asyncio.Queue())
        clock = asyncio.get_running_loop().time
        number, steps, progress_s = 0, -1, clock()
        while True:
            number += 1
            self.send(m.Ping(number))
            try:
                async with asyncio.timeout(PONG_TIMEOUT_S):
                    pong = await pongs.get()
            except TimeoutError:
                self._give_up(f"does not answer for {PONG_TIMEOUT_S:g} s")
                return
            if pong.steps != steps or pong.waiting:
                self._idle_since_s = None
            elif self._idle_since_s is None:
                self._idle_since_s = clock()
            if pong.steps != steps or not pong.waiting:
                steps, progress_s = pong.steps, clock()
            elif clock() - progress_s > STEP_TIMEOUT_S:
                self._give_up(f"has work and finishes no step for {STEP_TIMEOUT_S:g} s")
                return
            await asyncio.sleep(PING_EVERY_S)
