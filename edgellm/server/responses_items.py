"""The output of OpenAI's /v1/responses: items of text, reasoning and calls, and the events that tell how they grow."""

import secrets
from collections.abc import Iterator
from typing import Any

from edgellm.server.asking import Event, Reasoning, Text, TokenLogprob, ToolArguments, ToolBegin, ToolEnd
from edgellm.server.openai_chat import logprob_of

Told = tuple[str, dict[str, Any]]  # an event's name and fields
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}


class Items:
    """Items as far as they have come; `items` is the output."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the last of `items`, unless it is complete

    def add(self, happened: Event) -> list[Told]:
        """Take in what has happened, and return the events that tell it."""
        if isinstance(happened, Text):
            return list(self._write("message", happened.text, happened.logprobs))
        if isinstance(happened, Reasoning):
            return list(self._write("reasoning", happened.text))
        if isinstance(happened, ToolBegin):
            item = {"id": new_id("fc"), "type": "function_call", "status": "in_progress", "call_id": happened.id,
                    "name": happened.name, "arguments": ""}  # fmt: skip
            return [*self.end(), self._begin(item)]
        if isinstance(happened, ToolArguments) and self._open is not None:
            self._open["arguments"] += happened.text
            return [self._tell("response.function_call_arguments.delta", delta=happened.text)]
        return self.end() if isinstance(happened, ToolEnd) else []

    def end(self) -> list[Told]:
        """Complete the item that is open, and return the events that tell it."""
        item = self._open
        if item is None:
            return []
        told: list[Told] = []
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            told.append(self._tell("response.function_call_arguments.done", **done))
        else:
            part = item["content"][0]
            kind = _PARTS[item["type"]]
            more = {"logprobs": part["logprobs"]} if kind == "output_text" else {}
            told.append(self._tell(f"response.{kind}.done", content_index=0, text=part["text"], **more))
            told.append(self._tell("response.content_part.done", content_index=0, part=part))
        item["status"] = "completed"
        told.append(("response.output_item.done", {"output_index": self._index, "item": item}))
        self._open = None
        return told

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _begin(self, item: dict[str, Any]) -> Told:
        self._open = item
        self.items.append(item)
        return "response.output_item.added", {"output_index": self._index, "item": {**item}}

    def _write(self, kind: str, text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> Iterator[Told]:
        if self._open is None or self._open["type"] != kind:
            yield from self.end()
            yield from self._begin_text(kind)
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        more = {}
        if kind == "message":
            spelled = [logprob_of(token) for token in logprobs]
            part["logprobs"] += spelled
            more = {"logprobs": spelled}
        yield self._tell(f"response.{_PARTS[kind]}.delta", content_index=0, delta=text, **more)

    def _begin_text(self, kind: str) -> Iterator[Told]:
        prefix = "msg" if kind == "message" else "rs"
        item: dict[str, Any] = {"id": new_id(prefix), "type": kind, "status": "in_progress", "content": []}
        item["role" if kind == "message" else "summary"] = "assistant" if kind == "message" else []
        yield self._begin(item)
        assert self._open is not None
        part: dict[str, Any] = {"type": _PARTS[kind], "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
        yield self._tell("response.content_part.added", content_index=0, part={**part})
        self._open["content"] = [part]

    def _tell(self, name: str, /, **fields: Any) -> Told:
        assert self._open is not None
        return name, {"item_id": self._open["id"], "output_index": self._index, **fields}


def new_id(prefix: str) -> str:
    """Return an id as OpenAI's look."""
    return f"{prefix}_{secrets.token_hex(16)}"
