"""Any other model: tools described in the system message, and calls as Hermes writes them, in plain text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.text.tool_formats.base import Context, Message, Messages, Tool, into_system, with_names, written
from edgellm.text.tool_formats.granite import listed
from edgellm.text.tool_formats.hermes import Hermes
from edgellm.text.tool_formats.llama3 import bare_calls
from edgellm.text.tool_formats.rules import Rules
from edgellm.text.tool_formats.scan import Reading, Scan

_DESCRIBED = """You can call these functions:
<tools>
{tools}
</tools>

To call one, reply with its name and arguments as JSON between tags, and nothing else:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>
If no function helps, reply as usual."""


class Generic(Hermes):
    """What Hermes writes; an answer that begins with such an object is a call without its tags, too."""

    name = "generic"

    @classmethod
    def recognizes(cls, template: str) -> bool:
        return True

    def prepare(self, messages: Messages, tools: Sequence[Tool]) -> tuple[list[Message], list[Tool]]:
        """Return messages with tools, calls and results in texts, because the template knows none of them."""
        found = [_plain(m) for m in written(with_names(messages), _write)]
        if tools:
            lines = "\n".join(json.dumps(dict(tool["function"]), ensure_ascii=False) for tool in tools)
            found = into_system(found, _DESCRIBED.format(tools=lines), self.template)
        return _alternating(found), []

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        """Return what matches one call: a model that was trained for none doesn't stop by itself."""
        return super().grammar(rules, tools, parallel=False)

    def read_start(self, scan: Scan, context: Context) -> Reading:
        yield from bare_calls(scan, context)


def _plain(message: Message) -> Message:
    if message.get("role") != "tool":
        return message
    return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}


def _alternating(messages: list[Message]) -> list[Message]:
    """Return messages in which results of several calls are one message, because many templates take no two."""
    found: list[Message] = []
    for message in messages:
        content = message.get("content")
        last = found[-1] if found else None
        responses = isinstance(content, str) and content.startswith("<tool_response>\n")
        if responses and last is not None and last["role"] == "user" and str(last["content"]).startswith("<tool_resp"):
            found[-1] = {**last, "content": f"{last['content']}\n{content}"}
        else:
            found.append(message)
    return found


def _write(calls: list[Mapping[str, Any]]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in listed(calls))
