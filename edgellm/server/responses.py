"""OpenAI's /v1/responses, stateless: an answer at once, or as typed events."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgellm.server.asking import Accepted, Ask, Ended, answer, primed
from edgellm.server.errors import ApiError
from edgellm.server.fields import read
from edgellm.server.openai_answers import Error, ResponseObject
from edgellm.server.openapi import Operation
from edgellm.server.responses_ask import responses_ask
from edgellm.server.responses_items import Items, new_id
from edgellm.server.responses_types import ResponsesRequest
from edgellm.server.sse import SSE, Stream, event, quiet, whole

if TYPE_CHECKING:
    from edgellm.server.app import Server

OPERATIONS = [
    Operation("POST", "/v1/responses", "Answer, statelessly", ResponseObject, Error, ResponsesRequest, SSE),
]


def routes(server: "Server") -> list[Route]:
    """Return the route of responses."""

    async def respond(request: Request) -> Response:
        body = await read(request, ResponsesRequest)
        reply = _Reply(responses_ask(body, request.state.key, server.settings.limits), body)
        if body.stream:
            return Stream(reply.pieces(server, request), "openai", failed=reply.failed)
        return await whole(request, reply.whole(server, request))

    return [Route("/v1/responses", respond, methods=["POST"])]


class _Reply:
    """The reply to one request."""

    def __init__(self, ask: Ask, body: ResponsesRequest):
        self._ask, self._body = ask, body
        self._id, self._created_s = new_id("resp"), int(time.time())
        self._items = Items()
        self._model = body.model
        self._sequence = 0

    async def whole(self, server: "Server", request: Request) -> Response:
        """Return the reply once it is complete."""
        ended: Ended | None = None
        async with aclosing(answer(server.models, self._ask)) as events:
            async for happened in events:
                if isinstance(happened, Accepted):
                    self._model = happened.model
                elif isinstance(happened, Ended):
                    ended = happened
                else:
                    self._items.add(happened)
        self._items.end()
        assert ended is not None
        self._count(request, ended)
        return Response(msgspec.json.encode(self._response(ended)), media_type="application/json")

    async def pieces(self, server: "Server", request: Request) -> AsyncGenerator[bytes, None]:
        """Yield the reply as server-sent events."""
        async with aclosing(primed(answer(server.models, self._ask))) as events:
            async for happened in events:
                if isinstance(happened, Accepted):
                    self._model = happened.model
                    yield self._event("response.created", response=self._response())
                    yield self._event("response.in_progress", response=self._response())
                elif piece := quiet(happened):
                    yield piece
                elif isinstance(happened, Ended):
                    for name, fields in self._items.end():
                        yield self._event(name, **fields)
                    self._count(request, happened)
                    response = self._response(happened)
                    yield self._event(f"response.{response['status']}", response=response)
                else:
                    for name, fields in self._items.add(happened):
                        yield self._event(name, **fields)

    def failed(self, error: ApiError) -> bytes:
        """Return the event that ends a stream early."""
        return self._event("response.failed", response=self._response(error=error))

    def _event(self, name: str, /, **fields: Any) -> bytes:
        content = {"type": name, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event(content, name)

    def _count(self, request: Request, ended: Ended) -> None:
        request.state.tokens = ended.usage.prompt, ended.usage.completion

    def _response(self, ended: Ended | None = None, error: ApiError | None = None) -> dict[str, Any]:
        body, incomplete = self._body, None
        status = "in_progress" if ended is None else "completed"
        if error is not None:
            status = "failed"
        elif ended is not None and ended.reason == "length":
            status, incomplete = "incomplete", {"reason": "max_output_tokens"}
        format_ = body.text.format if body.text is not None and body.text.format is not None else {"type": "text"}
        reasoning = body.reasoning
        return {
            "id": self._id, "object": "response", "created_at": self._created_s, "status": status,
            "error": _error(error) if error is not None else None, "incomplete_details": incomplete,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "model": self._model,
            "output": self._items.items, "parallel_tool_calls": self._ask.parallel, "previous_response_id": None,
            "reasoning": {"effort": reasoning and reasoning.effort, "summary": None}, "store": False,
            "temperature": body.temperature, "text": {"format": format_},
            "tool_choice": body.tool_choice if body.tool_choice is not None else "auto", "tools": body.tools or [],
            "top_p": body.top_p, "truncation": "disabled", "user": body.user, "metadata": body.metadata or {},
            "usage": _usage(ended) if ended is not None else None,
        }  # fmt: skip


def _error(error: ApiError) -> dict[str, Any]:
    return {"code": error.code or "server_error", "message": str(error)}


def _usage(ended: Ended) -> dict[str, Any]:
    usage = ended.usage
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
