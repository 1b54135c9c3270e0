"""OpenAI's /v1/embeddings."""

import array
import base64
import sys
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgellm.server.embedding import embed
from edgellm.server.fields import read, refuse
from edgellm.server.openai_answers import Embeddings, Error
from edgellm.server.openai_ask import keep_alive_of
from edgellm.server.openai_types import EmbeddingRequest
from edgellm.server.openapi import Operation
from edgellm.server.sse import whole

if TYPE_CHECKING:
    from edgellm.server.app import Server

OPERATIONS = [
    Operation("POST", "/v1/embeddings", "Embed texts", Embeddings, Error, EmbeddingRequest),
]


def routes(server: "Server") -> list[Route]:
    """Return the route of embeddings."""

    async def embeddings(request: Request) -> Response:
        body = await read(request, EmbeddingRequest)
        return await whole(request, _answer(server, request, body))

    return [Route("/v1/embeddings", embeddings, methods=["POST"])]


async def _answer(server: "Server", request: Request, body: EmbeddingRequest) -> Response:
    encoding = body.encoding_format or "float"
    if encoding not in ("float", "base64"):
        raise refuse("encoding_format", f"is {encoding[:40]!r}, expected float or base64")
    texts = [body.input] if isinstance(body.input, str) else body.input
    for i, text in enumerate(texts):
        if not text:
            raise refuse("input" if isinstance(body.input, str) else f"input[{i}]", "is empty, expected a text")
    size = server.models.describe(body.model).hidden_size
    if body.dimensions not in (None, size):
        raise refuse("dimensions", f"is {body.dimensions}, but this model's embeddings have {size}. Leave it out.")
    name, vectors, tokens = await embed(server.models, body.model, texts, keep_alive_of(body.keep_alive))
    request.state.tokens = tokens, 0
    told = [
        {"object": "embedding", "index": i, "embedding": _base64(v) if encoding == "base64" else v}
        for i, v in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    content = {"object": "list", "data": told, "model": name, "usage": usage}
    return Response(msgspec.json.encode(content), media_type="application/json")


def _base64(vector: list[float]) -> str:
    """Return the vector as OpenAI's client reads it: little-endian float32 in base64."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
