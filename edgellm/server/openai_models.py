"""OpenAI's list of models."""

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgellm.server.models import Model

if TYPE_CHECKING:
    from edgellm.server.app import Server


def routes(server: "Server") -> list[Route]:
    """Return the routes under /v1/models."""

    async def every(request: Request) -> Response:
        names = server.models.names()
        return JSONResponse({"object": "list", "data": [_told(server.models.describe(name)) for name in names]})

    async def one(request: Request) -> Response:
        return JSONResponse(_told(server.models.describe(request.path_params["name"])))

    return [Route("/v1/models", every), Route("/v1/models/{name:path}", one)]


def _told(model: Model) -> dict[str, Any]:
    return {
        "id": model.name, "object": "model", "created": model.created_s, "owned_by": "edgellm",
        "context_length": model.context, "max_model_len": model.context,
    }  # fmt: skip
