"""Signing in to the page with an API key: a cookie that scripts can't read and that other sites' pages don't send."""

from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgellm.server.errors import ApiError
from edgellm.server.fields import read
from edgellm.server.guard import COOKIE, SIGN_IN

if TYPE_CHECKING:
    from edgellm.server.app import Server

_STAYS_S = 400 * 86400  # as long as browsers keep a cookie


class _Shown(msgspec.Struct):
    key: str


def routes(server: "Server") -> list[BaseRoute]:
    """Return where a browser signs in and out."""

    async def sign_in(request: Request) -> Response:
        key = (await read(request, _Shown)).key.strip()
        if server.keys.name_of(key) is None:
            raise ApiError("this API key is not known", 401, code="invalid_api_key")
        response = Response(status_code=204)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, key, _STAYS_S, path="/", secure=secure, httponly=True, samesite="strict")
        return response

    async def sign_out(request: Request) -> Response:
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return response

    return [Route(SIGN_IN, sign_in, methods=["POST"]), Route(SIGN_IN, sign_out, methods=["DELETE"])]


def owner_of(server: "Server", request: Request) -> str:
    """Return the name of the key that asks, whose conversations these are. Raises ApiError if it needs one, in case the
    guard was told to let everybody pass."""
    name: str = request.state.key
    if not name and server.keys.needed:
        raise ApiError("this needs an API key: sign in", 401, code="invalid_api_key")
    return name
