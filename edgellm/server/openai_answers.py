"""What OpenAI's routes answer, as msgspec structs, from which /openapi.json is made."""

from typing import Any, Literal

from msgspec import Struct

Reason = Literal["stop", "length", "tool_calls"]


class PromptDetails(Struct):
    cached_tokens: int


class CompletionDetails(Struct):
    reasoning_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(Struct):
    content: list[Logprob]


class CalledFunction(Struct):
    name: str
    arguments: str


class Call(Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Struct):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str = ""
    tool_calls: list[Call] = []


class ChatChoice(Struct):
    index: int
    message: Message
    finish_reason: Reason
    logprobs: Logprobs | None = None


class ChatCompletion(Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Model(Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int
    max_model_len: int


class Models(Struct):
    object: Literal["list"]
    data: list[Model]


class Embedding(Struct):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Struct):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class InputDetails(Struct):
    cached_tokens: int


class ResponseUsage(Struct):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: CompletionDetails
    total_tokens: int


class OutputItem(Struct):
    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: Literal["completed"]
    role: Literal["assistant"] = "assistant"
    content: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    call_id: str = ""
    name: str = ""
    arguments: str = ""


class ResponseObject(Struct):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[OutputItem]
    usage: ResponseUsage
    parallel_tool_calls: bool
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]


class ErrorTold(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct):
    error: ErrorTold
