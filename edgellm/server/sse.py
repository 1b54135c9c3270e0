"""Answers that arrive piece by piece: server-sent events and lines of JSON, until the client goes away."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgellm.errors import EdgellmError
from edgellm.server.asking import Event, Progress, Queued, Waiting
from edgellm.server.errors import ApiError, body_of, respond, to_api_error

log = logging.getLogger(__name__)
WRITE_TIMEOUT_S = 60.0  # a client that reads nothing for this long is gone
SSE, NDJSON = "text/event-stream", "application/x-ndjson"
PING = b": ping\n\n"
_T = TypeVar("_T")


class ClientGone(Exception):
    """The client has hung up, or reads nothing."""


def event(content: Any, name: str | None = None) -> bytes:
    """Return a server-sent event; `name` is its type, if the API uses types."""
    head = b"event: " + name.encode() + b"\n" if name is not None else b""
    return head + b"data: " + msgspec.json.encode(content) + b"\n\n"


def comment(text: str) -> bytes:
    """Return a server-sent comment, which clients ignore and which keeps the connection."""
    return b": " + text.encode() + b"\n\n"


def quiet(happened: Event) -> bytes:
    """Return the comment that tells what happens before and between the pieces of an answer; nothing for the rest."""
    if isinstance(happened, Queued):
        eta = f", about {happened.eta_s:.0f} s" if happened.eta_s is not None else ""
        return comment(f"in line, position {happened.position}{eta}")
    if isinstance(happened, Progress):
        return comment(f"prompt: {happened.done} of {happened.total} tokens")
    return PING if isinstance(happened, Waiting) else b""


def line(content: Any) -> bytes:
    """Return a line of JSON."""
    return msgspec.json.encode(content) + b"\n"


class Stream(Response):
    """The response whose body `pieces` yields.

    What is raised before the first piece becomes an ordinary error response; what is raised later goes through
    `failed`, which makes the last piece of it. The pieces end at once when the client goes away. A client that reads
    slowly holds them up: nothing piles up here but the connection's own buffer.
    """

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], api: str, media_type: str = SSE,
        failed: Callable[[ApiError], bytes] | None = None,
    ):  # fmt: skip
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies hand on each piece at once
        super().__init__(None, 200, headers, media_type)
        del self.headers["content-length"]
        self._pieces, self._api, self._begun = pieces, api, False
        self._failed = failed or (lambda error: event(body_of(api, error)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self._send(send), scope["app"].state.ending)
            await _write(send, b"", more=False)
        except ClientGone:
            return
        except Exception as e:
            report(e)
            if not self._begun:
                await respond(self._api, e, scope["path"])(scope, receive, send)
                return
            with contextlib.suppress(ClientGone):
                await _write(send, self._failed(to_api_error(e)))
                await _write(send, b"", more=False)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._pieces) as pieces:
            async for piece in pieces:
                if not self._begun:
                    self._begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await _write(send, piece)


async def whole(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Return what `work` returns, unless the client goes away before: then `work` is cancelled at once."""
    try:
        return await until_gone(request.receive, work, request.app.state.ending)
    except ClientGone:
        return Response(status_code=499)  # nobody reads it; the access log shows it


async def until_gone(receive: Receive, work: Coroutine[Any, Any, _T], ending: asyncio.Event) -> _T:
    """Return what `work` returns. Cancel it when the client hangs up, and raise ClientGone; or when the server is
    `ending`, and raise ApiError. The request's body has been read."""
    working = asyncio.create_task(work)
    others = asyncio.create_task(_hang_up(receive)), asyncio.create_task(ending.wait())
    try:
        await asyncio.wait({working, *others}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if ending.is_set():
            raise ApiError("the server is ending. Ask again in a moment.", 503, code="ending", retry_s=5.0)
        raise ClientGone
    finally:
        for task in (working, *others):
            task.cancel()
        await asyncio.gather(working, *others, return_exceptions=True)


def report(e: Exception) -> None:
    """Log an error that is a bug of ours, with where it was raised."""
    if not isinstance(e, EdgellmError):
        log.error("a request failed", exc_info=e)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write(send: Send, piece: bytes, more: bool = True) -> None:
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await send({"type": "http.response.body", "body": piece, "more_body": more})
    except (TimeoutError, OSError):
        raise ClientGone from None
