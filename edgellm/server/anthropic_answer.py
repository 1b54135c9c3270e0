"""Answers as Anthropic gives them: a message, or the events that build it while it arrives. Pure.

A message consists of blocks: text, thinking, or the use of a tool. Of the prompt's tokens, `input_tokens` are those
that were computed, and `cache_read_input_tokens` those that the boards held already.
"""

import json
from typing import Any

from edgellm.server.asking import (
    Accepted,
    Ended,
    Event,
    Progress,
    Queued,
    Reasoning,
    Text,
    ToolArguments,
    ToolBegin,
    ToolEnd,
    Usage,
    Waiting,
)  # fmt: skip

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
PING: dict[str, Any] = {"type": "ping"}


class Answering:
    """Turns the events of one answer into Anthropic's. `message` is the message so far, whole after the last event."""

    def __init__(self, identity: str, model: str):
        self.message: dict[str, Any] = {
            "id": identity, "type": "message", "role": "assistant", "model": model, "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": _usage(Usage()),
        }  # fmt: skip
        self._began = False
        self._open = ""  # the kind of the last block, while it is open
        self._calls: dict[int, int] = {}  # index of a call → that of its block
        self._arguments: dict[int, list[str]] = {}

    def feed(self, event: Event) -> list[dict[str, Any]]:
        """Return the events that tell of an event, in their order."""
        told = [] if self._began else [self._start(event)]
        if isinstance(event, (Queued, Progress, Waiting)):
            told.append(dict(PING))
        elif isinstance(event, Text) and event.text:
            told += self._delta("text", event.text)
        elif isinstance(event, Reasoning) and event.text:
            told += self._delta("thinking", event.text)
        elif isinstance(event, ToolBegin):
            told += self._close()
            use = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            told.append(self._begin("tool_use", use))
            self._calls[event.index] = len(self.message["content"]) - 1
            self._arguments[event.index] = []
        elif isinstance(event, ToolArguments) and event.text:
            self._arguments[event.index].append(event.text)
            delta = {"type": "input_json_delta", "partial_json": event.text}
            told.append({"type": "content_block_delta", "index": self._calls[event.index], "delta": delta})
        elif isinstance(event, ToolEnd):
            self.message["content"][self._calls[event.index]]["input"] = _object("".join(self._arguments[event.index]))
            told += self._close()
        elif isinstance(event, Ended):
            told += [*self._close(), self._end(event), {"type": "message_stop"}]
        return told

    def _start(self, event: Event) -> dict[str, Any]:
        self._began = True
        if isinstance(event, Accepted):
            self.message["usage"] = _usage(Usage(prompt=event.prompt_tokens))
        started = {**self.message, "content": [], "usage": dict(self.message["usage"])}
        return {"type": "message_start", "message": started}

    def _delta(self, kind: str, text: str) -> list[dict[str, Any]]:
        told = [] if self._open == kind else [*self._close(), self._begin(kind, dict(_EMPTY[kind]))]
        self.message["content"][-1][kind] += text
        delta = {"type": f"{kind}_delta", kind: text}
        return [*told, {"type": "content_block_delta", "index": len(self.message["content"]) - 1, "delta": delta}]

    def _begin(self, kind: str, block: dict[str, Any]) -> dict[str, Any]:
        self._open = kind
        self.message["content"].append(block)
        return {
            "type": "content_block_start", "index": len(self.message["content"]) - 1, "content_block": dict(block),
        }  # fmt: skip

    def _close(self) -> list[dict[str, Any]]:
        if not self._open:
            return []
        self._open = ""
        return [{"type": "content_block_stop", "index": len(self.message["content"]) - 1}]

    def _end(self, event: Ended) -> dict[str, Any]:
        reason = "stop_sequence" if event.stop else _STOP_REASONS[event.reason]
        told = {"stop_reason": reason, "stop_sequence": event.stop or None}
        self.message |= {**told, "usage": _usage(event.usage)}
        return {"type": "message_delta", "delta": told, "usage": _usage(event.usage)}


def _object(written: str) -> dict[str, Any]:
    """Return a call's arguments; none if the answer broke off in the middle of them."""
    try:
        value = json.loads(written or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt - usage.cached, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached, "output_tokens": usage.completion,
    }  # fmt: skip
