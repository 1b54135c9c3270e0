"""Writes grammars in llguidance's Lark: the means that all formats' grammars share."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

ANY = "/(?s:.*)/"
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_OPEN = frozenset(("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"))
_SPACED = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": True}


class Rules:
    """The rules of one grammar. `token_id(marker)` is the id of a control token, None for a text that is none."""

    def __init__(self, token_id: Callable[[str], int | None]):
        self._token_id = token_id
        self._rules: list[str] = []

    def add(self, body: str, attributes: str = "") -> str:
        """Add a rule, and return its name."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def marker(self, text: str) -> str:
        """Return what matches a marker: a control token, perhaps with a text behind it, or its text."""
        name, end, rest = text.partition(">")
        for control, behind in ((text, ""), (name + end, rest)):
            if (token := self._token_id(control)) is not None:
                return f"<[{token}]> {quoted(behind)}" if behind else f"<[{token}]>"
        return quoted(text)

    def until(self, marker: str) -> str:
        """Return what matches any text, and the marker that ends it."""
        token = self._token_id(marker)
        if token is None:
            return self.add(ANY, f"[suffix={quoted(marker)}]")
        return self.add(f"{ANY} <[{token}]>")

    def json(self, schema: Mapping[str, Any]) -> str:
        """Return what matches JSON of a schema, written as Python writes it."""
        return self.add(f"%json {spaced(schema)}")

    def regex(self, pattern: str) -> str:
        """Return what matches a regular expression."""
        return self.add("/" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\\/", pattern) + "/")

    def text(self, start: str) -> str:
        """Return the grammar, with what its start matches."""
        return "\n".join([f"start: {start}", *self._rules])


def spaced(schema: Mapping[str, Any]) -> str:
    """Return the JSON schema for what is written with a space behind each comma and colon, as Python does; keywords
    that llguidance doesn't know are without effect."""
    return json.dumps({**schema, "x-guidance": _SPACED}, ensure_ascii=False)


def quoted(text: str) -> str:
    """Return a text as grammars write it."""
    return json.dumps(text)


def either(parts: list[str]) -> str:
    """Return what matches one of some parts."""
    return parts[0] if len(parts) == 1 else f"( {' | '.join(parts)} )"


def name_of(tool: Mapping[str, Any]) -> str:
    """Return a tool's name."""
    return str(tool["function"]["name"])


def parameters_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a tool's arguments, which are an object."""
    schema = tool["function"].get("parameters")
    if not isinstance(schema, Mapping) or not schema:
        return dict(_NO_ARGUMENTS)
    if "properties" in schema and not schema.keys() & _OPEN:  # small models fill whatever is left open
        schema = {**schema, "additionalProperties": False}
    return dict(schema) if "type" in schema or "$ref" in schema else {"type": "object", **schema}


def json_calls(rules: Rules, tools: list[Mapping[str, Any]], arguments: str = "arguments") -> str:
    """Return what matches a call of one of the tools, written as a JSON object."""
    return either([
        rules.add(f"{quoted(_beginning(tool, arguments))} {rules.json(parameters_of(tool))} {quoted('}')}")
        for tool in tools
    ])  # fmt: skip


def _beginning(tool: Mapping[str, Any], arguments: str) -> str:
    return f'{{"name": {json.dumps(name_of(tool), ensure_ascii=False)}, "{arguments}": '
