"""Reads a request's JSON into a struct, and names the field that is wrong."""

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from edgellm.server.errors import ApiError

_T = TypeVar("_T", bound=msgspec.Struct)
_WHERE = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<field>[^`]*)`)?\Z", re.DOTALL)


async def read(request: Request, kind: type[_T]) -> _T:
    """Return the request's body as a `kind`; unknown fields are ignored. Raises ApiError."""
    return parse(await request.body(), kind)


def parse(body: bytes, kind: type[_T]) -> _T:
    """Return a JSON text as a `kind`. Raises ApiError, which names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as e:
        match = _WHERE.match(str(e))
        assert match is not None
        field, what = match["field"] or None, match["what"].replace("`", "")
        if missing := re.search(r"missing required field (\S+)", what):
            field = f"{field}.{missing[1]}" if field else missing[1]
        raise ApiError(f"{field}: {what[:1].lower()}{what[1:]}" if field else what, 400, param=field) from None
    except RecursionError:
        raise ApiError("the JSON is nested too deeply. Send it flatter.", 400) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ApiError(f"the body is not JSON: {e}", 400) from None


def refuse(field: str, what: str, code: str | None = None) -> ApiError:
    """Return the error that a field is wrong."""
    return ApiError(f"{field}: {what}", 400, param=field, code=code)
