"""Requests to OpenAI's /v1/responses → questions, by way of a request for a chat, which is checked field by field."""

from edgellm.server.asking import Ask
from edgellm.server.errors import ApiError
from edgellm.server.fields import refuse
from edgellm.server.guard import Limits
from edgellm.server.openai_ask import chat_ask, text_of
from edgellm.server.openai_types import (
    CalledFunction,
    ChatRequest,
    Function,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    ToolCall,
)
from edgellm.server.openai_types import Tool as ChatTool
from edgellm.server.responses_types import Choice, Format, Item, ResponsesRequest, Tool

_SAME = (
    "model", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
    "seed", "top_logprobs", "parallel_tool_calls", "chat_template_kwargs",
)  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"
# What a chat's fields are called here; the longest first.
_RENAMED = (
    ("max_completion_tokens", "max_output_tokens"), ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"), ("messages", "input"),
)  # fmt: skip


def responses_ask(body: ResponsesRequest, key: str, limits: Limits) -> Ask:
    """Return what a request asks. Raises ApiError."""
    for field in ("previous_response_id", "conversation", "background"):
        if getattr(body, field):
            raise refuse(field, "isn't supported: this server keeps no responses. Send the whole conversation.")
    messages = _messages(body)
    format_ = body.text.format if body.text is not None else None
    wants_logprobs = body.top_logprobs is not None or _LOGPROBS in (body.include or ())
    chat = ChatRequest(
        messages=messages, max_completion_tokens=body.max_output_tokens, logprobs=wants_logprobs or None,
        tools=_tools(body.tools), tool_choice=_choice(body.tool_choice), response_format=_format(format_),
        reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        **{name: getattr(body, name) for name in _SAME},
    )  # fmt: skip
    try:
        return chat_ask(chat, key, limits)
    except ApiError as e:
        for theirs, ours in _RENAMED:
            if e.param is not None and e.param.startswith(theirs):
                param = ours + e.param.removeprefix(theirs)
                raise refuse(param, str(e).removeprefix(f"{e.param}: ")) from None
        raise


def _messages(body: ResponsesRequest) -> list[Message]:
    messages = [Message("system", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, Message("user", body.input)]
    reasoning: str | None = None
    for i, item in enumerate(body.input):
        where = f"input[{i}]"
        if item.type == "reasoning":
            texts = text_of(item.content, f"{where}.content") if item.content else None
            reasoning = texts or "\n".join(part.text or "" for part in item.summary or ()) or None
        elif item.type == "message":
            if item.role is None:
                raise refuse(f"{where}.role", "is missing")
            told = Message(item.role, text_of(item.content, f"{where}.content"))
            if item.role == "assistant":
                told.reasoning_content, reasoning = reasoning, None
            messages.append(told)
        elif item.type == "function_call":
            _call(item, where, messages, reasoning)
            reasoning = None
        elif item.type == "function_call_output":
            if item.call_id is None:
                raise refuse(f"{where}.call_id", "is missing")
            messages.append(Message("tool", text_of(item.output, f"{where}.output") or "", tool_call_id=item.call_id))
        else:
            raise refuse(f"{where}.type", f"is {item.type[:40]!r}, expected message, function_call, "
                         "function_call_output or reasoning")  # fmt: skip
    if not messages:
        raise refuse("input", "has no message")
    return messages


def _call(item: Item, where: str, messages: list[Message], reasoning: str | None) -> None:
    """Add a call to the assistant's message before it, or to a new one."""
    if not item.name or item.call_id is None:
        raise refuse(f"{where}.{'call_id' if item.name else 'name'}", "is missing")
    call = ToolCall(CalledFunction(item.name, item.arguments or "{}"), item.call_id)
    if messages and messages[-1].role == "assistant":
        messages[-1].tool_calls = [*(messages[-1].tool_calls or []), call]
        messages[-1].reasoning_content = messages[-1].reasoning_content or reasoning
    else:
        messages.append(Message("assistant", None, tool_calls=[call], reasoning_content=reasoning))


def _tools(tools: list[Tool] | None) -> list[ChatTool] | None:
    if tools is None:
        return None
    told = []
    for i, tool in enumerate(tools):
        if tool.type != "function":
            raise refuse(f"tools[{i}].type", f"is {tool.type[:40]!r}; this server has only tools of type function")
        if tool.name is None:
            raise refuse(f"tools[{i}].name", "is missing")
        told.append(ChatTool(Function(tool.name, tool.description, tool.parameters, tool.strict)))
    return told


def _choice(choice: str | Choice | None) -> str | NamedTool | None:
    if not isinstance(choice, Choice):
        return choice
    if choice.type != "function" or not choice.name:
        raise refuse("tool_choice", "expected auto, none, required, or the name of a function")
    return NamedTool(NamedFunction(choice.name))


def _format(format_: Format | None) -> ResponseFormat | None:
    if format_ is None:
        return None
    if format_.type == "json_schema":
        return ResponseFormat("json_schema", JsonSchema(format_.name, None, format_.schema, format_.strict))
    return ResponseFormat(format_.type)
