"""gpt-oss: channels of messages. The analysis is reasoning, a message to functions.name is a call."""

import re
from collections.abc import Callable, Generator

from edgellm.text.tool_formats import json_call
from edgellm.text.tool_formats.base import Context, Format, Tool
from edgellm.text.tool_formats.rules import Rules, either, name_of, parameters_of, quoted
from edgellm.text.tool_formats.scan import Malformed, Reading, Scan

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", _START)
_WORDS = ("to", "assistant", "analysis", "commentary", "final", "json")
_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")


class Harmony(Format):
    """<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.name
    <|constrain|>json<|message|>{…}<|call|>; what is in the channel final is the answer."""

    name = "harmony"
    always = True
    openers = (_CHANNEL,)
    closers = (_MESSAGE, _CONSTRAIN, *_ENDS)

    @classmethod
    def recognizes(cls, template: str) -> bool:
        return _CHANNEL in template and _MESSAGE in template

    def read(self, scan: Scan, context: Context) -> Reading:
        while (yield from scan.peek()):
            header = yield from _header(scan)
            if header is None:
                continue
            called = _RECIPIENT.search(header)
            if called and context.tools:
                scan.begin("")
                try:
                    yield from json_call.arguments(scan, called[1])
                except Malformed:
                    scan.give_back()
                yield from _body(scan, lambda text: scan.say(text) if text.strip() else None)
            elif "analysis" in header:
                yield from _body(scan, scan.think)
                scan.end_thought()
            else:  # final, or words before a call
                yield from _body(scan, scan.say)

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        calls = [
            f"{quoted(f'commentary to=functions.{name_of(t)} ')} {rules.marker(_CONSTRAIN)} {quoted('json')} "
            f"{rules.marker(_MESSAGE)} {rules.json(parameters_of(t))}"
            for t in tools
        ]  # fmt: skip
        return f"{rules.marker(_CHANNEL)} {either(calls)}"

    def reasoning_grammar(self, rules: Rules, thinking: bool | None) -> str:
        begun = f"{rules.marker(_CHANNEL)} {quoted('analysis')} {rules.marker(_MESSAGE)}"
        return f"({begun} {rules.until('<|end|>')} {rules.marker(_START)} {quoted('assistant')})?"

    def text_grammar(self, rules: Rules, body: str) -> str:
        return f"{rules.marker(_CHANNEL)} {quoted('final')} {rules.marker(_MESSAGE)} {body}"


def _header(scan: Scan) -> Generator[None, None, str | None]:
    """Take what comes before a message's text; None if text came without a header, and was said."""
    header = ""
    while True:
        piece, end = yield from scan.piece((_MESSAGE, *_ENDS, _CHANNEL, _CONSTRAIN))
        header += piece
        if end == _MESSAGE:
            return header
        if end == "" and (scan.ended or not _is_header(header)):
            scan.say(header)
            header = ""
        elif end in (_CHANNEL, _CONSTRAIN):
            header += " "
        elif end:
            header = header if end == _START else ""
        if scan.ended and not scan.text:
            return None


def _is_header(text: str) -> bool:
    return len(text) < 300 and all(w.startswith("to") or any(k.startswith(w) for k in _WORDS) for w in text.split())


def _body(scan: Scan, tell: Callable[[str], None]) -> Reading:
    while True:
        text, end = yield from scan.piece(_ENDS)
        tell(text)
        if end == _START:
            scan.text = _START + scan.text
        if end or (scan.ended and not scan.text):
            return
