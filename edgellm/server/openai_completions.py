"""OpenAI's /v1/completions: how the model continues a text, without a chat template."""

import secrets
import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgellm.server.asking import Accepted, Ask, Ended, Event, Text, TokenLogprob
from edgellm.server.fields import read, refuse
from edgellm.server.guard import Limits
from edgellm.server.openai_answers import Completion, Error
from edgellm.server.openai_ask import choices_of, format_of, keep_alive_of, logprobs_of, sampled_options
from edgellm.server.openai_reply import Choice, Reply
from edgellm.server.openai_types import CompletionRequest
from edgellm.server.openapi import Operation
from edgellm.server.several import copies
from edgellm.server.sse import PING, SSE, Stream, event, quiet, whole

if TYPE_CHECKING:
    from edgellm.server.app import Server

OPERATIONS = [
    Operation("POST", "/v1/completions", "Continue a text", Completion, Error, CompletionRequest, SSE),
]


def routes(server: "Server") -> list[Route]:
    """Return the route of completions."""

    async def complete(request: Request) -> Response:
        body = await read(request, CompletionRequest)
        reply = _Reply(body, request.state.key, server.settings.limits)
        if body.stream:
            return Stream(reply.pieces(server, request), "openai")
        return await whole(request, reply.whole(server, request))

    return [Route("/v1/completions", complete, methods=["POST"])]


class _Reply(Reply):
    """The reply to one request, with all its choices."""

    def __init__(self, body: CompletionRequest, key: str, limits: Limits):
        """Raises ApiError for a request that makes no sense."""
        self._body = body
        self._prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        self._n = choices_of(body.n, limits)
        _check(body, self._prompts, self._n, limits)
        options = sampled_options(body)
        if "max_tokens" not in options:
            options["max_tokens"] = 16  # as OpenAI's
        if body.logprobs is not None:
            options["logprobs"] = logprobs_of("logprobs", body.logprobs)
        wanted, keep_alive_s = format_of(body.response_format), keep_alive_of(body.keep_alive)
        asks: list[Ask] = []
        for prompt in self._prompts:
            ask = Ask(body.model, (), prompt, options, format=wanted, keep_alive_s=keep_alive_s, key=key)
            asks += copies(ask, self._n)
        super().__init__(body.model, asks, self._n, body.stream_options)
        self._head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time())}
        self._lengths = [len(self._echo(i)) for i in range(len(asks))]  # of each choice's text, for logprobs

    def _content(self, choices: list[Choice]) -> dict[str, Any]:
        told = [
            self._choice(i, self._echo(i) + "".join(c.text), c.logprobs, c.ended.reason)
            for i, c in enumerate(choices) if c.ended is not None
        ]  # fmt: skip
        return {**self._head, "model": self._model, "choices": told}

    def _piece(self, i: int, happened: Event) -> bytes:
        if isinstance(happened, Accepted):
            echo = self._echo(i)
            return event(self._chunk([self._choice(i, echo)])) if echo else PING
        if isinstance(happened, Text):
            return event(self._chunk([self._choice(i, happened.text, happened.logprobs)]))
        if isinstance(happened, Ended):
            return event(self._chunk([self._choice(i, "", (), happened.reason)]))
        return quiet(happened)

    def _echo(self, i: int) -> str:
        return self._prompts[i // self._n] if self._body.echo else ""

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "model": self._model, "choices": choices}

    def _choice(
        self, i: int, text: str, logprobs: list[TokenLogprob] | tuple[TokenLogprob, ...] = (),
        reason: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        told = self._logprobs(i, logprobs) if logprobs else None
        return {"index": i, "text": text, "logprobs": told, "finish_reason": reason}

    def _logprobs(self, i: int, logprobs: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> dict[str, Any]:
        offsets = []
        for token in logprobs:
            offsets.append(self._lengths[i])
            self._lengths[i] += len(token.token)
        return {
            "tokens": [t.token for t in logprobs],
            "token_logprobs": [t.logprob for t in logprobs],
            "top_logprobs": [{o.token: o.logprob for o in (t, *t.top)} for t in logprobs],
            "text_offset": offsets,
        }


def _check(body: CompletionRequest, prompts: list[str], n: int, limits: Limits) -> None:
    if not prompts or not all(p.strip() for p in prompts):
        raise refuse("prompt", "is empty, expected a text")
    if len(prompts) * n > limits.choices:
        raise refuse("prompt", f"{len(prompts)} prompts with n {n}, at most {limits.choices} answers at once")
    if body.suffix:
        raise refuse("suffix", "isn't supported: this model continues texts, and fills no gaps")
    if body.best_of is not None and body.best_of != n:
        raise refuse("best_of", f"is {body.best_of}, but n is {n}. Leave it out.")
