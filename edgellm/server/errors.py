"""What went wrong, as each API says it: {"error": {…}} of OpenAI, {"error": "…"} of Ollama, and Anthropic's."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from edgellm.errors import (
    AnswerError,
    BusyError,
    ConstraintError,
    ContextError,
    DeadlineError,
    EdgellmError,
    ManifestError,
    UsageError,
)
from edgellm.server.models import Loading, UnknownModel

_BUSY_S = 10.0  # after which to ask again, where nothing is known
# Of OpenAI and Anthropic, by status.
_TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    503: ("server_error", "overloaded_error"),
}
_FIELDS = {  # of a prompt, and of what an answer must match
    "/v1/completions": ("prompt", "response_format"),
    "/v1/responses": ("input", "text.format"),
    "/v1/embeddings": ("input", "response_format"),
}
_OTHER = ("server_error", "api_error")


class ApiError(EdgellmError):
    """A request is refused: with an HTTP status, the field that is wrong, a code for programs, and what else to tell.
    `retry_s` is when to ask again."""

    def __init__(
        self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None,
        retry_s: float | None = None, more: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code, self.retry_s, self.more = status, param, code, retry_s, more or {}


def to_api_error(e: BaseException) -> ApiError:
    """Return any error as one that an API tells. What is not of edgellm.errors is not told."""
    text = str(e)
    if isinstance(e, ApiError):
        return e
    if isinstance(e, UnknownModel):
        return ApiError(text, 400, param="model", code="model_not_found")
    if isinstance(e, ContextError):
        return ApiError(text, 400, param="messages", code="context_length_exceeded")
    if isinstance(e, ConstraintError):
        return ApiError(text, 400, param="response_format", code="invalid_schema")
    if isinstance(e, (UsageError, ManifestError)):  # the template can't render this chat
        return ApiError(text, 400)
    if isinstance(e, Loading):
        loading = {"state": "loading", "progress": e.progress, "eta_seconds": e.eta_s}
        retry_s = e.eta_s if e.eta_s is not None else _BUSY_S
        return ApiError(text, 503, code="model_loading", retry_s=retry_s, more={"loading": loading})
    if isinstance(e, BusyError):
        queue = {"position": e.position, "eta_seconds": e.eta_s}
        return ApiError(text, 503, code="busy", retry_s=e.eta_s or _BUSY_S, more={"queue": queue})
    if isinstance(e, DeadlineError):
        return ApiError(text, 504, code="timeout")
    if isinstance(e, AnswerError):
        return ApiError(text, 500, code="answer_failed")
    if isinstance(e, EdgellmError):
        return ApiError(text, 503, code="cluster_unavailable", retry_s=_BUSY_S)
    return ApiError("the server failed; its log says why", 500, code="internal_error")


def api_of(path: str) -> str:
    """Return which API a path belongs to: openai, ollama or anthropic."""
    if path.startswith("/api/"):
        return "ollama"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def body_of(api: str, error: ApiError) -> dict[str, Any]:
    """Return an error as an API's clients expect it."""
    if api == "ollama":
        return {"error": str(error), **error.more}
    openai, anthropic = _TYPES.get(error.status, _OTHER)
    if api == "anthropic":
        return {"type": "error", "error": {"type": anthropic, "message": str(error), **error.more}}
    told = {"message": str(error), "type": openai, "param": error.param, "code": error.code, **error.more}
    return {"error": told}


def respond(api: str, e: BaseException, path: str = "") -> Response:
    """Return the response that refuses a request to `path`."""
    error = to_api_error(e)
    if isinstance(e, (ContextError, ConstraintError)):
        prompt, format_ = _FIELDS.get(path, ("messages", "response_format"))
        error.param = prompt if isinstance(e, ContextError) else format_
    headers = {}
    if error.retry_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_s)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body_of(api, error)), error.status, headers, "application/json")
