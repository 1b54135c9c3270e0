"""Llama 3.1 to 3.3: an answer that is a JSON object with a name and parameters is a call."""

from collections.abc import Sequence

from edgellm.text.tool_formats import json_call
from edgellm.text.tool_formats.base import Context, Format, Message, Messages, Tool, with_names, with_objects
from edgellm.text.tool_formats.rules import Rules, json_calls
from edgellm.text.tool_formats.scan import Malformed, Reading, Scan

_TAG = "<|python_tag|>"


class Llama3(Format):
    """{"name": …, "parameters": {…}}, sometimes behind <|python_tag|>, several with a semicolon between."""

    name = "llama3"
    openers = (_TAG,)

    @classmethod
    def recognizes(cls, template: str) -> bool:
        return "ipython" in template and '"parameters": ' in template and "<tool_call" not in template

    def prepare(self, messages: Messages, tools: Sequence[Tool]) -> tuple[list[Message], list[Tool]]:
        """Return each call in a message of its own, because the template takes no more."""
        found: list[Message] = []
        for message in map(with_objects, with_names(messages)):
            calls = message.get("tool_calls") or ()
            if len(calls) > 1:
                found += [{**message, "tool_calls": [call]} for call in calls]
            else:
                found.append(message)
        return found, list(tools)

    def read_start(self, scan: Scan, context: Context) -> Reading:
        yield from bare_calls(scan, context)

    def read_call(self, scan: Scan, marker: str, context: Context) -> Reading:
        yield from _calls(scan, context)

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        return json_calls(rules, tools, "parameters")


def bare_calls(scan: Scan, context: Context) -> Reading:
    """Read calls that an answer begins with, without any marker."""
    if not context.tools:
        return
    scan.begin("")
    try:
        yield from scan.spaces()
        if (yield from scan.peek()) == "{":
            yield from _calls(scan, context)
        else:
            scan.give_back()
    except Malformed:
        scan.give_back()


def _calls(scan: Scan, context: Context) -> Reading:
    while True:
        yield from json_call.call(scan, context.names)
        yield from scan.spaces()
        if (yield from scan.comes(";")):
            yield from scan.spaces()
        if (yield from scan.peek()) != "{":
            return
        scan.begin("")
