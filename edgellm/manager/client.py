"""The manager's side of the wire: a connection to every board of a plan, and the answers that come out of them."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from edgellm.config import PING_EVERY_S, PONG_TIMEOUT_S, STALL_TIMEOUT_S, STEP_TIMEOUT_S, Sampling
from edgellm.errors import BoardError, BusyError
from edgellm.plan import Plan
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer, connect

_OPEN_TIMEOUT_S = 30.0
_CLOSE_TIMEOUT_S = 3.0
_ASSIGN_TIMEOUT_S = 900.0  # reading and hashing a section from a slow card


@dataclass(frozen=True)
class Chosen:
    """A token of the answer. `finish` is "" until the last one; `logits` is float32 bytes where asked for."""

    position: int
    token: int
    finish: str
    at_s: float
    logits: bytes | None = field(default=None, repr=False)


class BoardClient:
    """A connection to one board. Every wait ends with an answer or with a BoardError that names the board."""

    def __init__(self, name: str, host: str, port: int):
        self.name, self.host, self.port = name, host, port
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

    async def connect(self) -> "BoardClient":
        """Dial and greet, and keep watch from then on: a board that stops answering pings is lost."""
        me = m.Hello("manager", "edgellm")
        self.peer = await connect(self.host, self.port, me, self._message, self._lost, board=self.name)
        self._watcher = asyncio.create_task(self._watch())
        return self

    def send(self, message) -> None:
        self.peer.send(message)

    async def ask(self, message, answer: type, timeout_s: float = _OPEN_TIMEOUT_S):
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


class ClusterClient:
    """Connections to all boards of a plan, in pipeline order. Use as `async with`."""

    def __init__(self, plan: Plan, addresses: dict[str, tuple[str, int]]):
        self.plan = plan
        self.boards = [BoardClient(name, *addresses[name]) for name in plan.boards]

    async def __aenter__(self) -> "ClusterClient":
        try:
            await _all(b.connect() for b in self.boards)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        for board in self.boards:
            board.close()

    async def generate(
        self, ids: list[int], *, sampling: Sampling, max_tokens: int, eos: tuple[int, ...], logits: bool = False,
        stats: dict[str, dict] | None = None,
    ) -> AsyncIterator[Chosen]:  # fmt: skip
        """Stream the answer to the prompt `ids`, token by token; the last one has a finish reason.

        Leaving the iteration early (or being cancelled) stops the boards' work. `stats` is filled at the end with
        what each board reports. Raises BusyError when a board has no free slot, BoardError when one is lost, hangs or
        can't go on: always naming it.
        """
        seq_id = secrets.randbits(64)
        events: asyncio.Queue = asyncio.Queue()
        clock = asyncio.get_running_loop().time
        for board in self.boards:
            board.subscribe(seq_id, events)
        options = {"sampling": sampling.to_dict(), "max_tokens": max_tokens, "eos": list(eos), "logits": logits}
        try:
            # The first board starts when it is opened: the others first.
            others = self.boards[1:]
            for i, board in enumerate(others, 1):
                needs_ids = i == len(self.boards) - 1
                board.send(m.Open(self.plan.epoch, seq_id, options, tuple(ids) if needs_ids else ()))
            for _ in others:
                _opened(*await self._event(events, _OPEN_TIMEOUT_S))
            self.boards[0].send(m.Open(self.plan.epoch, seq_id, options, tuple(ids)))
            expected, held = len(ids), None
            while True:
                board, message = await self._event(events, None)
                match message:
                    case m.Failed():
                        _opened(board, message)
                    case m.Logits() if message.position == expected:
                        held = message.data
                    case m.Token() if message.position == expected:
                        expected += 1
                        yield Chosen(message.position, message.token, m.FINISH[message.finish], clock(), held)
                        held = None
                        if message.finish:
                            return
        finally:
            await self._close_sequence(seq_id, events, stats)

    async def _event(self, events: asyncio.Queue, timeout_s: float | None):
        """The next message of a sequence from any board; raises the BoardError of the first board that is lost.

        Without `timeout_s` the boards may compute for as long as they make progress, but not idle.
        """
        getter = asyncio.ensure_future(events.get())
        losses = {b.lost for b in self.boards}
        try:
            wait_s = PING_EVERY_S if timeout_s is None else timeout_s
            while True:
                await asyncio.wait({getter, *losses}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
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
            raise BoardError(f"no board answered within {timeout_s:g} s")
        finally:
            getter.cancel()

    async def _close_sequence(self, seq_id: int, events: asyncio.Queue, stats: dict | None) -> None:
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
                        if stats is not None:
                            stats[board.name] = message.stats
        for board in self.boards:
            board.unsubscribe(seq_id)


async def assign(plan: Plan, addresses: dict[str, tuple[str, int]], boards: list[BoardClient]) -> None:
    """Have every board of the plan load its section, all at once. Raises BoardError with the first one's reason."""

    async def one(board: BoardClient) -> None:
        content = {"plan": plan.to_dict(), "addresses": addresses, "board": board.name}
        answer = await board.ask(m.Assign(content), m.Assigned, _ASSIGN_TIMEOUT_S)
        if answer.content.get("error"):
            raise board.error(str(answer.content["error"]))

    await _all(one(b) for b in boards if b.name in plan.boards)


async def status(board: BoardClient) -> dict:
    """What a board says of itself (docs/wire.md)."""
    return (await board.ask(m.AskStatus(), m.Status)).content


async def connect_all(addresses: dict[str, tuple[str, int]]) -> list[BoardClient]:
    """Connect to every board at once; raises BoardError naming the first that can't be reached."""
    return await _all(BoardClient(name, host, port).connect() for name, (host, port) in addresses.items())


async def _all(coroutines) -> list:
    """All results in order, or the first error with the others cancelled."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _is_link_failure(message) -> bool:
    return isinstance(message, m.Failed) and m.FAILURES[message.code] == "link"


def _opened(board: BoardClient, message) -> None:
    """Raise what a `failed` means; everything else is fine."""
    if isinstance(message, m.Failed):
        if m.FAILURES[message.code] == "busy":
            raise BusyError(f"board {board.name} is busy: {message.reason}", board.name)
        raise board.error(message.reason)
