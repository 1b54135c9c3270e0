"""What clients of OpenAI's /v1/responses send, as msgspec structs; unknown fields are ignored."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from edgellm.server.openai_types import Part


class Item(Struct, kw_only=True):
    """An item of the input: a message, a function's call or its output, or reasoning."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None


class Tool(Struct, kw_only=True):
    type: str
    name: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(Struct, kw_only=True):
    """A tool that must be called."""

    type: str
    name: str | None = None


class Format(Struct, kw_only=True):
    """`type` is text, json_object or json_schema."""

    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(Struct, kw_only=True):
    format: Format | None = None
    verbosity: str | None = None


class ReasoningOptions(Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(Struct, kw_only=True):
    """The body of /v1/responses."""

    input: str | Annotated[list[Item], Meta(min_length=1)]
    model: str = ""
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
