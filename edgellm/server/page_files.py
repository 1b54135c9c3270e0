"""The page's own files: one page at /, its scripts and styles, with headers that let it load nothing from elsewhere."""

import hashlib
from importlib import resources
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgellm.server.errors import ApiError
from edgellm.server.guard import PAGE_FILES

if TYPE_CHECKING:
    from edgellm.server.app import Server

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
# What an answer, a board or a file calls itself is text here, twice over: scripts make no HTML of text, and the browser
# would neither run nor load anything that isn't one of these files.
POLICY = "; ".join([
    "default-src 'self'", "object-src 'none'", "base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'",
    "require-trusted-types-for 'script'", "trusted-types 'none'",
])  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked for again each time; unchanged, it isn't sent again
}


def routes(server: "Server") -> list[BaseRoute]:
    """Return the page at /, and its files."""
    files = _files()

    async def page(request: Request) -> Response:
        return _send(request, files, "index.html")

    async def file(request: Request) -> Response:
        return _send(request, files, request.path_params["name"])

    async def icon(request: Request) -> Response:
        return _send(request, files, "icon.svg")

    return [Route("/", page), Route("/favicon.ico", icon), Route(PAGE_FILES + "{name}", file)]


def _files() -> dict[str, tuple[bytes, str, str]]:
    """Return content, type and tag of each file by name. Nothing else can be asked for."""
    found = {}
    for file in (resources.files("edgellm.server") / "page").iterdir():
        kind = _TYPES.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            found[file.name] = content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return found


def _send(request: Request, files: dict[str, tuple[bytes, str, str]], name: str) -> Response:
    if name not in files:
        raise ApiError("the page has no such file", 404, code="not_found")
    content, kind, tag = files[name]
    headers = {**HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(None, 304, headers)
    return Response(content, 200, headers, kind)
