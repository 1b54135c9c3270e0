"""Who may ask, and how much: Host, Origin, key, size of the body, and requests at once; refused before anything else.

A page elsewhere that points its own name at this machine (DNS rebinding) comes with that name as its Host. So only
addresses, this machine's names and those that are allowed by the owner are answered.
"""

import asyncio
import ipaddress
import re
import socket
from collections import Counter
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgellm.server.errors import ApiError, api_of, respond
from edgellm.server.keys import Keys

COOKIE = "edgellm_key"
SIGN_IN = "/page/sign-in"
PAGE_FILES = "/page/files/"
# Without a key: states without names, and the page's own files, which tell nothing.
OPEN = frozenset({"/health", "/ready", "/", "/favicon.ico", SIGN_IN})
OPEN_BELOW = (PAGE_FILES,)
_BODY_TIMEOUT_S = 30.0
_REPEATED = re.compile(r"/{2,}")
_DOUBLED = re.compile(r"\A(?:/(?:v1|api))*(?=/(?:v1|api)(?:/|\Z))")
_BARE = re.compile(r"/(?:chat/completions|completions|models|embeddings|responses|messages)(?:/|\Z)")
_METHODS, _CORS_HEADERS = "GET, POST, PUT, PATCH, DELETE", "authorization, content-type, x-api-key"


@dataclass(frozen=True)
class Limits:
    """How much one request, and one key, may take."""

    body_bytes: int = 4 << 20
    bodies_bytes: int = 32 << 20  # of all requests that run
    requests_per_key: int = 128  # at once, those in line for a slot included
    messages: int = 2000
    tools: int = 128
    choices: int = 16  # answers to one request


class Guard:
    """ASGI middleware. It puts the name of the key into `request.state.key`, "" where none is needed, and mends paths
    that clients make of a wrong base URL, such as /v1/v1/models."""

    def __init__(
        self, app: ASGIApp, keys: Keys, limits: Limits, hosts: frozenset[str] = frozenset(),
        origins: frozenset[str] = frozenset(),
    ):  # fmt: skip
        self._app, self._keys, self._limits, self._origins = app, keys, limits, origins
        name = socket.gethostname().casefold()
        self._hosts = hosts | {"localhost", name, f"{name}.local", name.split(".")[0] + ".local"}
        self._running: Counter[str] = Counter()
        self._held_bytes = 0  # of the bodies of all requests that run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = path = mended(scope["path"])
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._check_host(headers.get("host", ""))
            self._check_origin(origin, headers.get("host", ""))
            if scope["method"] == "OPTIONS" and origin and "access-control-request-method" in headers:
                await self._preflight(origin)(scope, receive, send)
                return
            key = self._key(path, headers)
            self._check_length(headers.get("content-length"))
        except ApiError as e:
            await respond(api_of(path), e)(scope, receive, send)
            return
        scope.setdefault("state", {})["key"] = key
        if origin in self._origins or "*" in self._origins:
            send = _with_origin(send, origin or "*")
        if scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        elif scope["method"] == "POST":
            await self._ask(key, path, scope, receive, send)
        else:
            await self._read(path, scope, receive, send)

    async def _ask(self, key: str, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        most = self._limits.requests_per_key
        if self._running[key] >= most:
            reason = f"this key has {most} requests running, the most that one may have. Wait until some have ended."
            error = ApiError(reason, 429, code="too_many_requests", retry_s=5.0)
            await respond(api_of(path), error)(scope, receive, send)
            return
        self._running[key] += 1
        try:
            await self._read(path, scope, receive, send)
        finally:
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]

    async def _read(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body, within limits, and hand the request on."""
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(_BODY_TIMEOUT_S):
                    whole = await self._fill(body, receive)
            except TimeoutError:
                reason = f"the request's body took longer than {_BODY_TIMEOUT_S:g} s"
                await respond(api_of(path), ApiError(reason, 408, code="timeout"))(scope, receive, send)
                return
            except ApiError as e:
                await respond(api_of(path), e)(scope, receive, send)
                return
            if not whole:
                return
            first: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

            async def received() -> Message:
                return first.pop() if first else await receive()

            await self._app(scope, received, send)
        finally:
            self._held_bytes -= len(body)

    async def _fill(self, body: bytearray, receive: Receive) -> bool:
        """Read into `body`; return whether it is whole, rather than the client gone. Raises ApiError beyond limits."""
        most, together = self._limits.body_bytes, self._limits.bodies_bytes
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            piece = message.get("body", b"")
            body += piece
            self._held_bytes += len(piece)
            if len(body) > most:
                raise _too_large(f"over {most}", most)
            if self._held_bytes > together:
                reason = f"the requests that run have {together} bytes, the most that the server holds"
                raise ApiError(reason, 503, code="busy", retry_s=5.0)
            if not message.get("more_body"):
                return True

    def _check_host(self, host: str) -> None:
        name = _name_of(host)
        if name in self._hosts or _is_address(name):
            return
        raise ApiError("this host name isn't allowed. Start the server with --allow-host NAME.", 403, code="host")

    def _check_origin(self, origin: str | None, host: str) -> None:
        """Refuse what other sites' pages send."""
        if origin is None or origin in self._origins or "*" in self._origins:
            return
        try:
            here = urlsplit(origin).netloc.casefold() == host.casefold() != ""
        except ValueError:
            here = False
        if not here:
            raise ApiError("this origin isn't allowed. Start the server with --allow-origin.", 403, code="origin")

    def _key(self, path: str, headers: Headers) -> str:
        """Return the name of the key that a request shows. Raises ApiError if it needs one."""
        if not self._keys.needed:
            return ""
        shown = headers.get("x-api-key") or ""
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.casefold() == "bearer" and bearer.strip():
            shown = bearer.strip()
        if not shown:
            shown = _cookie(headers.get("cookie", ""))
        name = self._keys.name_of(shown) if shown else None
        if name is None and path not in OPEN and not path.startswith(OPEN_BELOW):
            what = "this API key is not known" if shown else "this needs an API key (Authorization: Bearer …)"
            raise ApiError(what, 401, code="invalid_api_key")
        return name or ""

    def _check_length(self, length: str | None) -> None:
        most = self._limits.body_bytes
        if length is not None and length.isdecimal() and int(length[:20]) > most:
            raise _too_large(length[:20], most)

    def _preflight(self, origin: str) -> Response:
        """Answer a browser that asks whether a page of `origin` may ask; it may, or it would have been refused."""
        headers = {
            "access-control-allow-origin": origin, "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": _CORS_HEADERS, "access-control-max-age": "600", "vary": "Origin",
        }  # fmt: skip
        return Response(None, 204, headers)


def mended(path: str) -> str:
    """Return the path that a client means whose base URL is wrong: without doubled /v1 or slashes, or with the /v1 that
    is missing."""
    path = _REPEATED.sub("/", path)
    path = _DOUBLED.sub("", path)
    if len(path) > 1:
        path = path.rstrip("/")
    return f"/v1{path}" if _BARE.match(path) else path


def _too_large(length: str, most: int) -> ApiError:
    return ApiError(f"the request's body has {length} bytes, at most {most} are read", 413, code="too_large")


def _with_origin(send: Send, origin: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = origin
            headers.add_vary_header("Origin")
        await send(message)

    return sending


def _name_of(host: str) -> str:
    """Return a Host's name without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].casefold().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(text: str) -> str:
    try:
        cookies: SimpleCookie = SimpleCookie(text)
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""
