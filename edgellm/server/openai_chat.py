"""OpenAI's /v1/chat/completions: an answer at once, or as it arrives."""

import secrets
import time
from typing import TYPE_CHECKING, Any

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
)
from edgellm.server.fields import read
from edgellm.server.openai_answers import ChatCompletion, Error
from edgellm.server.openai_ask import chat_ask, choices_of
from edgellm.server.openai_reply import Choice, Reply
from edgellm.server.openai_types import ChatRequest
from edgellm.server.openapi import Operation
from edgellm.server.several import copies
from edgellm.server.sse import SSE, Stream, event, quiet, whole

if TYPE_CHECKING:
    from edgellm.server.app import Server

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


class _Reply(Reply):
    """The reply to one request, with all its choices."""

    def __init__(self, asks: list[Ask], body: ChatRequest):
        super().__init__(body.model, asks, len(asks), body.stream_options)
        self._body = body
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        self._wants_logprobs = bool(body.logprobs)

    def _content(self, choices: list[Choice]) -> dict[str, Any]:
        told = [self._choice(i, choice) for i, choice in enumerate(choices)]
        return {**self._head, "object": "chat.completion", "model": self._model, "choices": told}

    def _piece(self, i: int, happened: Event) -> bytes:
        if isinstance(happened, Accepted):
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


def logprob_of(token: TokenLogprob) -> dict[str, Any]:
    """Return a token's logprobs as OpenAI tells them."""
    return {**_one_logprob(token), "top_logprobs": [_one_logprob(t) for t in token.top]}


def _one_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.data)}
