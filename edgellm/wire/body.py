"""A message's body: fields, texts and JSON, read so that every wrong byte is a RemoteProtocolError."""

import json
import struct
from typing import Any, ClassVar, NoReturn, Protocol, Self

from edgellm.errors import RemoteProtocolError

KB, MB = 1 << 10, 1 << 20


class Message(Protocol):
    """What every message is: a type, the largest body in bytes, and its bytes both ways."""

    TYPE: ClassVar[int]
    LIMIT: ClassVar[int]

    def encode(self) -> bytes:
        """Return the message's body."""

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Return the message in a body. Raises RemoteProtocolError for a body that isn't one."""


def unpack(message: str, form: struct.Struct, body: bytes) -> tuple[Any, ...]:
    """Return the fields at the beginning of a body. Raises RemoteProtocolError if it is shorter; `message` names it."""
    if len(body) < form.size:
        raise RemoteProtocolError(f"{message}: {len(body)} bytes, expected at least {form.size}")
    return form.unpack_from(body)


def check_size(message: str, body: bytes, size: int) -> None:
    """Raise RemoteProtocolError for a body of another size."""
    if len(body) != size:
        raise RemoteProtocolError(f"{message}: {len(body)} bytes, expected {size}")


def text_of(message: str, raw: bytes) -> str:
    """Return UTF-8 as text. Raises RemoteProtocolError if it isn't."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"{message}: its text is not UTF-8") from None


def cut(text: str, limit: int) -> bytes:
    """Return UTF-8 of at most `limit` bytes, whole characters only."""
    return text.encode(errors="backslashreplace")[:limit].decode(errors="ignore").encode()


def object_of(message: str, raw: bytes) -> dict[str, Any]:
    """Return a JSON object. Raises RemoteProtocolError for everything else, NaN and Infinity included."""
    try:
        content = json.loads(raw.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise RemoteProtocolError(f"{message}: not JSON") from None
    if not isinstance(content, dict):
        raise RemoteProtocolError(f"{message}: JSON is not an object")
    return content


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def json_of(content: dict[str, Any]) -> bytes:
    """Return JSON without spaces, in UTF-8."""
    return json.dumps(content, separators=(",", ":")).encode()
