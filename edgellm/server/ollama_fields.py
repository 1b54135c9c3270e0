"""What clients of Ollama's API send. Fields that aren't here are accepted and have no effect, as Ollama does it."""

from typing import Any

import msgspec

Count = int | float  # clients send 8192.0, too; whole() takes it


class Options(msgspec.Struct, kw_only=True):
    """How to sample, and how much. Options for other machines' memory, such as num_gpu, have no effect."""

    num_ctx: Count | None = None
    num_predict: Count | None = None
    temperature: float | None = None
    top_k: Count | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Count | None = None
    stop: list[str] | str | None = None


class Function(msgspec.Struct, kw_only=True):
    """A function that the model called: its arguments are an object, not a text."""

    name: str
    arguments: dict[str, Any] = {}


class ToolCall(msgspec.Struct, kw_only=True):
    """A call in an earlier answer."""

    function: Function
    id: str | None = None


class Message(msgspec.Struct, kw_only=True):
    """A message of a chat. A result of a tool names the tool, or its call, or stands in the order of the calls."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ToolFunction(msgspec.Struct, kw_only=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct, kw_only=True):
    """A tool that the model may call."""

    function: ToolFunction
    type: str = "function"


class _Question(msgspec.Struct, kw_only=True):
    model: str
    stream: bool | None = None  # true unless told
    format: dict[str, Any] | str | None = None  # "json", or a JSON schema
    keep_alive: float | str | None = None  # seconds, or "5m"; below 0 is for ever, 0 unloads
    think: bool | str | None = None
    options: Options | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class ChatRequest(_Question, kw_only=True):
    """POST /api/chat. Without messages it loads the model, or unloads it."""

    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class GenerateRequest(_Question, kw_only=True):
    """POST /api/generate. Without a prompt it loads the model, or unloads it."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None


class EmbedRequest(msgspec.Struct, kw_only=True):
    """POST /api/embed."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: float | str | None = None


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """POST /api/embeddings, which older clients use."""

    model: str
    prompt: str
    keep_alive: float | str | None = None


class NameRequest(msgspec.Struct, kw_only=True):
    """POST /api/show and /api/pull. `name` is what older clients send."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None
