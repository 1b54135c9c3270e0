"""Embeddings of texts, for every dialect that has them."""

import math
from collections.abc import Sequence

from edgellm.server.models import Models


async def embed(models: Models, model: str, texts: Sequence[str], keep_alive_s: float | None = None) \
        -> tuple[str, list[list[float]], int]:  # fmt: skip
    """Return the model's name, a vector of length 1 for each text, and how many tokens all texts had.

    Raises UnknownModel, Loading, UsageError for a text that is empty or too long, and the errors of AsyncClient.
    """
    async with models.use(model, keep_alive_s) as (name, client):
        embedded = await client.embed(texts)
    return name, [normalized(vector) for vector, _ in embedded], sum(tokens for _, tokens in embedded)


def normalized(vector: Sequence[float]) -> list[float]:
    """Return the vector of length 1 in the same direction."""
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector] if length else list(vector)
