"""What OpenAI's clients send to ask for an answer, as msgspec structs; unknown fields are ignored."""

from typing import Annotated, Any

from msgspec import Meta, Struct

Short = Annotated[str, Meta(max_length=256)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
Stops = Annotated[list[Stop], Meta(max_length=16)]


class Part(Struct):
    """A piece of a message's content; only texts are understood."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: str | dict[str, Any] | None = None


class ToolCall(Struct):
    function: CalledFunction
    id: str | None = None
    type: str = "function"
    index: int | None = None


class Message(Struct):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    refusal: str | None = None


class Function(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    function: Function
    type: str = "function"


class NamedFunction(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=128)]


class NamedTool(Struct):
    """A tool that must be called."""

    function: NamedFunction
    type: str = "function"


class StreamOptions(Struct):
    include_usage: bool | None = None


class JsonSchema(Struct):
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """`type` is text, json_object or json_schema; or, as extensions, regex or grammar (llguidance's Lark)."""

    type: str
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None


class Sampled(Struct, kw_only=True):
    """What chats and completions share. Numbers out of range are refused where they are used."""

    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: Stop | Stops | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    keep_alive: float | str | None = None
    return_progress: bool | None = None
    speculate: bool | None = None


class ChatRequest(Sampled, kw_only=True):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: str | NamedFunction | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(Sampled, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[str]
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = None


class EmbeddingRequest(Struct, kw_only=True):
    """The body of /v1/embeddings."""

    input: str | Annotated[list[str], Meta(min_length=1, max_length=256)]
    model: str = ""
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None
    keep_alive: float | str | None = None


