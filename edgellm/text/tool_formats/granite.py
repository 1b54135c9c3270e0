"""Granite 3: <|tool_call|> and a list of calls. Granite 4 writes what Hermes does."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.text.tool_formats import json_call
from edgellm.text.tool_formats.base import Context, Format, Message, Messages, Tool, arguments_of, written
from edgellm.text.tool_formats.rules import Rules, json_calls, quoted
from edgellm.text.tool_formats.scan import Reading, Scan

_OPEN = "<|tool_call|>"


class Granite(Format):
    """<|tool_call|>[{"name": …, "arguments": {…}}, …], sometimes with <tool_call> in its place."""

    name = "granite"
    openers = (_OPEN, "<tool_call>")

    @classmethod
    def recognizes(cls, template: str) -> bool:
        return "<|start_of_role|>" in template and "available_tools" in template and "<tool_call>" not in template

    def prepare(self, messages: Messages, tools: Sequence[Tool]) -> tuple[list[Message], list[Tool]]:
        """Return messages with calls in their contents, because most templates leave them out."""
        found, told = super().prepare(messages, tools)
        return (found if "tool_calls" in self.template else written(found, _write)), told

    def read_call(self, scan: Scan, marker: str, context: Context) -> Reading:
        yield from json_call.calls(scan)

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        call = json_calls(rules, tools)
        more = f"({quoted(', ')} {call})*" if parallel else ""
        return f"{rules.marker(_OPEN)} {quoted('[')} {call} {more} {quoted(']')}"


def _write(calls: list[Mapping[str, Any]]) -> str:
    return _OPEN + json.dumps(listed(calls), ensure_ascii=False)


def listed(calls: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return calls with nothing but a name and arguments."""
    return [{"name": call["function"]["name"], "arguments": arguments_of(call)} for call in calls]
