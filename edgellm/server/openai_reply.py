"""A reply of OpenAI's with all its choices, complete or as it arrives: what chats and completions share."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from edgellm.server.asking import (
    Accepted,
    Ask,
    Ended,
    Event,
    Reasoning,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolBegin,
    Usage,
)
from edgellm.server.openai_types import StreamOptions
from edgellm.server.several import answers
from edgellm.server.sse import event

if TYPE_CHECKING:
    from edgellm.server.app import Server

_DONE = b"data: [DONE]\n\n"


@dataclass
class Choice:
    """One of the answers, as far as it has come."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    calls: list[tuple[ToolBegin, list[str]]] = field(default_factory=list)
    ended: Ended | None = None

    def add(self, happened: Event) -> None:
        """Take in what has happened."""
        if isinstance(happened, Text):
            self.text.append(happened.text)
            self.logprobs += happened.logprobs
        elif isinstance(happened, Reasoning):
            self.reasoning.append(happened.text)
        elif isinstance(happened, ToolBegin):
            self.calls.append((happened, []))
        elif isinstance(happened, ToolArguments):
            self.calls[-1][1].append(happened.text)
        elif isinstance(happened, Ended):
            self.ended = happened


class Reply(ABC):
    """The reply to the questions `asks`, of which each `n` in a row have the same prompt."""

    def __init__(self, model: str, asks: list[Ask], n: int, stream: StreamOptions | None):
        self._model, self._asks, self._n = model, asks, n
        self._wants_usage = stream is not None and stream.include_usage

    @abstractmethod
    def _content(self, choices: list[Choice]) -> dict[str, Any]:
        """Return the reply once it is complete, without its usage."""

    @abstractmethod
    def _piece(self, i: int, happened: Event) -> bytes:
        """Return what a stream tells of an event of choice `i`, b"" for nothing."""

    @abstractmethod
    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a piece of a stream with these choices."""

    async def whole(self, server: "Server", request: Request) -> Response:
        """Return the reply once it is complete."""
        choices = [Choice() for _ in self._asks]
        async with aclosing(self._events(server, request)) as events:
            async for i, happened in events:
                choices[i].add(happened)
        usage = _total([choice.ended for choice in choices], self._n)
        content = {**self._content(choices), "usage": _usage_of(usage)}
        return Response(msgspec.json.encode(content), media_type="application/json")

    async def pieces(self, server: "Server", request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the reply as server-sent events."""
        ended: list[Ended | None] = [None] * len(self._asks)
        async with aclosing(self._events(server, request)) as events:
            async for i, happened in events:
                if isinstance(happened, Ended):
                    ended[i] = happened
                if piece := self._piece(i, happened):
                    yield piece
        if self._wants_usage:
            yield event({**self._chunk([]), "usage": _usage_of(_total(ended, self._n))})
        yield _DONE

    async def _events(self, server: "Server", request: Request) -> AsyncGenerator[tuple[int, Event], None]:
        """Yield the events of all choices; the access log learns the tokens of those that have ended."""
        ended: list[Ended | None] = [None] * len(self._asks)
        async with aclosing(answers(server.models, self._asks)) as events:
            async for i, happened in events:
                if isinstance(happened, Accepted):
                    self._model = happened.model
                elif isinstance(happened, Ended):
                    ended[i] = happened
                    usage = _total(ended, self._n)
                    request.state.tokens = usage.prompt, usage.completion
                yield i, happened


def _total(ended: Sequence[Ended | None], n: int) -> Usage:
    """Return the usage of the answers that have ended; of `n` in a row, which have the same prompt, it counts once."""
    usage = Usage()
    for i in range(0, len(ended), n):
        told = [e.usage for e in ended[i : i + n] if e is not None]
        prompt, cached = (told[0].prompt, told[0].cached) if told else (0, 0)
        completion, reasoning = sum(u.completion for u in told), sum(u.reasoning for u in told)
        usage = Usage(
            usage.prompt + prompt, usage.cached + cached, usage.completion + completion, usage.reasoning + reasoning
        )  # fmt: skip
    return usage


def _usage_of(usage: Usage) -> dict[str, Any]:
    """Return a usage as OpenAI tells it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }
