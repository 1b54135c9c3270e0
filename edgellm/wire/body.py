"""A message's body: fields, texts and JSON, read so that every wrong byte is a RemoteProtocolError."""

import json
import struct

from edgellm.errors import RemoteProtocolError

KB, MB = 1 << 10, 1 << 20


def unpack(message: str, form: struct.Struct, body: bytes) -> tuple:
    """The fields at the begin of a body; RemoteProtocolError if it is shorter. `message` names it in errors."""
    if len(body) < form.size:
        raise RemoteProtocolError(f"{message}: {len(body)} bytes, expected at least {form.size}")
    return form.unpack_from(body)


def check_size(message: str, body: bytes, size: int) -> None:
    """Raises RemoteProtocolError for a body of another size."""
    if len(body) != size:
        raise RemoteProtocolError(f"{message}: {len(body)} bytes, expected {size}")


def text_of(message: str, raw: bytes) -> str:
    """UTF-8 as text; RemoteProtocolError if it is none."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"{message}: text is no UTF-8") from None


def cut(text: str, limit: int) -> bytes:
    """UTF-8 of at most `limit` bytes, whole characters only."""
    return text.encode(errors="backslashreplace")[:limit].decode(errors="ignore").encode()


def object_of(message: str, raw: bytes) -> dict:
    """A JSON object; RemoteProtocolError for everything else, NaN and Infinity too."""
    try:
        content = json.loads(raw.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RemoteProtocolError(f"{message}: no JSON") from None
    if not isinstance(content, dict):
        raise RemoteProtocolError(f"{message}: JSON is no object")
    return content


def _no_constant(text: str):
    raise ValueError(f"{text} is no JSON")


def json_of(content: dict) -> bytes:
    """JSON without spaces, in UTF-8."""
    return json.dumps(content, separators=(",", ":")).encode()
