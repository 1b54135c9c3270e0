"""The server as an ASGI application: the routes of all dialects behind the guard."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from edgellm.errors import EdgellmError
from edgellm.server import (
    anthropic,
    boards,
    conversations_api,
    health,
    metrics,
    ollama,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    openapi,
    page_chat,
    page_files,
    responses,
    sign_in,
)
from edgellm.server.access import AccessLog
from edgellm.server.boards import Watches
from edgellm.server.conversations_api import Kept
from edgellm.server.errors import ApiError, api_of, respond
from edgellm.server.guard import Guard, Limits
from edgellm.server.keys import Keys
from edgellm.server.metrics import Counting, Metrics
from edgellm.server.models import Models


@dataclass(frozen=True)
class Settings:
    """How the owner wants it. `state` is the folder for what the server keeps; None keeps nothing."""

    keys: Path
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    state: Path | None = None
    history: bool = True
    json_log: bool = False
    share_cache: bool = False  # reuse what boards keep of prompts across keys


@dataclass
class Server:
    """What routes need."""

    models: Models
    settings: Settings
    keys: Keys
    metrics: Metrics
    kept: Kept
    watches: Watches


def make_app(models: Models, settings: Settings) -> Starlette:
    """Return the application. It opens `models` when it starts, and closes them when it ends.

    Raises UsageError for a file of keys that can't be read.
    """
    models.share_cache = settings.share_cache
    kept = Kept(settings.state, settings.history)
    server = Server(models, settings, Keys(settings.keys), Metrics(models), kept, Watches(models))
    rooms = (
        openai_chat, openai_completions, openai_models, openai_embeddings, responses, ollama, anthropic,
        health, metrics, page_files, sign_in, conversations_api, page_chat, boards,
    )  # fmt: skip
    routes: list[BaseRoute] = [route for room in rooms for route in room.routes(server)]
    routes += openapi.routes(operation for room in rooms for operation in getattr(room, "OPERATIONS", ()))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        try:
            async with models:
                yield
        finally:
            server.watches.close()
            server.kept.close()

    guard = Middleware(
        Guard, keys=server.keys, limits=settings.limits, hosts=settings.hosts, origins=settings.origins
    )  # fmt: skip
    counting = Middleware(Counting, metrics=server.metrics, routes=routes)
    app = Starlette(
        routes=routes, lifespan=lifespan,
        middleware=[counting, Middleware(AccessLog, as_json=settings.json_log), guard],
        exception_handlers={HTTPException: _refused, EdgellmError: _failed},
    )  # fmt: skip
    app.state.server = server
    app.state.ending = asyncio.Event()  # whoever ends the server sets it: answers end at once, and say so
    return app


async def _refused(request: Request, e: Exception) -> Response:
    """Answer what no route takes."""
    assert isinstance(e, HTTPException)
    if e.status_code == 405:
        error = ApiError(f"{request.url.path} doesn't take {request.method}", 405, code="method_not_allowed")
    else:
        error = ApiError(f"there is nothing at {request.url.path}", e.status_code, code="not_found")
    response = respond(api_of(request.url.path), error)
    for name, value in (e.headers or {}).items():
        response.headers[name] = value
    return response


async def _failed(request: Request, e: Exception) -> Response:
    return respond(api_of(request.url.path), e, request.url.path)
