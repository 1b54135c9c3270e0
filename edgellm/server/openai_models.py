"""OpenAI's list of models."""

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgellm.server.errors import ApiError
from edgellm.server.models import Model, UnknownModel
from edgellm.server.openai_answers import Error, Models
from edgellm.server.openai_answers import Model as Told
from edgellm.server.openapi import Operation

if TYPE_CHECKING:
    from edgellm.server.app import Server

OPERATIONS = [
    Operation("GET", "/v1/models", "List the models", Models, Error),
    Operation("GET", "/v1/models/{name}", "Describe a model", Told, Error, statuses=(404,)),
]


def routes(server: "Server") -> list[Route]:
    """Return the routes under /v1/models."""

    async def every(request: Request) -> Response:
        names = server.models.names()
        return JSONResponse({"object": "list", "data": [_told(server.models.describe(name)) for name in names]})

    async def one(request: Request) -> Response:
        try:
            return JSONResponse(_told(server.models.describe(request.path_params["name"])))
        except UnknownModel as e:
            raise ApiError(str(e), 404, param="model", code="model_not_found") from None

    return [Route("/v1/models", every), Route("/v1/models/{name:path}", one)]


def _told(model: Model) -> dict[str, Any]:
    return {
        "id": model.name, "object": "model", "created": model.created_s, "owned_by": "edgellm",
        "context_length": model.context, "max_model_len": model.context,
    }  # fmt: skip
