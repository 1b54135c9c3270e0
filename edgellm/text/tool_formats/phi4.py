"""Phi-4-mini: tools in the system message, <|tool_call|> and a list of calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.text.tool_formats import json_call
from edgellm.text.tool_formats.base import Context, Format, Message, Messages, Tool, written
from edgellm.text.tool_formats.granite import listed
from edgellm.text.tool_formats.rules import Rules, json_calls, quoted
from edgellm.text.tool_formats.scan import Reading, Scan

_OPEN, _CLOSE, _OTHER = "<|tool_call|>", "<|/tool_call|>", "functools"


class Phi4(Format):
    """<|tool_call|>[{"name": …, "arguments": {…}}, …]<|/tool_call|>; the 14B model says functools in place of a tag."""

    name = "phi4"
    openers = (_OPEN, _OTHER + "[")
    closers = (_CLOSE,)

    @classmethod
    def recognizes(cls, template: str) -> bool:
        return "<|tool|>" in template

    def prepare(self, messages: Messages, tools: Sequence[Tool]) -> tuple[list[Message], list[Tool]]:
        """Return messages with the tools in the system message, where the template takes them from."""
        found, given = super().prepare(messages, tools)
        found = found if "tool_calls" in self.template else written(found, _write)
        if not tools or "message['tools']" not in self.template.replace('"', "'"):
            return found, given
        told = json.dumps([dict(tool["function"]) for tool in tools], ensure_ascii=False)
        if not found or found[0].get("role") != "system":
            found.insert(0, {"role": "system", "content": "You are a helpful assistant with some tools."})
        found[0] = {**found[0], "tools": told}
        return found, []

    def read_call(self, scan: Scan, marker: str, context: Context) -> Reading:
        if marker != _OPEN:
            scan.text = "[" + scan.text
            scan.begin(_OTHER)
        yield from json_call.calls(scan)
        yield from scan.spaces()
        yield from scan.comes(_CLOSE)

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        call = json_calls(rules, tools)
        more = f"({quoted(', ')} {call})*" if parallel else ""
        return f"{rules.marker(_OPEN)} {quoted('[')} {call} {more} {quoted(']')} {rules.marker(_CLOSE)}"


def _write(calls: list[Mapping[str, Any]]) -> str:
    return _OPEN + json.dumps(listed(calls), ensure_ascii=False) + _CLOSE
