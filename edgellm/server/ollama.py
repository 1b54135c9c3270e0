"""Ollama's API: version, tags, show, ps, chat, generate, embed and pull."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgellm.server import ollama_ask, ollama_models
from edgellm.server.asking import Ask, Ended, answer, primed
from edgellm.server.embedding import embed, normalized
from edgellm.server.errors import body_of
from edgellm.server.fields import read, refuse
from edgellm.server.ollama_answer import Answering, loaded, ns
from edgellm.server.ollama_fields import (
    ChatAnswer,
    ChatRequest,
    EmbedAnswer,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    EmbedRequest,
    Error,
    GenerateAnswer,
    GenerateRequest,
    NameRequest,
    Ps,
    Shown,
    Status,
    Tags,
    Version,
)  # fmt: skip
from edgellm.server.openapi import Operation
from edgellm.server.sse import NDJSON, Stream, line, whole

if TYPE_CHECKING:
    from edgellm.server.app import Server

VERSION = "0.13.0"  # of Ollama, whose API this is: clients compare it with the version that they need

OPERATIONS = [
    Operation("GET", "/api/version", "The version of Ollama whose API this is", Version, Error),
    Operation("GET", "/api/tags", "All models", Tags, Error),
    Operation("GET", "/api/ps", "The models that answer now", Ps, Error),
    Operation("POST", "/api/show", "Facts about a model", Shown, Error, NameRequest),
    Operation("POST", "/api/pull", "Whether a model is there", Status, Error, NameRequest, NDJSON),
    Operation("POST", "/api/chat", "Answer a chat, as Ollama does", ChatAnswer, Error, ChatRequest, NDJSON),
    Operation("POST", "/api/generate", "Answer a prompt", GenerateAnswer, Error, GenerateRequest, NDJSON),
    Operation("POST", "/api/embed", "Embed texts, as Ollama does", EmbedAnswer, Error, EmbedRequest),
    Operation("POST", "/api/embeddings", "Embed a text", EmbeddingsAnswer, Error, EmbeddingsRequest),
]


def routes(server: "Server") -> list[Route]:
    """Return the routes under /api."""
    api = _Ollama(server)
    return [
        Route("/api/version", api.version),
        Route("/api/tags", api.tags),
        Route("/api/ps", api.ps),
        Route("/api/show", api.show, methods=["POST"]),
        Route("/api/pull", api.pull, methods=["POST"]),
        Route("/api/chat", api.chat, methods=["POST"]),
        Route("/api/generate", api.generate, methods=["POST"]),
        Route("/api/embed", api.embed, methods=["POST"]),
        Route("/api/embeddings", api.embeddings, methods=["POST"]),
    ]


class _Ollama:
    """Its endpoints."""

    def __init__(self, server: "Server"):
        self._server, self._models = server, server.models

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": VERSION})

    async def tags(self, request: Request) -> Response:
        known = [self._models.describe(name) for name in self._models.names()]
        return JSONResponse({"models": [ollama_models.listed(model) for model in known]})

    async def ps(self, request: Request) -> Response:
        known = [self._models.describe(name) for name in self._models.names()]
        running = [ollama_models.running(model, model.expires_s) for model in known if model.loaded or model.loading]
        return JSONResponse({"models": running})

    async def show(self, request: Request) -> Response:
        model = self._models.describe(ollama_ask.named(await read(request, NameRequest)))
        return JSONResponse(ollama_models.shown(model, self._models.clients[model.name].asker.tokenizer.template))

    async def pull(self, request: Request) -> Response:
        """Answer that a model is there, if it is: boards get their models when they are deployed."""
        asked = await read(request, NameRequest)
        self._models.describe(ollama_ask.named(asked))
        success = {"status": "success"}
        if asked.stream is False:
            return JSONResponse(success)
        return Response(line({"status": "pulling manifest"}) + line(success), media_type=NDJSON)

    async def chat(self, request: Request) -> Response:
        asked = await read(request, ChatRequest)
        self._check_counts(asked)
        ask = ollama_ask.chat(asked, request.state.key)
        return await self._respond(request, asked, ask) if asked.messages else await self._load(asked, ask)

    async def generate(self, request: Request) -> Response:
        asked = await read(request, GenerateRequest)
        ask = ollama_ask.generate(asked, request.state.key)
        return await self._respond(request, asked, ask) if asked.prompt else await self._load(asked, ask)

    async def embed(self, request: Request) -> Response:
        asked = await read(request, EmbedRequest)
        return await whole(request, self._embedded(request, asked))

    async def embeddings(self, request: Request) -> Response:
        asked = await read(request, EmbeddingsRequest)
        if not asked.prompt:
            raise refuse("prompt", "empty, expected a text")
        return await whole(request, self._one_embedded(request, asked))

    async def _embedded(self, request: Request, asked: EmbedRequest) -> Response:
        texts, began_s = ollama_ask.texts(asked), time.perf_counter()
        vectors, tokens = await self._embed(request, asked, texts)
        content = {
            "model": asked.model, "embeddings": [normalized(vector[: asked.dimensions]) for vector in vectors],
            "total_duration": ns(time.perf_counter() - began_s), "load_duration": 0, "prompt_eval_count": tokens,
        }  # fmt: skip
        return JSONResponse(content)

    async def _one_embedded(self, request: Request, asked: EmbeddingsRequest) -> Response:
        vectors, _ = await self._embed(request, asked, [asked.prompt])
        return JSONResponse({"embedding": vectors[0]})

    async def _embed(
        self, request: Request, asked: EmbedRequest | EmbeddingsRequest, texts: list[str]
    ) -> tuple[list[list[float]], int]:
        """Return a vector of length 1 for each text, and how many tokens the texts have."""
        keep_s = ollama_ask.keep_alive_s(asked.keep_alive)
        _, vectors, tokens = await embed(self._models, ollama_ask.plain_name(asked.model), texts, keep_s)
        request.state.tokens = tokens, 0
        return vectors, tokens

    async def _respond(self, request: Request, asked: ChatRequest | GenerateRequest, ask: Ask) -> Response:
        answering = Answering(asked.model, chat=isinstance(asked, ChatRequest))
        told = self._told(request, answering, ask)
        if asked.stream is not False:
            return Stream(_lines(told), "ollama", NDJSON, lambda error: line(body_of("ollama", error)))
        return await whole(request, _last(told, answering))

    async def _load(self, asked: ChatRequest | GenerateRequest, ask: Ask) -> Response:
        async with self._models.use(ask.model, ask.keep_alive_s):
            chat, unload = isinstance(asked, ChatRequest), ask.keep_alive_s == 0
        return JSONResponse(loaded(asked.model, chat=chat, unload=unload, now_s=time.time()))

    async def _told(self, request: Request, answering: Answering, ask: Ask) -> AsyncGenerator[dict[str, Any], None]:
        async with aclosing(primed(answer(self._models, ask))) as events:
            async for event in events:
                if isinstance(event, Ended):
                    request.state.tokens = event.usage.prompt, event.usage.completion
                if (told := answering.feed(event, time.time())) is not None:
                    yield told

    def _check_counts(self, asked: ChatRequest) -> None:
        limits = self._server.settings.limits
        for name, items, most in (("messages", asked.messages, limits.messages), ("tools", asked.tools, limits.tools)):
            if items is not None and len(items) > most:
                raise refuse(name, f"{len(items)} of them, at most {most}")


async def _lines(told: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(told):
        async for content in told:
            yield line(content)


async def _last(told: AsyncGenerator[dict[str, Any], None], answering: Answering) -> Response:
    last: dict[str, Any] = {}
    async with aclosing(told):
        async for content in told:
            last = content
    return JSONResponse(answering.whole(last))

