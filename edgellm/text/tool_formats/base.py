"""What every format of tool calls declares, and the parser that they share."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.text.tool_formats.pieces import Piece
from edgellm.text.tool_formats.rules import Rules
from edgellm.text.tool_formats.scan import Malformed, Reading, Scan

Message = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]
Tool = Mapping[str, Any]  # {"type": "function", "function": {"name": …, "parameters": …}}


@dataclass(frozen=True)
class Context:
    """What a parser knows of one answer: whether the prompt's end opens the reasoning, the tools, if any, and whether
    more than one call is wanted."""

    thinking: bool = False
    tools: tuple[Tool, ...] = ()
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """The names of the tools."""
        return frozenset(str(tool["function"]["name"]) for tool in self.tools)


class Format:
    """How one family of models writes calls and reasoning. `think` are the markers around the reasoning, if it has
    one; `openers` announce a call."""

    name = ""
    always = False  # there are markers even in answers without calls and reasoning
    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()  # further markers that a parser must see

    def __init__(self, template: str, think: tuple[str, str] | None = None):
        self.template, self.think = template, think

    @classmethod
    def recognizes(cls, template: str) -> bool:
        """Return True if a chat template is of this family."""
        raise NotImplementedError

    @property
    def markers(self) -> frozenset[str]:
        """All markers. Those that are control tokens have to be in the text that the parser gets."""
        return frozenset((*self.openers, *self.closers, *(self.think or ())))

    def is_thinking(self, prompt_end: str) -> bool | None:
        """Return True if a prompt that ends like this has begun the reasoning, False if it has also ended it."""
        if self.think is None:
            return None
        begun, ended = prompt_end.rfind(self.think[0]), prompt_end.rfind(self.think[1])
        return None if max(begun, ended) < 0 else begun > ended

    def can_begin_anywhere(self, token_id: Callable[[str], int | None]) -> bool:
        """Return True if a call begins with a control token, so that a grammar tells it from text wherever it is."""
        return bool(self.openers) and not self.always and token_id(self.openers[0]) is not None

    def prepare(self, messages: Messages, tools: Sequence[Tool]) -> tuple[list[Message], list[Tool]]:
        """Return messages and tools as the template takes them."""
        return [with_objects(m) for m in with_names(messages)], list(tools)

    def read(self, scan: Scan, context: Context) -> Reading:
        """Read an answer, and tell its pieces."""
        if context.thinking and self.think is not None:
            yield from self._think(scan)
        yield from self.read_start(scan, context)
        openers = self.openers if context.tools else ()
        ends = (*openers, *((self.think[0],) if self.think else ()))
        while True:
            text, end = yield from scan.piece(ends) if ends else all_of(scan)
            scan.say(text)
            if self.think and end == self.think[0]:
                yield from self._think(scan)
            elif end:
                yield from self.attempt(scan, end, context)
            elif scan.ended:
                return

    def attempt(self, scan: Scan, marker: str, context: Context) -> Reading:
        """Read calls behind a marker; what turns out to be none is said."""
        scan.begin(marker)
        try:
            yield from self.read_call(scan, marker, context)
            scan.leave()
        except Malformed:
            scan.give_back()

    def read_start(self, scan: Scan, context: Context) -> Reading:
        """Read what is special about an answer's beginning."""
        yield from ()

    def read_call(self, scan: Scan, marker: str, context: Context) -> Reading:
        """Read the calls behind a marker, and what closes them. Raises Malformed."""
        raise NotImplementedError

    def grammar(self, rules: Rules, tools: list[Tool], parallel: bool) -> str:
        """Return what matches one call, or several if `parallel`."""
        raise NotImplementedError

    def reasoning_grammar(self, rules: Rules, thinking: bool | None) -> str:
        """Return what matches the reasoning before an answer, "" if there is none. `thinking` is True if the prompt
        has begun it, None if the model may begin it, False if it is off."""
        if self.think is None or thinking is False:
            return ""
        rest = f"{rules.until(self.think[1])} /[ \\n]{{0,2}}/"
        return rest if thinking else f"({rules.marker(self.think[0])} {rest})?"

    def text_grammar(self, rules: Rules, body: str) -> str:
        """Return what matches an answer whose text is `body`, after any reasoning."""
        return body

    def _think(self, scan: Scan) -> Reading:
        assert self.think is not None
        while True:
            text, end = yield from scan.piece((self.think[1],))
            scan.think(text)
            if end or scan.ended:
                scan.end_thought()
                return


class Parser:
    """Turns an answer's text into pieces as it arrives. No part of a marker is ever told as text."""

    def __init__(self, format: Format, context: Context):
        self._scan = Scan(1 if not context.parallel else None)
        self._reading = format.read(self._scan, context)
        self._done = False

    @property
    def calls(self) -> int:
        """How many calls there are so far."""
        return self._scan.calls

    def feed(self, text: str) -> list[Piece]:
        """Return what a piece of the text completes."""
        self._scan.text += text
        return self._run()

    def end(self) -> list[Piece]:
        """Return what is left at the end of the answer."""
        self._scan.ended = True
        pieces = self._run()
        self._scan.finish()
        return pieces + self._scan.take_pieces()

    def _run(self) -> list[Piece]:
        if not self._done:
            try:
                next(self._reading)
            except StopIteration:
                self._done = True
        return self._scan.take_pieces()


def all_of(scan: Scan) -> Any:
    """Take all that has come."""
    while not scan.text and not scan.ended:
        yield
    text, scan.text = scan.text, ""
    return text, ""


def with_names(messages: Messages) -> list[Message]:
    """Return messages in which each tool's result has the tool's name."""
    names: dict[str, str] = {}
    found = []
    for message in messages:
        message = dict(message)
        for call in message.get("tool_calls") or ():
            names[str(call.get("id"))] = str(call["function"]["name"])
        if message.get("role") == "tool" and not message.get("name"):
            message["name"] = names.get(str(message.get("tool_call_id")), "tool")
        found.append(message)
    return found


def with_objects(message: Message) -> Message:
    """Return a message whose calls have objects as arguments, and texts as contents, as templates take them."""
    if message.get("role") == "assistant" and message.get("tool_calls"):
        content = message.get("content")
        calls = [
            {**call, "function": {**call["function"], "arguments": arguments_of(call)}}
            for call in message["tool_calls"]
        ]  # fmt: skip
        return {**message, "content": "" if content is None else content, "tool_calls": calls}
    return message


def arguments_of(call: Mapping[str, Any]) -> Any:
    """Return a call's arguments as an object, or as they are if they are none."""
    arguments = call["function"].get("arguments")
    if not isinstance(arguments, str):
        return arguments if arguments is not None else {}
    try:
        content = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return content if isinstance(content, dict) else arguments


def written(messages: Sequence[Message], write: Callable[[list[Tool]], str]) -> list[Message]:
    """Return messages whose calls are written into their contents, for templates that leave them out."""
    found = []
    for message in messages:
        if message.get("role") == "assistant" and message.get("tool_calls"):
            content = f"{message.get('content') or ''}{write(message['tool_calls'])}"
            message = {**{k: v for k, v in message.items() if k != "tool_calls"}, "content": content}
        found.append(message)
    return found


def into_system(messages: Sequence[Message], text: str, template: str) -> list[Message]:
    """Return messages with a text behind the system message, or before the first one where templates refuse those."""
    found = [dict(m) for m in messages]
    if found and found[0].get("role") in ("system", "developer"):
        found[0]["content"] = f"{found[0].get('content') or ''}\n\n{text}".lstrip()
    elif "ystem role not supported" in template and found:
        found[0]["content"] = f"{text}\n\n{found[0].get('content') or ''}"
    else:
        found.insert(0, {"role": "system", "content": text})
    return found


def short_id(id: str) -> str:
    """Return an id of nine letters and digits for another one, as some templates demand."""
    if len(id) == 9 and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode()).hexdigest()[:9]
