"""Answers as Ollama gives them: one JSON object, or one a line while they arrive. Pure.

Durations are whole nanoseconds. A call of a tool is told when its arguments are complete, as an object.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from edgellm.server.asking import (
    Ended,
    Event,
    Reasoning,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolBegin,
    ToolEnd,
    Waiting,
)  # fmt: skip


def timestamp(seconds: float) -> str:
    """Return a time of day, in seconds since 1970, as Ollama writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def ns(seconds: float) -> int:
    """Return seconds as whole nanoseconds."""
    return round(seconds * 1e9)


class Answering:
    """Turns the events of one answer into the objects of a stream, or into one object.

    `chat` says whether the answer is a message, or the `response` of /api/generate.
    """

    def __init__(self, model: str, *, chat: bool):
        self._model, self._chat = model, chat
        self._calls: dict[int, dict[str, Any]] = {}
        self._texts: list[str] = []
        self._thinking: list[str] = []
        self._done_calls: list[dict[str, Any]] = []
        self._logprobs: list[Any] = []

    def feed(self, event: Event, now_s: float) -> dict[str, Any] | None:
        """Return the object that tells of an event, None if there is nothing to tell. `now_s` is the time of day."""
        if isinstance(event, Text) and (event.text or event.logprobs):
            return self._piece(now_s, event.text, logprobs=[_written(token) for token in event.logprobs])
        if isinstance(event, Reasoning) and event.text:
            self._thinking.append(event.text)
            return self._object(now_s, "", thinking=event.text)
        if isinstance(event, ToolBegin):
            self._calls[event.index] = {"id": event.id, "name": event.name, "arguments": []}
        if isinstance(event, ToolArguments):
            self._calls[event.index]["arguments"].append(event.text)
        if isinstance(event, ToolEnd):
            return self._call(self._calls.pop(event.index), event.index, now_s)
        if isinstance(event, Ended):
            return {**self._object(now_s, ""), **_end(event)}
        if isinstance(event, Waiting):  # so that nobody on the way takes the connection for dead
            return self._object(now_s, "")
        return None

    def whole(self, ended: Mapping[str, Any]) -> dict[str, Any]:
        """Return the one object that stands for the stream which ended with the object `ended`."""
        text, thinking = "".join(self._texts), "".join(self._thinking)
        whole = dict(ended)
        whole |= self._content(text, thinking, self._done_calls)
        if self._logprobs:
            whole["logprobs"] = self._logprobs
        return whole

    def _call(self, call: dict[str, Any], index: int, now_s: float) -> dict[str, Any]:
        written = "".join(call["arguments"])
        try:
            arguments = json.loads(written or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):  # broken off, or no object: shown, not called
            return self._piece(now_s, f"{call['name']}{written}")
        function = {"index": index, "name": call["name"], "arguments": arguments}
        self._done_calls.append({"id": call["id"], "function": function})
        return self._object(now_s, "", calls=self._done_calls[-1:])

    def _piece(self, now_s: float, text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
        self._texts.append(text)
        self._logprobs += logprobs or []
        piece = self._object(now_s, text)
        return {**piece, "logprobs": logprobs} if logprobs else piece

    def _object(
        self, now_s: float, text: str, thinking: str = "", calls: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        head = {"model": self._model, "created_at": timestamp(now_s)}
        return {**head, **self._content(text, thinking, calls or []), "done": False}

    def _content(self, text: str, thinking: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        more: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if not self._chat:
            return {"response": text, **more}
        more |= {"tool_calls": calls} if calls else {}
        return {"message": {"role": "assistant", "content": text, **more}}


def loaded(model: str, *, chat: bool, unload: bool, now_s: float) -> dict[str, Any]:
    """Return what answers a question without a prompt: the model was loaded, or unloaded."""
    content = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    reason = "unload" if unload else "load"
    return {"model": model, "created_at": timestamp(now_s), **content, "done": True, "done_reason": reason}


def _end(event: Ended) -> dict[str, Any]:
    usage, timings = event.usage, event.timings
    prompt_s = max(0.0, timings.first_token_s - timings.queue_s)
    return {
        "done": True,
        "done_reason": "length" if event.reason == "length" else "stop",
        "total_duration": ns(timings.load_s + timings.total_s),
        "load_duration": ns(timings.load_s),
        "prompt_eval_count": usage.prompt,
        "prompt_eval_duration": ns(prompt_s),
        "eval_count": usage.completion,
        "eval_duration": ns(max(0.0, timings.total_s - timings.first_token_s)),
    }


def _written(token: TokenLogprob) -> dict[str, Any]:
    return {**_spelled(token), "top_logprobs": [_spelled(other) for other in token.top]}


def _spelled(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.data)}
