"""/openapi.json: what the server understands, made from the structs that requests are read into."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgellm import __version__
from edgellm.server.sse import NDJSON, SSE

_REASONS = {
    400: "A field is wrong, and named", 401: "No API key, or an unknown one", 403: "This host or origin isn't allowed",
    404: "There is nothing of this name",
    408: "The body took too long", 413: "The body is too large", 429: "Too many requests of this key",
    500: "The server failed", 503: "No slot, no board, or the model is being loaded", 504: "The answer took too long",
}  # fmt: skip

# One event of a stream, or one line.
_STREAMS: dict[str, dict[str, Any]] = {
    SSE: {
        "type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}, "required": ["data"],
    },
    NDJSON: {"type": "object"},
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """A route: `body` is the struct of its request, `answer` that of its JSON, `stream` the media type of a stream,
    `error` the struct of its errors."""

    method: str
    path: str
    summary: str
    answer: Any
    error: Any
    body: Any = None
    stream: str | None = None
    statuses: tuple[int, ...] = ()  # further ones, beside those that every route has


def routes(operations: Iterable[Operation]) -> list[Route]:
    """Return the route of the document."""
    text = msgspec.json.encode(document(operations))

    async def openapi(request: Request) -> Response:
        return Response(text, media_type="application/json")

    return [Route("/openapi.json", openapi)]


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the OpenAPI document of these operations."""
    operations = list(operations)
    types = [t for o in operations for t in (o.body, o.answer, o.error) if t is not None]
    types = list({id(t): t for t in types}.values())
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema_of = {id(t): schema for t, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgellm", "version": __version__, "description": "A model on several small boards."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(operation: Operation, schema_of: dict[int, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema_of[id(operation.answer)]}}
    if operation.stream is not None:
        content[operation.stream] = {"schema": _STREAMS[operation.stream]}
    failed = {"application/json": {"schema": schema_of[id(operation.error)]}}
    statuses = [400, 401, 403, 500, 503, *operation.statuses]
    statuses += [408, 413, 429, 504] if operation.body is not None else []
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    for status in sorted(statuses):
        responses[str(status)] = {"description": _REASONS.get(status, "Refused"), "content": failed}
    told: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    if names:
        told["parameters"] = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    if operation.body is not None:
        body = {"application/json": {"schema": schema_of[id(operation.body)]}}
        told["requestBody"] = {"required": True, "content": body}
    return told
