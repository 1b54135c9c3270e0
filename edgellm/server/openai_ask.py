"""OpenAI's requests → questions. What makes no sense is refused here, with the field's name, before a board works."""

import json
from typing import Any

from edgellm.client import Options
from edgellm.errors import UsageError
from edgellm.limits import MAX_LOGPROBS
from edgellm.sampling import Sampling
from edgellm.server.asking import Ask
from edgellm.server.fields import refuse
from edgellm.server.guard import Limits
from edgellm.server.openai_types import (
    ChatRequest,
    Function,
    Message,
    NamedFunction,
    NamedTool,
    Part,
    ResponseFormat,
    Sampled,
    Tool,
    ToolCall,
)
from edgellm.structure import Constraint
from edgellm.text.tokenizer import ROLES

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SAMPLING = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "top_k", "repeat_penalty")
_TEXTS = ("text", "input_text", "output_text", "reasoning_text")


def chat_ask(body: ChatRequest, key: str, limits: Limits) -> Ask:
    """Return what a request for a chat asks. Raises ApiError."""
    if len(body.messages) > limits.messages:
        raise refuse("messages", f"{len(body.messages)} messages, at most {limits.messages}. Send fewer.")
    options = sampled_options(body, body.max_completion_tokens)
    if body.logprobs or body.top_logprobs is not None:
        if not body.logprobs:
            raise refuse("top_logprobs", "needs logprobs to be true")
        options["logprobs"] = logprobs_of("top_logprobs", body.top_logprobs or 0)
    tools = _tools(body, limits)
    effort = body.reasoning_effort
    if effort is not None and effort not in _EFFORTS:
        raise refuse("reasoning_effort", f"is {effort[:40]!r}, expected one of {', '.join(_EFFORTS)}")
    return Ask(
        body.model, tuple(message_of(m, f"messages[{i}]") for i, m in enumerate(body.messages)), None, options, tools,
        _choice(body, tools), body.parallel_tool_calls is not False, format_of(body.response_format), effort,
        body.chat_template_kwargs or {}, keep_alive_of(body.keep_alive), key,
    )  # fmt: skip


def sampled_options(body: Sampled, most: int | None = None) -> Options:
    """Return the options that chats and completions share; `most` comes before `max_tokens`. Raises ApiError."""
    given: dict[str, Any] = {name: getattr(body, name) for name in _SAMPLING}
    if given["repeat_penalty"] is None:
        given["repeat_penalty"] = body.repetition_penalty
    if given["top_k"] == -1:  # another program's word for off
        given["top_k"] = 0
    given = {name: value for name, value in given.items() if value is not None}
    if body.logit_bias:
        given["logit_bias"] = _biases(body.logit_bias)
    if body.seed is not None and body.seed != -1:  # llama.cpp's word for any
        given["seed"] = body.seed
    for name, value in given.items():
        try:
            Sampling(**{name: value})
        except UsageError as e:
            raise refuse(name, str(e).removeprefix(name.replace("_", "-")).lstrip()) from None
    field = "max_tokens" if most is None else "max_completion_tokens"
    most = body.max_tokens if most is None else most
    if most is not None and most != -1:  # llama.cpp's word for as many as fit
        if most < 1:
            raise refuse(field, f"is {most}, expected at least 1")
        given["max_tokens"] = min(most, 1 << 30)
    if body.stop:
        given["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.speculate is not None:
        given["speculate"] = body.speculate
    options: Options = {}
    options.update(given)  # type: ignore[typeddict-item]
    return options


def choices_of(n: int | None, limits: Limits) -> int:
    """Return how many answers are wanted. Raises ApiError."""
    if n is not None and not 1 <= n <= limits.choices:
        raise refuse("n", f"is {n}, expected 1 to {limits.choices}")
    return n or 1


def logprobs_of(field: str, count: int) -> int:
    """Return how many likeliest tokens are wanted. Raises ApiError."""
    if not 0 <= count <= MAX_LOGPROBS:
        raise refuse(field, f"is {count}, expected 0 to {MAX_LOGPROBS}")
    return count


def message_of(message: Message, where: str) -> dict[str, Any]:
    """Return a message with its content as a text. Raises ApiError."""
    role = "tool" if message.role == "function" else message.role
    if role not in ROLES:
        raise refuse(f"{where}.role", f"is {role[:40]!r}, expected one of {', '.join(ROLES)}")
    content = text_of(message.content, f"{where}.content")
    if content is None and role != "assistant":
        raise refuse(f"{where}.content", "is missing, expected a text")
    told: dict[str, Any] = {"role": role, "content": content or ""}
    if message.tool_calls and role == "assistant":
        told["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)]
    reasoning = message.reasoning_content or message.reasoning or message.thinking
    for name, value in (("tool_call_id", message.tool_call_id), ("name", message.name),
                        ("reasoning_content", reasoning)):  # fmt: skip
        if value is not None:
            told[name] = value
    return told


def text_of(content: str | list[Part] | None, where: str) -> str | None:
    """Return the texts of a message's parts as one. Raises ApiError for images and other parts."""
    if content is None or isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        if part.type not in _TEXTS:
            raise refuse(f"{where}[{i}].type", f"is {part.type[:40]!r}; this model reads text only")
        if part.text is None:
            raise refuse(f"{where}[{i}].text", "is missing")
        texts.append(part.text)
    return "\n".join(texts)


def format_of(wanted: ResponseFormat | None) -> Constraint | None:
    """Return what the answer must match. Raises ApiError."""
    if wanted is None or wanted.type == "text":
        return None
    field = "response_format"
    try:
        if wanted.type == "json_object" and wanted.schema is None:
            return Constraint("json")
        if wanted.type in ("json_schema", "json_object"):
            field += ".json_schema" if wanted.json_schema is not None else ""
            schema = wanted.schema if wanted.json_schema is None else wanted.json_schema.schema
            if schema is None:
                raise refuse(f"{field}.schema", "is missing")
            return Constraint("json_schema", json.dumps(schema, ensure_ascii=False))
        for kind, source, name in (("regex", wanted.regex, "regex"), ("lark", wanted.grammar, "grammar")):
            if wanted.type == name:
                field = f"response_format.{name}"
                return Constraint(kind, source or "")
    except UsageError as e:
        raise refuse(field, str(e)) from None
    raise refuse("response_format.type", f"is {wanted.type[:40]!r}, expected text, json_object or json_schema")


def keep_alive_of(value: float | str | None) -> float | None:
    """Return how many seconds a model is to stay without being asked; infinite for a negative one. Raises ApiError."""
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    seconds: float | None = None
    if isinstance(value, str):
        number = value.rstrip("smh")
        unit = value[len(number) :] or "s"
        try:
            seconds = float(number) * units[unit]
        except (ValueError, KeyError):
            raise refuse("keep_alive", f"is {value[:40]!r}, expected seconds, or 10m or 1h") from None
    elif value is not None:
        seconds = float(value)
    if seconds is not None and seconds != seconds:
        raise refuse("keep_alive", "is not a number")
    return float("inf") if seconds is not None and seconds < 0 else seconds


def _biases(given: dict[str, float]) -> dict[int, float]:
    biases = {}
    for token, bias in given.items():
        if not token.isascii() or not token.isdecimal() or len(token) > 10:
            raise refuse("logit_bias", f"has {token[:40]!r}, expected the id of a token")
        biases[int(token)] = bias
    return biases


def _call(call: ToolCall, where: str) -> dict[str, Any]:
    arguments = call.function.arguments
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    told = {"type": "function", "function": {"name": call.function.name, "arguments": arguments or "{}"}}
    return told if call.id is None else {"id": call.id, **told}


def _tools(body: ChatRequest, limits: Limits) -> tuple[dict[str, Any], ...]:
    tools = body.tools if body.tools is not None else [Tool(f) for f in body.functions or ()]
    if len(tools) > limits.tools:
        raise refuse("tools", f"{len(tools)} tools, at most {limits.tools}. Send fewer.")
    for i, tool in enumerate(tools):
        if tool.type != "function":
            raise refuse(f"tools[{i}].type", f"is {tool.type[:40]!r}, expected 'function'")
    names = [tool.function.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise refuse(f"tools[{i}].function.name", f"{name[:60]!r} names two tools")
    return tuple({"type": "function", "function": _function(tool.function)} for tool in tools)


def _function(function: Function) -> dict[str, Any]:
    told: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        told["description"] = function.description
    told["parameters"] = function.parameters or {"type": "object", "properties": {}}
    if function.strict is not None:
        told["strict"] = function.strict
    return told


def _choice(body: ChatRequest, tools: tuple[dict[str, Any], ...]) -> str:
    """Return auto, none, required, or the name of the tool to call. Raises ApiError."""
    choice = body.tool_choice if body.tool_choice is not None else body.function_call
    names = [tool["function"]["name"] for tool in tools]
    named = None
    if isinstance(choice, NamedTool):
        named = choice.function.name
    elif isinstance(choice, NamedFunction):
        named = choice.name
    if named is not None:
        if named not in names:
            raise refuse("tool_choice", f"names {named[:60]!r}, which is none of the tools")
        return named
    if choice is None:
        return "auto"
    assert isinstance(choice, str)
    choice = "required" if choice == "any" else choice
    if choice not in ("auto", "none", "required"):
        raise refuse("tool_choice", f"is {choice[:40]!r}, expected auto, none, required or a function")
    if choice == "required" and not tools:
        raise refuse("tool_choice", "is 'required', but there are no tools")
    return choice
