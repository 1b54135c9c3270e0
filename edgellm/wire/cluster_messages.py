"""Messages of a connection and of the cluster: who speaks, what a board is, which plan it takes (docs/wire.md)."""

import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from edgellm.errors import RemoteProtocolError
from edgellm.wire.body import KB, MB, check_size, cut, json_of, object_of, unpack
from edgellm.wire.printable import printable

MAGIC = b"EDGE"
VERSION = 4  # the newest that this edgellm speaks
OLDEST = 4  # and the oldest


@dataclass(frozen=True)
class Hello:
    """First on every connection, from both sides; the one who dials speaks first. `role` is what the sender is, and it
    speaks every version of the wire from `oldest` to `version`."""

    TYPE: ClassVar[int] = 1
    LIMIT: ClassVar[int] = 4 * KB
    role: str  # "manager" or "board"
    name: str
    version: int = VERSION
    oldest: int = OLDEST

    def encode(self) -> bytes:
        content = {"role": self.role, "name": self.name, "oldest": self.oldest}
        return MAGIC + struct.pack(">H", self.version) + json_of(content)

    @classmethod
    def decode(cls, body: bytes) -> "Hello":
        if body[:4] != MAGIC:
            raise RemoteProtocolError(f"hello starts with {body[:4]!r}, expected {MAGIC!r}")
        (version,) = unpack("hello", struct.Struct(">4xH"), body)
        if version < OLDEST:  # what follows may have had another form then
            raise _other_version(version, version)
        content = object_of("hello", body[6:])
        oldest = content.get("oldest", version)
        if type(oldest) is not int or not 0 <= oldest <= version:
            raise RemoteProtocolError(f"hello: oldest must be a version up to {version}")
        if oldest > VERSION:
            raise _other_version(oldest, version)
        role, name = content.get("role"), content.get("name")
        if role not in ("manager", "board"):
            raise RemoteProtocolError("hello: role must be manager or board")
        if not isinstance(name, str) or len(name) > 256 or not name.isprintable():  # it goes into logs
            raise RemoteProtocolError("hello: name must be at most 256 printable characters")
        return cls(role, name, version, oldest)


def _other_version(oldest: int, newest: int) -> RemoteProtocolError:
    theirs = f"version {newest}" if oldest == newest else f"versions {oldest} to {newest}"
    ours = f"{VERSION}" if OLDEST == VERSION else f"{OLDEST} to {VERSION}"
    return RemoteProtocolError(f"peer speaks wire {theirs}, this edgellm speaks {ours}. Run the same edgellm on both.")


@dataclass(frozen=True)
class Refuse:
    """Why the sender closes this connection, in a sentence."""

    TYPE: ClassVar[int] = 2
    LIMIT: ClassVar[int] = 4 * KB
    reason: str

    def encode(self) -> bytes:
        return cut(self.reason, self.LIMIT)

    @classmethod
    def decode(cls, body: bytes) -> "Refuse":
        return cls(printable(body.decode(errors="replace")))


@dataclass(frozen=True)
class Ping:
    TYPE: ClassVar[int] = 3
    LIMIT: ClassVar[int] = 8
    number: int

    def encode(self) -> bytes:
        return struct.pack(">Q", self.number)

    @classmethod
    def decode(cls, body: bytes) -> "Ping":
        check_size("ping", body, 8)
        return cls(*struct.unpack(">Q", body))


@dataclass(frozen=True)
class Pong:
    """Answer to a ping: `steps` counts what the board has computed, `waiting` what is queued or being computed."""

    TYPE: ClassVar[int] = 4
    LIMIT: ClassVar[int] = 20
    number: int
    steps: int
    waiting: int

    def encode(self) -> bytes:
        return struct.pack(">QQI", self.number, self.steps, self.waiting)

    @classmethod
    def decode(cls, body: bytes) -> "Pong":
        check_size("pong", body, 20)
        return cls(*struct.unpack(">QQI", body))


_REQUEST = struct.Struct(">I")


@dataclass(frozen=True)
class AskStatus:
    """Asks what the board offers and holds. Like every question, it has a number that its answer repeats."""

    TYPE: ClassVar[int] = 5
    LIMIT: ClassVar[int] = _REQUEST.size
    request: int = 0

    def encode(self) -> bytes:
        return _REQUEST.pack(self.request)

    @classmethod
    def decode(cls, body: bytes) -> "AskStatus":
        check_size("ask-status", body, _REQUEST.size)
        return cls(*_REQUEST.unpack(body))


@dataclass(frozen=True)
class _JsonMessage:
    """A question or an answer: its number, and one JSON object."""

    TYPE: ClassVar[int] = 0
    LIMIT: ClassVar[int] = MB
    content: dict[str, Any]
    request: int = 0

    def encode(self) -> bytes:
        return _REQUEST.pack(self.request) + json_of(self.content)

    @classmethod
    def decode(cls, body: bytes) -> Self:
        name = cls.__name__.lower()
        (request,) = unpack(name, _REQUEST, body)
        content = object_of(name, body[_REQUEST.size :])
        if isinstance(error := content.get("error"), str):  # it goes to logs and terminals
            content["error"] = printable(error)
        return cls(content, request)


@dataclass(frozen=True)
class Status(_JsonMessage):
    """A board's capacity and state (docs/wire.md has the fields)."""

    TYPE: ClassVar[int] = 6


@dataclass(frozen=True)
class Assign(_JsonMessage):
    """Prepare your section of this plan: `plan`, `addresses` (board → [host, port]), the manager's tag on both
    (`certificate`, `signature`), `board` (who you are). Only for who holds the claim."""

    TYPE: ClassVar[int] = 7


@dataclass(frozen=True)
class Assigned(_JsonMessage):
    """Answer to assign: `error` is null, or the sentence that says why not; `loaded_bytes` of shards."""

    TYPE: ClassVar[int] = 8


@dataclass(frozen=True)
class Claim(_JsonMessage):
    """The sender is about to give the board a plan of `epoch`, which `replaces` the epoch that the board holds (null:
    none). No other manager may, until the connection ends, the sender commits, or it claims epoch null, which ends the
    claim.
    """

    TYPE: ClassVar[int] = 20


@dataclass(frozen=True)
class Claimed(_JsonMessage):
    """Answer to claim: `error` is null, or the sentence that says why not; `epoch` that is held."""

    TYPE: ClassVar[int] = 21


@dataclass(frozen=True)
class Commit(_JsonMessage):
    """Switch to the prepared section of `epoch`. Running sequences of the old one end, at once or, with `drain`, when
    they are done."""

    TYPE: ClassVar[int] = 22


@dataclass(frozen=True)
class Committed(_JsonMessage):
    """Answer to commit, as to assign."""

    TYPE: ClassVar[int] = 23


@dataclass(frozen=True)
class Reach(_JsonMessage):
    """Dial these `boards` (board → [host, port]) with your own credentials, exchange hellos, and hang up."""

    TYPE: ClassVar[int] = 24
    LIMIT: ClassVar[int] = 64 * KB


@dataclass(frozen=True)
class Reached(_JsonMessage):
    """Answer to reach: what came of each of the `boards`, as a `code` and a `reason`."""

    TYPE: ClassVar[int] = 25
