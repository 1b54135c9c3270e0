"""Reads JSON as it arrives, and calls written as JSON objects: {"name": …, "arguments": {…}}."""

import json
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from edgellm.text.tool_formats.scan import Malformed, Reading, Scan

_DEEPEST = 64
_LITERAL_ENDS = frozenset(",]} \t\r\n")
NAMES = ("name", "function")
ARGUMENTS = ("arguments", "parameters")


def value(scan: Scan, tell: Callable[[str], None], depth: int = 0) -> Reading:
    """Take one JSON value, and tell its characters as they are, once each is sure. Raises Malformed."""
    if depth > _DEEPEST:
        raise Malformed
    yield from _spaces(scan)
    c = yield from scan.peek()
    if c == '"':
        yield from _string(scan, tell)
    elif c == "{" or c == "[":
        close = "}" if c == "{" else "]"
        tell((yield from scan.next()))
        yield from _spaces(scan, tell)
        if (yield from scan.peek()) == close:
            tell((yield from scan.next()))
            return
        while True:
            if c == "{":
                yield from _spaces(scan, tell)
                if (yield from scan.peek()) != '"':
                    raise Malformed
                yield from _string(scan, tell)
                yield from _spaces(scan, tell)
                if (yield from scan.peek()) != ":":
                    raise Malformed
                tell((yield from scan.next()))
            yield from _spaces(scan, tell)
            yield from value(scan, tell, depth + 1)
            yield from _spaces(scan, tell)
            following = yield from scan.peek()
            if following not in (",", close):
                raise Malformed
            tell((yield from scan.next()))
            if following == close:
                return
    else:
        literal = ""
        while (c := (yield from scan.peek())) and c not in _LITERAL_ENDS and len(literal) < 400:
            literal += yield from scan.next()
        if literal in ("NaN", "Infinity", "-Infinity"):
            raise Malformed
        try:
            json.loads(literal)
        except ValueError:
            raise Malformed from None
        tell(literal)


def loaded(scan: Scan) -> Generator[None, None, Any]:
    """Take one JSON value, and return what it means. Raises Malformed."""
    pieces: list[str] = []
    yield from value(scan, pieces.append)
    return json.loads("".join(pieces))


def call(scan: Scan, known: frozenset[str] | None = None) -> Reading:
    """Take a call, and tell it as it arrives. With `known`, only names in it are calls. Raises Malformed."""
    yield from scan.literal("{")
    name, id, index, arguments = "", "", None, None
    while True:
        yield from _spaces(scan)
        if (yield from scan.comes("}")):
            break
        key = yield from loaded(scan)
        yield from _spaces(scan)
        yield from scan.literal(":")
        yield from _spaces(scan)
        if key in ARGUMENTS and name and index is None and (yield from scan.peek()) == "{":
            index = scan.call(name, id)
            yield from value(scan, partial(scan.arguments, index))
        else:
            content = yield from loaded(scan)
            if key in NAMES and not name:
                name = content if isinstance(content, str) else ""
                if not name or (known is not None and name not in known):
                    raise Malformed
            elif key == "id" and isinstance(content, str):
                id = content[:64]
            elif key in ARGUMENTS and index is None:
                arguments = _as_object(content)
        yield from _spaces(scan)
        if (yield from scan.comes("}")):
            break
        yield from scan.literal(",")
    if index is None:
        if not name:
            raise Malformed
        index = scan.call(name, id)
        scan.arguments(index, "{}" if arguments is None else arguments)
    scan.end_call(index)


def calls(scan: Scan, known: frozenset[str] | None = None) -> Reading:
    """Take a call, or a list of calls, and tell them. Raises Malformed."""
    yield from _spaces(scan)
    if (yield from scan.peek()) != "[":
        yield from call(scan, known)
        return
    yield from scan.literal("[")
    yield from _spaces(scan)
    while not (yield from scan.comes("]")):
        yield from call(scan, known)
        yield from _spaces(scan)
        if (yield from scan.comes(",")):
            yield from _spaces(scan)
        elif (yield from scan.peek()) != "]":
            raise Malformed
    scan.leave()


def arguments(scan: Scan, name: str, id: str = "") -> Reading:
    """Take the arguments of a call, an object, and tell the call. Raises Malformed."""
    yield from _spaces(scan)
    if (yield from scan.peek()) != "{":
        raise Malformed
    index = scan.call(name, id)
    yield from value(scan, partial(scan.arguments, index))
    scan.end_call(index)


def _as_object(content: Any) -> str:
    """Return arguments that came before the name, or as a text, as JSON. Raises Malformed for what is no object."""
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            raise Malformed from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise Malformed
    return json.dumps(content, ensure_ascii=False)


def _spaces(scan: Scan, tell: Callable[[str], None] = lambda text: None) -> Reading:
    while (c := (yield from scan.peek())) and c in " \t\r\n":
        tell((yield from scan.next()))


def _string(scan: Scan, tell: Callable[[str], None]) -> Reading:
    tell((yield from scan.next()))
    while True:
        c = yield from scan.next()
        if c == "\\":
            escaped = yield from scan.next()
            if escaped not in '"\\/bfnrtu':
                raise Malformed
            c += escaped
            if escaped == "u":
                for _ in range(4):
                    c += yield from scan.next()
                if any(h not in "0123456789abcdefABCDEF" for h in c[2:]):
                    raise Malformed
        elif c < " ":
            if c not in "\n\t\r":
                raise Malformed
            c = json.dumps(c)[1:-1]  # what models write, and JSON wants escaped
        tell(c)
        if c == '"':
            return
