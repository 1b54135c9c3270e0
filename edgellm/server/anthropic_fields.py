"""What clients of Anthropic's API send, and what they get. Fields that aren't here are accepted without effect."""

from typing import Any, Literal

import msgspec


class ResultBlock(msgspec.Struct, kw_only=True):
    """A part of a tool's result."""

    type: str
    text: str | None = None


class Block(msgspec.Struct, kw_only=True):
    """A part of a message: text, thinking, tool_use, or tool_result."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None


class Message(msgspec.Struct, kw_only=True):
    """A message of a chat."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class SystemBlock(msgspec.Struct, kw_only=True):
    """A part of the system prompt."""

    text: str
    type: str = "text"


class Tool(msgspec.Struct, kw_only=True):
    """A tool that the model may call; `input_schema` is a JSON schema. Tools that Anthropic's servers run have another
    type, and are refused."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct, kw_only=True):
    """Which tools the model may call, or must."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, kw_only=True):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class OutputFormat(msgspec.Struct, kw_only=True):
    """What the answer must match."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True):
    """How the answer is made."""

    effort: str | None = None
    format: OutputFormat | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: list[Message]
    system: str | list[SystemBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


class Usage(msgspec.Struct):
    """How many tokens a message took."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AnswerBlock(msgspec.Struct):
    """A part of an answer."""

    type: Literal["text", "thinking", "tool_use"]
    text: str = ""
    thinking: str = ""
    signature: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}


class Answer(msgspec.Struct):
    """The answer of /v1/messages, all at once."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: Usage


class Count(msgspec.Struct):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


class ErrorTold(msgspec.Struct):
    """What went wrong."""

    type: str
    message: str


class Error(msgspec.Struct):
    """An error."""

    type: Literal["error"]
    error: ErrorTold
