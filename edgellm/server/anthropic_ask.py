"""Anthropic's requests, made into questions. Pure."""

import json
from collections.abc import Sequence
from typing import Any, cast

from edgellm.client import Options
from edgellm.server.anthropic_fields import Block, CountRequest, Message, MessagesRequest, Tool
from edgellm.server.asking import Ask
from edgellm.server.fields import refuse
from edgellm.structure import Constraint

_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def question(request: CountRequest, key: str = "") -> Ask:
    """Return the question of POST /v1/messages, or of its count_tokens. Raises ApiError naming the field that makes
    no sense."""
    choice = request.tool_choice
    return Ask(
        model=request.model,
        messages=(*_system(request), *_messages(request.messages)),
        options=_options(request) if isinstance(request, MessagesRequest) else Options(),
        tools=tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(request.tools or [])),
        tool_choice=_tool_choice(request),
        parallel=choice is None or not choice.disable_parallel_tool_use,
        format=_format(request),
        think=_think(request),
        key=key,
    )


def _options(request: MessagesRequest) -> Options:
    if request.max_tokens < 1:
        raise refuse("max_tokens", f"{request.max_tokens}, expected at least 1")
    options: dict[str, Any] = {"max_tokens": request.max_tokens}
    given = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k")}
    options |= {name: value for name, value in given.items() if value is not None}
    if request.stop_sequences:
        options["stop"] = [stop for stop in request.stop_sequences if stop]
    return cast(Options, options)


def _tool_choice(request: CountRequest) -> str:
    choice = request.tool_choice
    if choice is None:
        return "auto"
    if choice.type == "tool":
        if not choice.name:
            raise refuse("tool_choice.name", "missing, expected the name of a tool")
        return choice.name
    return "required" if choice.type == "any" else choice.type


def _think(request: CountRequest) -> bool | str | None:
    """Return whether to think: not unless asked, as Anthropic has it."""
    if request.thinking is None or request.thinking.type == "disabled":
        return False
    effort = request.output_config.effort if request.output_config is not None else None
    if effort is None:
        return True if request.thinking.type == "enabled" else None
    if effort not in _EFFORTS:
        raise refuse("output_config.effort", f"{effort[:40]!r}, expected one of {', '.join(_EFFORTS)}")
    return _EFFORTS[effort]


def _format(request: CountRequest) -> Constraint | None:
    wanted = request.output_config.format if request.output_config is not None else None
    if wanted is None:
        return None
    return Constraint("json_schema", json.dumps(wanted.schema, ensure_ascii=False, separators=(",", ":")))


def _tool(tool: Tool, where: str) -> dict[str, Any]:
    if not tool.name:
        raise refuse(f"{where}.name", "empty, expected the tool's name")
    if tool.type not in (None, "custom"):
        raise refuse(f"{where}.type", f"{tool.type[:60]!r} runs on Anthropic's servers only. Send tools of your own.")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _system(request: CountRequest) -> list[dict[str, Any]]:
    if not request.system:
        return []
    texts = [request.system] if isinstance(request.system, str) else [block.text for block in request.system]
    return [{"role": "system", "content": "\n\n".join(texts)}]


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in OpenAI's shape: each result of a tool is a message of its own."""
    result: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if isinstance(message.content, str):
            result.append({"role": message.role, "content": message.content})
            continue
        blocks = [(block, f"messages[{i}].content[{j}]") for j, block in enumerate(message.content)]
        result += _assistant(blocks) if message.role == "assistant" else _user(message.role, blocks)
    return result


def _user(role: str, blocks: Sequence[tuple[Block, str]]) -> list[dict[str, Any]]:
    results, texts = [], []
    for block, where in blocks:
        if block.type == "tool_result":
            content = _result(block, where)
            content = f"Error: {content}" if block.is_error else content
            identity = _required(block.tool_use_id, f"{where}.tool_use_id")
            results.append({"role": "tool", "tool_call_id": identity, "content": content})
        else:
            texts.append(_text(block, where))
    return [*results, {"role": role, "content": "\n\n".join(texts)}] if texts or not results else results


def _assistant(blocks: Sequence[tuple[Block, str]]) -> list[dict[str, Any]]:
    texts, thoughts, calls = [], [], []
    for block, where in blocks:
        if block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            name, identity = _required(block.name, f"{where}.name"), _required(block.id, f"{where}.id")
            arguments = json.dumps(block.input or {}, ensure_ascii=False)
            calls.append({"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}})
        elif block.type != "redacted_thinking":  # of another model: nobody here can read it
            texts.append(_text(block, where))
    message: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return [message]


def _result(block: Block, where: str) -> str:
    if block.content is None or isinstance(block.content, str):
        return block.content or ""
    for i, part in enumerate(block.content):
        if part.type != "text" or part.text is None:
            raise refuse(f"{where}.content[{i}].type", f"{part.type[:40]!r}, and this model reads only text")
    return "\n\n".join(part.text or "" for part in block.content)


def _text(block: Block, where: str) -> str:
    if block.type != "text":
        raise refuse(f"{where}.type", f"{block.type[:40]!r}, and this model reads only text here")
    if block.text is None:
        raise refuse(f"{where}.text", "missing, expected a text")
    return block.text


def _required(value: str | None, where: str) -> str:
    if not value:
        raise refuse(where, "missing, expected a text")
    return value
