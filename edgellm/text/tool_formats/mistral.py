"""Mistral: [TOOL_CALLS] and a list of calls, or a name, [ARGS] and the arguments."""

from collections.abc import Sequence

from edgellm.text.tool_formats import json_call
from edgellm.text.tool_formats.base import Context, Format, Message, Messages, Tool, short_id, with_names, with_objects
from edgellm.text.tool_formats.rules import Rules, either, json_calls, name_of, parameters_of, quoted
from edgellm.text.tool_formats.scan import Reading, Scan

_CALLS, _ARGS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"


class Mistral(Format):
    """[TOOL_CALLS][{"name": …, "arguments": {…}, "id": …}], in newer models [TOOL_CALLS]name[ARGS]{…} for each call."""

    name = "mistral"
    openers = (_CALLS,)
    closers = (_ARGS, _ID)

    @classmethod
    def recognizes(cls, template: str) -> bool:
        return _CALLS in template

    def prepare(self, messages: Messages, tools: Sequence[Tool]) -> tuple[list[Message], list[Tool]]:
        """Return messages with ids of nine letters, which the template demands."""
        found: list[Message] = []
        for message in map(with_objects, with_names(messages)):
            if message.get("tool_calls"):
                calls = [{**call, "id": short_id(str(call.get("id", "")))} for call in message["tool_calls"]]
                message = {**message, "tool_calls": calls}
            if message.get("tool_call_id") is not None:
                message = {**message, "tool_call_id": short_id(str(message["tool_call_id"]))}
            found.append(message)
        return found, list(tools)

    def read_call(self, scan: Scan, marker: str, context: Context) -> Reading:
        yield from scan.spaces()
        if (yield from scan.peek()) in ("[", "{"):
            yield from json_call.calls(scan)
            return
        name, end = yield from scan.until((_ARGS, _ID, "{"))
        id = ""
        if end == _ID:
            id, _ = yield from scan.until((_ARGS,))
        if end == "{":  # some leave [ARGS] out
            scan.text = "{" + scan.text
        yield from json_call.arguments(scan, name.strip(), id.strip())

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        if _ARGS not in self.template:
            call = json_calls(rules, tools)
            more = f"({quoted(', ')} {call})*" if parallel else ""
            return f"{rules.marker(_CALLS)} {quoted('[')} {call} {more} {quoted(']')}"
        named = [f"{quoted(name_of(t))} {rules.marker(_ARGS)} {rules.json(parameters_of(t))}" for t in tools]
        call = rules.add(f"{rules.marker(_CALLS)} {either(named)}")
        return f"{call}+" if parallel else call
