"""What any API asks, and what happens while it is answered: the middle between the dialects and edgellm.AsyncClient."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgellm.client import AnswerStream, AsyncClient, Delta, Options
from edgellm.errors import BusyError
from edgellm.manager.answer import Answer
from edgellm.server.line import Held, line_of
from edgellm.server.models import Models
from edgellm.structure import Constraint
from edgellm.text.prepared import Prepared, prepare
from edgellm.text.tool_formats import Piece, Reasoning, Said, ToolArguments, ToolBegin, ToolEnd

__all__ = [
    "Accepted", "Ask", "Ended", "Event", "Progress", "Queued", "Reasoning", "Text", "Timings", "TokenLogprob",
    "ToolArguments", "ToolBegin", "ToolEnd", "Usage", "Waiting", "answer", "primed",
]  # fmt: skip
WAITING_S = 10.0  # nothing for this long: a client is told that the answer goes on
_ACCEPTED_S = 1.0  # a question that boards refuse is refused by then, as long as none of them is lost
_MOST_AHEAD = 64  # events that wait for their reader; then the boards' tokens wait, which take 8 bytes each


@dataclass(frozen=True)
class Ask:
    """A question of any API. `messages` have OpenAI's shape, with texts as contents; `prompt`, in their place, is
    continued without a chat template. `key` is the name of the API key that asks, "" for none."""

    model: str = ""  # "" is the default
    messages: tuple[Mapping[str, Any], ...] = ()
    prompt: str | None = None
    options: Options = field(default_factory=Options)
    tools: tuple[Mapping[str, Any], ...] = ()  # {"type": "function", "function": {…}}
    tool_choice: str = "auto"  # auto, none, required, or the name of a function
    parallel: bool = True
    format: Constraint | None = None
    think: bool | str | None = None  # whether to reason first, or how much
    template: Mapping[str, Any] = field(default_factory=dict)  # further variables of the chat template
    keep_alive_s: float | None = None  # how long the model stays when nobody asks
    key: str = ""


@dataclass(frozen=True)
class Accepted:
    """The question makes sense, and its prompt has so many tokens. The first event of every answer."""

    prompt_tokens: int
    model: str


@dataclass(frozen=True)
class Queued:
    """All slots are taken; position 1 is next. `eta_s` is an estimate, None if nothing is known yet."""

    position: int
    eta_s: float | None = None


@dataclass(frozen=True)
class Progress:
    """So many of the prompt's tokens are computed."""

    done: int
    total: int


@dataclass(frozen=True)
class Waiting:
    """Nothing has happened for a while, and the answer goes on."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token's text, its bytes, and the natural logarithm of its probability; and the likeliest ones in its place."""

    token: str
    data: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class Text:
    """A piece of the answer, which may be empty where there are logprobs."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt, of those that needed no computing, and of the answer with its reasoning."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds: until the model was there, in line for a slot, from asking to the first token and to the last."""

    load_s: float = 0.0
    queue_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0
    drafts: int = 0
    accepted_drafts: int = 0


@dataclass(frozen=True)
class Ended:
    """The answer is complete: stop, length or tool_calls. The last event. `stop` is the stop string that ended it, ""
    if the model did."""

    reason: str
    usage: Usage
    timings: Timings
    stop: str = ""


Event = Accepted | Queued | Progress | Waiting | Text | Reasoning | ToolBegin | ToolArguments | ToolEnd | Ended


class Watched(Protocol):
    """What counts one answer."""

    def saw(self, event: "Event") -> None:
        """Take in an event."""

    def close(self, outcome: str) -> None:
        """Take in the answer's end: "cancelled" or "failed" unless Ended was seen before."""


# What counts the answers of this request, called with the name of the model and the question.
WATCHING: ContextVar[Callable[[str, Ask], Watched] | None] = ContextVar("watching", default=None)


async def answer(models: Models, ask: Ask) -> AsyncGenerator[Event, None]:
    """Yield what happens until the answer is complete. Leaving the iteration ends the answer on the boards at once.

    Raises UnknownModel or Loading of server/models.py, UsageError for what makes no sense, and the errors of
    AsyncClient.
    """
    began_s = time.perf_counter()
    async with models.use(ask.model, ask.keep_alive_s) as (name, client):
        happening = _Happening(name, client, ask, time.perf_counter() - began_s, "" if models.share_cache else ask.key)
        watch = WATCHING.get()
        watched = None if watch is None else watch(name, ask)
        task = asyncio.create_task(happening.follow())
        outcome = "cancelled"
        try:
            async with aclosing(happening.events(task)) as events:
                async for event in events:
                    if watched is not None:
                        watched.saw(event)
                    yield event
        except Exception:
            outcome = "failed"
            raise
        finally:
            if watched is not None:
                watched.close(outcome)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def primed(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """Yield the same events, the first one once the answer is under way: what refuses it is raised before."""
    accepted: Accepted | None = None
    begun = False
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Accepted):
                accepted = event
            elif accepted is not None:
                if not begun:
                    begun = True
                    yield accepted
                yield event


class _Happening:
    """One answer, followed by a task of its own, so that positions and progress come between tokens."""

    def __init__(self, name: str, client: AsyncClient, ask: Ask, load_s: float, cache: str):
        self._name, self._client, self._ask, self._load_s, self._cache = name, client, ask, load_s, cache
        self._events: deque[Event] = deque()
        self._came, self._taken = asyncio.Event(), asyncio.Event()
        self._line = line_of(client)
        self._held = Held(self._line)
        self._prepared = Prepared(ask.messages, (), ask.template, ask.format)
        self._logprobs_held: list[TokenLogprob] = []  # of tokens whose text hasn't come yet
        self._reasons = False  # the last piece was reasoning
        self._reasoning_tokens = 0

    async def events(self, task: asyncio.Task[None]) -> AsyncGenerator[Event, None]:
        """Yield the events of `follow`, which `task` runs, and raise what it raises."""
        task.add_done_callback(lambda _: self._came.set())
        patience_s = _ACCEPTED_S
        while True:
            while self._events:
                yield self._events.popleft()
                self._taken.set()
            if task.done():
                task.result()
                return
            self._came.clear()
            try:
                async with asyncio.timeout(patience_s):
                    await self._came.wait()
            except TimeoutError:
                patience_s = WAITING_S
                yield Waiting()

    async def follow(self) -> None:
        """Ask, and turn deltas into events."""
        if self._ask.prompt is None:
            self._prepared = await asyncio.to_thread(self._prepare)
        reason, stream = "length", self._stream()
        answer = stream.answer
        try:
            async with stream:
                async for delta in stream:
                    self._held.served()
                    for event in self._of(delta):
                        self._add(event)
                    if delta.finish_reason in ("eos", "stop"):
                        reason = "stop"
                    while len(self._events) >= _MOST_AHEAD:
                        self._taken.clear()
                        await self._taken.wait()
        except BusyError as e:
            e.position = self._line.waiting + 1
            e.eta_s = self._line.eta_s(e.position, self._client.plan.slots)
            raise
        finally:
            self._held.ended(bool(answer.tokens))
        parser = self._prepared.parser
        if reason == "stop" and parser is not None and parser.calls:
            reason = "tool_calls"
        stop = answer.stop if reason == "stop" else ""
        self._add(Ended(reason, self._usage(answer), self._timings(answer), stop))

    def _prepare(self) -> Prepared:
        ask = self._ask
        return prepare(
            self._client.asker.tokenizer, ask.messages, tools=ask.tools, tool_choice=ask.tool_choice,
            parallel=ask.parallel, wanted=ask.format, think=ask.think, template=ask.template,
        )  # fmt: skip

    def _stream(self) -> AnswerStream:
        ask = self._ask
        options: Options = {**ask.options, "cache": self._cache, "on_prompt": self._accepted, "on_queue": self._in_line,
                            "on_progress": self._computed}  # fmt: skip
        ready = self._prepared
        if ready.template:
            options["template"] = ready.template
        if ready.constraint is not None:
            options["constraint"] = ready.constraint
        if ready.tools:
            options["tools"] = ready.tools
        if ready.controls:
            options["controls"] = ready.controls
        if "max_tokens" not in options:  # as much as fits
            options["max_tokens"] = self._client.plan.context
        if ask.prompt is not None:
            return self._client.generate(ask.prompt, **options)
        return self._client.chat(ready.messages, **options)

    def _of(self, delta: Delta) -> list[Event]:
        parser = self._prepared.parser
        if parser is None:
            return [Text(delta.text, self._logprobs(delta))] if delta.text or delta.logprobs else []
        self._logprobs_held += self._logprobs(delta)
        ended = delta.finish_reason is not None
        events = [self._told(piece) for piece in parser.feed(delta.text) + (parser.end() if ended else [])]
        if delta.token is not None and self._reasons:
            self._reasoning_tokens += 1
        return [*events, self._told(Said(""))] if ended and self._logprobs_held else events

    def _told(self, piece: Piece) -> Event:
        """Return a piece of the answer as an event. Only text has logprobs."""
        self._reasons = isinstance(piece, Reasoning)
        held, self._logprobs_held = tuple(self._logprobs_held), []
        return Text(piece.text, held) if isinstance(piece, Said) else piece

    def _logprobs(self, delta: Delta) -> tuple[TokenLogprob, ...]:
        if not delta.logprobs:
            return ()
        spelled = [self._spelled(token, logprob) for token, logprob in delta.logprobs]
        first = spelled[0]
        return (TokenLogprob(first.token, first.data, first.logprob, tuple(spelled[1:])),)

    def _spelled(self, token: int, logprob: float) -> TokenLogprob:
        data = self._client.asker.tokenizer.token_bytes(token)
        return TokenLogprob(data.decode(errors="replace"), data, logprob)

    def _usage(self, answer: Answer) -> Usage:
        return Usage(answer.prompt_tokens, answer.reused_tokens, len(answer.tokens), self._reasoning_tokens)

    def _timings(self, answer: Answer) -> Timings:
        return Timings(
            self._load_s, self._held.queue_s, answer.first_token_s or 0.0, answer.total_s, answer.draft_tokens,
            answer.accepted_tokens,
        )  # fmt: skip

    def _accepted(self, count: int) -> None:
        self._add(Accepted(count, self._name))

    def _in_line(self, position: int) -> None:
        self._held.queued()
        self._add_latest(Queued(position, self._line.eta_s(position, self._client.plan.slots)))

    def _computed(self, done: int, total: int) -> None:
        self._held.served()
        self._add_latest(Progress(done, total))

    def _add_latest(self, event: Event) -> None:
        """Add an event in place of one of its kind that nobody has read."""
        if self._events and type(self._events[-1]) is type(event):
            self._events.pop()
        self._add(event)

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._came.set()
