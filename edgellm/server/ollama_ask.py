"""Ollama's requests, made into questions. Pure."""

import json
import math
import re
import reprlib
from collections.abc import Sequence
from typing import Any, cast

from edgellm.client import Options
from edgellm.server.asking import Ask
from edgellm.server.fields import refuse
from edgellm.server.ollama_fields import ChatRequest, Count, EmbedRequest, GenerateRequest, Message, NameRequest, Tool
from edgellm.server.ollama_fields import Options as Given
from edgellm.structure import Constraint

DEFAULT_TAG = "latest"
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{0,9})?|\.\d{1,9})(ns|us|µs|ms|s|m|h)")
_SAMPLING = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_THINKING = ("low", "medium", "high", "max")


def chat(request: ChatRequest, key: str = "") -> Ask:
    """Return the question of POST /api/chat. Raises ApiError naming the field that makes no sense."""
    return Ask(
        model=plain_name(request.model),
        messages=tuple(_messages(request.messages or [])),
        options=_options(request),
        tools=tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or [])),
        format=_format(request.format),
        think=_think(request.think),
        keep_alive_s=keep_alive_s(request.keep_alive),
        key=key,
    )


def generate(request: GenerateRequest, key: str = "") -> Ask:
    """Return the question of POST /api/generate. Raises ApiError for fields that this server can't honour."""
    _refuse_images(request.images, "images")
    for name, instead in (
        ("suffix", "Ask without it"),
        ("template", "Send raw, and the whole prompt"),
        ("context", "Send the messages to /api/chat"),
    ):
        if getattr(request, name):
            raise refuse(name, f"this server can't take it. {instead}.")
    prompt = request.prompt or ""
    messages = [{"role": "system", "content": request.system}] if request.system else []
    return Ask(
        model=plain_name(request.model),
        messages=() if request.raw else (*messages, {"role": "user", "content": prompt}),
        prompt=prompt if request.raw else None,
        options=_options(request),
        format=_format(request.format),
        think=_think(request.think),
        keep_alive_s=keep_alive_s(request.keep_alive),
        key=key,
    )


def named(request: NameRequest) -> str:
    """Return the name in a request about a model. Raises ApiError if there is none."""
    name = request.model or request.name
    if not name:
        raise refuse("model", "missing, expected a model's name")
    return plain_name(name)


def texts(request: EmbedRequest) -> list[str]:
    """Return the texts to embed, none of them empty. Raises ApiError."""
    result = [request.input] if isinstance(request.input, str) else request.input
    for i, text in enumerate(result):
        if not text:
            raise refuse("input" if isinstance(request.input, str) else f"input[{i}]", "empty, expected a text")
    if request.dimensions is not None and request.dimensions < 1:
        raise refuse("dimensions", f"{request.dimensions}, expected at least 1")
    return result


def plain_name(model: str) -> str:
    """Return a model's name without the tag that every one of ours has."""
    return model.removesuffix(f":{DEFAULT_TAG}")


def keep_alive_s(value: float | str | None) -> float | None:
    """Return how long a model stays loaded: a number of seconds, or Go's "1h30m"; below 0 is for ever. Raises
    UsageError for another text."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        sign, body = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
        parts = _DURATION.findall(body)
        if body.isascii() and body.isdecimal() and len(body) <= 12:
            value = float(body)
        elif parts and "".join(number + unit for number, unit in parts) == body:
            value = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        else:
            raise refuse("keep_alive", f'{value[:40]!r} is no duration, expected a number of seconds, or "5m"')
        value *= sign
    if not math.isfinite(value):
        raise refuse("keep_alive", "expected a finite number of seconds, or below 0 for ever")
    return math.inf if value < 0 else value


def whole(value: Count, name: str) -> int:
    """Return a whole number, which clients may send as 8192.0. Raises ApiError for any other."""
    if isinstance(value, float) and not value.is_integer():
        raise refuse(name, f"{value:g}, expected a whole number")
    return int(value)


def _options(request: ChatRequest | GenerateRequest) -> Options:
    given = request.options or Given()
    if given.num_ctx is not None and whole(given.num_ctx, "options.num_ctx") < 1:
        raise refuse("options.num_ctx", f"{given.num_ctx:g}, expected at least 1")
    options: dict[str, Any] = {}  # without a limit, the answer ends by itself, or where the slot is full
    if given.num_predict is not None and (most := whole(given.num_predict, "options.num_predict")) > 0:
        options["max_tokens"] = most
    if given.top_k is not None:
        options["top_k"] = max(0, whole(given.top_k, "options.top_k"))
    if given.seed is not None and (seed := whole(given.seed, "options.seed")) >= 0:  # -1 is a random one
        options["seed"] = seed
    if given.stop:
        options["stop"] = [given.stop] if isinstance(given.stop, str) else [stop for stop in given.stop if stop]
    options |= {name: value for name in _SAMPLING if (value := getattr(given, name)) is not None}
    if request.logprobs:
        options["logprobs"] = request.top_logprobs or 0
    return cast(Options, options)


def _format(value: dict[str, Any] | str | None) -> Constraint | None:
    if not value and value != {}:
        return None
    if isinstance(value, dict):
        return Constraint("json_schema", json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    if value == "json":
        return Constraint("json")
    raise refuse("format", f'{reprlib.repr(value)}, expected "json" or a JSON schema')


def _think(value: bool | str | None) -> bool | str | None:
    if isinstance(value, str):
        if value.lower() in ("", "true", "false"):
            return {"": None, "true": True, "false": False}[value.lower()]
        if value not in _THINKING:
            raise refuse("think", f"{value[:40]!r}, expected true, false or one of {', '.join(_THINKING)}")
    return value


def _tool(tool: Tool, where: str) -> dict[str, Any]:
    if not tool.function.name:
        raise refuse(f"{where}.function.name", "empty, expected the function's name")
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    function["parameters"] = tool.function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in OpenAI's shape. A tool's result gets the id of its call: the first one without a result that
    has its tool's name, or else the first one."""
    result: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []  # ids and names
    count = 0
    for i, message in enumerate(messages):
        _refuse_images(message.images, f"messages[{i}].images")
        plain: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            plain["reasoning_content"] = message.thinking
        if message.tool_calls:
            plain["tool_calls"] = []
            for call in message.tool_calls:
                name, identity = call.function.name, call.id or f"call_{count}"
                count += 1
                arguments = json.dumps(call.function.arguments, ensure_ascii=False)
                plain["tool_calls"].append(
                    {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
                )
                open_calls.append((identity, name))
        if message.role == "tool":
            named = [c for c in open_calls if message.tool_call_id == c[0] or message.tool_name == c[1]] or open_calls
            if named:
                plain["tool_call_id"] = named[0][0]
                plain["name"] = named[0][1]
                open_calls.remove(named[0])
            elif message.tool_name or message.tool_call_id:
                plain["name"] = message.tool_name or ""
                plain["tool_call_id"] = message.tool_call_id or ""
        result.append(plain)
    return result


def _refuse_images(images: list[str] | None, where: str) -> None:
    if images:
        raise refuse(where, f"{len(images)} of them, and this model reads only text. Ask without images.")
