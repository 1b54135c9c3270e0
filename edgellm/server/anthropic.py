"""Anthropic's API: messages, and the count of their tokens."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgellm.server.anthropic_answer import Answering
from edgellm.server.anthropic_ask import question
from edgellm.server.anthropic_fields import Answer, Count, CountRequest, Error, MessagesRequest
from edgellm.server.asking import Ask, Ended, answer, primed
from edgellm.server.counting import count
from edgellm.server.errors import body_of
from edgellm.server.fields import read, refuse
from edgellm.server.openapi import Operation
from edgellm.server.sse import SSE, Stream, event, whole

if TYPE_CHECKING:
    from edgellm.server.app import Server

OPERATIONS = [
    Operation("POST", "/v1/messages", "Answer a chat, as Anthropic does", Answer, Error, MessagesRequest, SSE),
    Operation("POST", "/v1/messages/count_tokens", "Count a chat's tokens", Count, Error, CountRequest),
]


def routes(server: "Server") -> list[Route]:
    """Return the routes under /v1/messages."""
    api = _Anthropic(server)
    return [
        Route("/v1/messages", api.messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", api.count_tokens, methods=["POST"]),
    ]


class _Anthropic:
    """Its endpoints."""

    def __init__(self, server: "Server"):
        self._server = server

    async def messages(self, request: Request) -> Response:
        asked = await read(request, MessagesRequest)
        ask = self._question(asked, request)
        answering = Answering(f"msg_{secrets.token_hex(12)}", asked.model)
        told = self._told(request, answering, ask)
        if asked.stream:
            return Stream(_frames(told), "anthropic", SSE, lambda e: event(body_of("anthropic", e), "error"))
        return await whole(request, _last(told, answering))

    async def count_tokens(self, request: Request) -> Response:
        ask = self._question(await read(request, CountRequest), request)
        return JSONResponse({"input_tokens": await count(self._server.models, ask)})

    def _question(self, asked: CountRequest, request: Request) -> Ask:
        limits = self._server.settings.limits
        if not asked.messages:
            raise refuse("messages", "empty, expected at least one")
        for name, items, most in (("messages", asked.messages, limits.messages), ("tools", asked.tools, limits.tools)):
            if items is not None and len(items) > most:
                raise refuse(name, f"{len(items)} of them, at most {most}")
        return question(asked, request.state.key)

    async def _told(self, request: Request, answering: Answering, ask: Ask) -> AsyncGenerator[dict[str, Any], None]:
        async with aclosing(primed(answer(self._server.models, ask))) as events:
            async for happened in events:
                if isinstance(happened, Ended):
                    request.state.tokens = happened.usage.prompt, happened.usage.completion
                for content in answering.feed(happened):
                    yield content


async def _frames(told: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(told):
        async for content in told:
            yield event(content, content["type"])


async def _last(told: AsyncGenerator[dict[str, Any], None], answering: Answering) -> Response:
    async with aclosing(told):
        async for _ in told:
            pass
    return JSONResponse(answering.message)
