"""What clients of Ollama's API send, and what they get.

Fields that aren't here are accepted and have no effect, as Ollama does it.
"""

from typing import Any, Literal

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


class Version(msgspec.Struct):
    """The answer of /api/version."""

    version: str


class Details(msgspec.Struct):
    """What a model is made of."""

    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    parent_model: str


class Listed(msgspec.Struct):
    """A model in /api/tags."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(msgspec.Struct):
    """The answer of /api/tags."""

    models: list[Listed]


class LoadingBytes(msgspec.Struct):
    """How far boards are with loading a model."""

    completed: int
    total: int


class Running(msgspec.Struct):
    """A model in /api/ps."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int
    loading: LoadingBytes | msgspec.UnsetType = msgspec.UNSET


class Ps(msgspec.Struct):
    """The answer of /api/ps."""

    models: list[Running]


class Shown(msgspec.Struct):
    """The answer of /api/show."""

    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Status(msgspec.Struct):
    """The answer of /api/pull."""

    status: str


class AnswerMessage(msgspec.Struct):
    """The answer to a chat."""

    role: Literal["assistant"]
    content: str
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = []


class _Answer(msgspec.Struct, kw_only=True):
    model: str
    created_at: str
    done: Literal[True]
    done_reason: Literal["stop", "length", "load", "unload"]
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    logprobs: list[dict[str, Any]] = []


class ChatAnswer(_Answer, kw_only=True):
    """The answer of /api/chat, all at once."""

    message: AnswerMessage


class GenerateAnswer(_Answer, kw_only=True):
    """The answer of /api/generate, all at once."""

    response: str
    thinking: str = ""


class EmbedAnswer(msgspec.Struct):
    """The answer of /api/embed."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsAnswer(msgspec.Struct):
    """The answer of /api/embeddings."""

    embedding: list[float]


class Error(msgspec.Struct):
    """What went wrong."""

    error: str
