"""Hermes, Qwen 2.5 and 3, Granite 4 and many others: JSON objects between <tool_call> and </tool_call>."""

from edgellm.text.tool_formats import json_call
from edgellm.text.tool_formats.base import Context, Format, Tool
from edgellm.text.tool_formats.rules import Rules, json_calls, quoted
from edgellm.text.tool_formats.scan import Reading, Scan

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Hermes(Format):
    """<tool_call>, a line with {"name": …, "arguments": {…}}, </tool_call>; once for each call."""

    name = "hermes"
    openers = (_OPEN,)
    closers = (_CLOSE,)

    @classmethod
    def recognizes(cls, template: str) -> bool:
        marked = _OPEN in template and _CLOSE in template and "<tool_calls>" not in template
        return marked and '"arguments"' in template and "tools" in template

    def read_call(self, scan: Scan, marker: str, context: Context) -> Reading:
        yield from json_call.calls(scan)
        scan.leave()
        yield from scan.spaces()
        if (yield from scan.comes(_CLOSE)):  # a model may forget it at the end
            scan.leave()

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        line = rules.add(f"{quoted(chr(10))} {json_calls(rules, tools)} {quoted(chr(10))}")
        call = rules.add(f"{rules.marker(_OPEN)} {line} {rules.marker(_CLOSE)}")
        return f"{call} ({quoted(chr(10))} {call})*" if parallel else call
