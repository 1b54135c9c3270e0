"""The order of one answer's messages from the manager's side, without I/O: Open → Queued → Opened → Start → Tokens →
Close → Closed (docs/wire.md, "One answer").

    asking = Asking(epoch, seq_id, ("pi1", "pi2"), ids, options)
    for board, message in asking.open(wait_s=60):
        send(board, message)
    sends, events = asking.receive("pi1", message)
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgellm.errors import LocalProtocolError, RemoteProtocolError
from edgellm.wire import messages as m


class State(enum.Enum):
    """How far an answer is."""

    NEW = "nothing is sent"
    OPENING = "the first board is asked for a slot"
    IN_LINE = "no slot is free: the sequence stands in line at the first board"
    RESERVING = "the first board has given a slot, and the others are asked for the same one"
    OPEN = "every board has the slot"
    STARTED = "the first board has begun"
    ENDED = "the last token has come"
    FAILED = "a board can't go on"
    CLOSED = "the boards are told that nothing more is wanted"


@dataclass(frozen=True)
class InLine:
    """The sequence moved in the line; 1 is next."""

    position: int


@dataclass(frozen=True)
class Token:
    """A token of the answer. `finish` is "" until the last one. `logits` are float32 bytes and `logprobs` (token id,
    logarithm) pairs, first this token's, where asked for."""

    position: int
    token: int
    finish: str
    logits: bytes | None = field(default=None, repr=False)
    logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Computed:
    """The prompt's first `position` tokens are computed."""

    position: int


@dataclass(frozen=True)
class Vector:
    """The prompt's embedding, float32 bytes, in place of tokens."""

    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Failure:
    """A board can't go on with the sequence. `other` is the board that it can't reach, if that is why."""

    board: str
    code: str  # one of FAILURES
    reason: str
    other: str


@dataclass(frozen=True)
class Stray:
    """A board sends tokens, which only the last one may choose. Told once for each board."""

    board: str


@dataclass(frozen=True)
class Done:
    """A board has closed the sequence; `stats` is what it says it did."""

    board: str
    stats: Mapping[str, Any]


_FROM_LAST = m.Tokens | m.Logits | m.Logprobs | m.Prefilled | m.Embedded
Event = InLine | Computed | Token | Vector | Failure | Stray | Done
Sends = list[tuple[str, m.Message]]


class Asking:
    """One sequence on `boards`, in pipeline order. `ids` are the prompt, `options` those of every Open.

    What a board says that isn't due is ignored: a message of another sequence, Tokens of any but the last board, an
    Opened that nobody asked for.
    """

    def __init__(
        self, epoch: int, seq_id: int, boards: Sequence[str], ids: Sequence[int], options: Mapping[str, Any]
    ):
        self.state = State.NEW
        self.reuse, self.batches = 0, False  # once it is OPEN: where all boards can begin, and whether all verify
        self._begins: set[int] | None = None  # where they can, besides at 0, if one can't begin anywhere before `reuse`
        self.seq_id = seq_id
        self._epoch, self._boards = epoch, tuple(boards)
        self._ids, self._options = tuple(ids), dict(options)
        self._expected = len(self._ids)  # the next token's position
        self._waited: set[str] = set()  # boards whose answer to Open, or to Close, is due
        self._strays: set[str] = set()
        self._logits: dict[int, bytes] = {}
        self._logprobs: dict[int, tuple[tuple[int, float], ...]] = {}

    def open(self, wait_s: float) -> Sends:
        """Return what asks the first board for a slot, in its turn, for up to `wait_s`."""
        self._must_be(State.NEW)
        self.state = State.OPENING
        return [(self._boards[0], self._open({"wait_s": wait_s}))]

    def start(self, speculate: bool) -> Sends:
        """Return what has the first board begin; with drafts if `speculate` and all boards can verify them."""
        self._must_be(State.OPEN)
        self.state = State.STARTED
        start = m.Start(self._epoch, self.seq_id, self.reuse, speculate and self.batches)
        return [(self._boards[0], start)]

    def close(self) -> Sends:
        """Return what frees the slots; nothing if that is said already."""
        if self.state in (State.NEW, State.CLOSED):
            return []
        self.state, self._waited = State.CLOSED, set(self._boards)
        return [(board, m.Close(self._epoch, self.seq_id)) for board in self._boards]

    @property
    def closed_by_all(self) -> bool:
        """Whether every board has answered Close."""
        return self.state is State.CLOSED and not self._waited

    def receive(self, board: str, message: m.Message) -> tuple[Sends, list[Event]]:
        """Take a board's message; return what to send now, and what has happened. Raises RemoteProtocolError for an
        answer to Open that is none."""
        if getattr(message, "seq_id", None) != self.seq_id or getattr(message, "epoch", None) != self._epoch:
            return [], []
        if self.state is State.STARTED and not isinstance(message, m.Failed):
            return [], self._token(board, message)
        if self.state is State.CLOSED:
            return [], self._closed(board, message)
        if isinstance(message, m.Failed):
            self.state = State.FAILED
            return [], [Failure(board, m.FAILURES[message.code], message.reason, message.board)]
        if self.state in (State.OPENING, State.IN_LINE):
            return self._opening(board, message)
        if self.state is State.RESERVING:
            self._reserving(board, message)
            return [], []
        return [], []

    # Inside

    def _must_be(self, state: State) -> None:
        if self.state is not state:
            raise LocalProtocolError(f"sequence {self.seq_id:x}: {self.state.value}; expected: {state.value}")

    def _open(self, more: Mapping[str, Any]) -> m.Open:
        return m.Open(self._epoch, self.seq_id, {**self._options, **more}, self._ids)

    def _opening(self, board: str, message: m.Message) -> tuple[Sends, list[Event]]:
        if board != self._boards[0]:
            return [], []
        if isinstance(message, m.Queued):
            self.state = State.IN_LINE
            return [], [InLine(message.position)]
        opened = _opened(message)
        self.reuse, self.batches = opened.reused, opened.batches
        self._waited = set(self._boards)
        self.state = State.RESERVING
        self._agree(board, opened)
        same = {"reuse": opened.reused, "slot": opened.slot}
        return [(other, self._open(same)) for other in self._boards[1:]], []

    def _reserving(self, board: str, message: m.Message) -> None:
        if board in self._waited:
            self._agree(board, _opened(message))

    def _agree(self, board: str, opened: m.Opened) -> None:
        """Take what a board says of its slot; when all have, begin as far on as all of them can."""
        self._waited.remove(board)
        self.reuse, self.batches = min(self.reuse, opened.reused), self.batches and opened.batches
        if opened.checkpoints:
            own = set(opened.checkpoints)
            self._begins = own if self._begins is None else self._begins & own
        if not self._waited:
            self.state = State.OPEN
            if self._begins is not None:
                self.reuse = max((position for position in self._begins if position <= self.reuse), default=0)

    def _token(self, board: str, message: m.Message) -> list[Event]:
        if board != self._boards[-1]:
            if board in self._strays or not isinstance(message, _FROM_LAST):
                return []
            self._strays.add(board)
            return [Stray(board)]
        found: list[Event] = []
        match message:
            case m.Prefilled() if message.position <= len(self._ids):
                found.append(Computed(message.position))
            case m.Embedded():
                self.state = State.ENDED
                found.append(Vector(message.data))
            case m.Logits() if self._is_near(message.position):
                self._logits[message.position] = message.data
            case m.Logprobs() if self._is_near(message.position):
                self._logprobs[message.position] = tuple(zip(message.ids, message.logprobs, strict=True))
            case m.Tokens() if message.position <= self._expected:
                end = message.position + len(message.ids)
                for token in message.ids[self._expected - message.position :]:
                    at, self._expected = self._expected, self._expected + 1
                    finish = m.FINISH[message.finish] if at == end - 1 else ""
                    found.append(Token(at, token, finish, self._logits.pop(at, None), self._logprobs.pop(at, ())))
                if message.finish and self._expected == end:
                    self.state = State.ENDED
        return found

    def _is_near(self, position: int) -> bool:
        """Return whether this is a token that may come with the next Tokens."""
        return self._expected <= position < self._expected + m.MAX_CHOICES

    def _closed(self, board: str, message: m.Message) -> list[Event]:
        if not isinstance(message, m.Closed) or board not in self._waited:
            return []
        self._waited.remove(board)
        return [Done(board, message.stats)]


def _opened(message: m.Message) -> m.Opened:
    if not isinstance(message, m.Opened):
        raise RemoteProtocolError(f"answered an open with {type(message).__name__.lower()}")
    return message
