"""OpenAI's /v1/chat/completions: an answer at once, or as it arrives."""

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgellm.server.asking import (
    Accepted,
    Ask,
    Ended,
    Event,
    Progress,
    Reasoning,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolBegin,
    Usage,
)
from edgellm.server.fields import read
from edgellm.server.openai_answers import ChatCompletion, Error
from edgellm.server.openai_ask import chat_ask, choices_of
from edgellm.server.openai_types import ChatRequest
from edgellm.server.openapi import Operation
from edgellm.server.several import answers, copies
from edgellm.server.sse import SSE, Stream, event, quiet, whole

if TYPE_CHECKING:
    from edgellm.server.app import Server

DONE = b"data: [DONE]\n\n"

OPERATIONS = [
    Operation("POST", "/v1/chat/completions", "Answer a chat", ChatCompletion, Error, ChatRequest, SSE),
]


def routes(server: "Server") -> list[Route]:
    """Return the route of chats."""

    async def chat(request: Request) -> Response:
        body = await read(request, ChatRequest)
        limits = server.settings.limits
        ask = chat_ask(body, request.state.key, limits)
        asks = copies(ask, choices_of(body.n, limits))
        reply = _Reply(asks, body)
        if body.stream:
            return Stream(reply.pieces(server, request), "openai")
        return await whole(request, reply.whole(server, request))

    return [Route("/v1/chat/completions", chat, methods=["POST"])]


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


class _Reply:
    """The reply to one request, with all its choices."""

    def __init__(self, asks: list[Ask], body: ChatRequest):
        self._asks, self._body = asks, body
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        self._model = body.model
        self._wants_logprobs = bool(body.logprobs)

    async def whole(self, server: "Server", request: Request) -> Response:
        """Return the reply once it is complete."""
        choices = [Choice() for _ in self._asks]
        async with aclosing(answers(server.models, self._asks)) as events:
            async for i, happened in events:
                if isinstance(happened, Accepted):
                    self._model = happened.model
                choices[i].add(happened)
        usage = total([choice.ended for choice in choices], len(choices))
        request.state.tokens = usage.prompt, usage.completion
        content = {
            **self._head, "object": "chat.completion", "model": self._model,
            "choices": [self._choice(i, choice) for i, choice in enumerate(choices)], "usage": usage_of(usage),
        }  # fmt: skip
        return Response(msgspec.json.encode(content), media_type="application/json")

    async def pieces(self, server: "Server", request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the reply as server-sent events."""
        ended: list[Ended | None] = [None] * len(self._asks)
        async with aclosing(answers(server.models, self._asks)) as events:
            async for i, happened in events:
                if isinstance(happened, Ended):
                    ended[i] = happened
                    usage = total(ended, len(ended))
                    request.state.tokens = usage.prompt, usage.completion
                if piece := self._piece(i, happened):
                    yield piece
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield event({**self._chunk([]), "usage": usage_of(total(ended, len(ended)))})
        yield DONE

    def _piece(self, i: int, happened: Event) -> bytes:
        if isinstance(happened, Accepted):
            self._model = happened.model
            return self._delta(i, {"role": "assistant", "content": ""})
        if isinstance(happened, Text):
            logprobs = {"content": [logprob_of(t) for t in happened.logprobs]} if happened.logprobs else None
            return self._delta(i, {"content": happened.text}, logprobs)
        if isinstance(happened, Reasoning):
            return self._delta(i, {"reasoning_content": happened.text})
        if isinstance(happened, ToolBegin):
            function: dict[str, Any] = {"name": happened.name, "arguments": ""}
            call = {"index": happened.index, "id": happened.id, "type": "function", "function": function}
            return self._delta(i, {"tool_calls": [call]})
        if isinstance(happened, ToolArguments):
            call = {"index": happened.index, "function": {"arguments": happened.text}}
            return self._delta(i, {"tool_calls": [call]})
        if isinstance(happened, Ended):  # alone, because some clients ignore the rest of its chunk
            return event(self._chunk([{"index": i, "delta": {}, "finish_reason": happened.reason}]))
        if isinstance(happened, Progress) and self._body.return_progress:  # as llama-server tells it
            return event({**self._chunk([]), "prompt_progress": {"total": happened.total, "processed": happened.done}})
        return quiet(happened)

    def _delta(self, i: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> bytes:
        choice: dict[str, Any] = {"index": i, "delta": delta, "finish_reason": None}
        if logprobs is not None:
            choice["logprobs"] = logprobs
        return event(self._chunk([choice]))

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "model": self._model, "choices": choices}

    def _choice(self, i: int, choice: Choice) -> dict[str, Any]:
        assert choice.ended is not None
        text = "".join(choice.text)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not choice.calls else None}
        if choice.reasoning:
            message["reasoning_content"] = "".join(choice.reasoning)
        if choice.calls:
            message["tool_calls"] = [
                {"id": begin.id, "type": "function", "function": {"name": begin.name, "arguments": "".join(pieces)}}
                for begin, pieces in choice.calls
            ]
        told: dict[str, Any] = {"index": i, "message": message, "finish_reason": choice.ended.reason}
        if self._wants_logprobs:
            told["logprobs"] = {"content": [logprob_of(t) for t in choice.logprobs]}
        return told


def total(ended: Sequence[Ended | None], n: int) -> Usage:
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


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return a usage as OpenAI tells it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def logprob_of(token: TokenLogprob) -> dict[str, Any]:
    """Return a token's logprobs as OpenAI tells them."""
    return {**_one_logprob(token), "top_logprobs": [_one_logprob(t) for t in token.top]}


def _one_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.data)}
