"""Whether the server can answer: /health says how things are, and /ready is 503 until a question would be answered."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edgellm.client import AsyncClient

if TYPE_CHECKING:
    from edgellm.server.app import Server

_RETRY_S = 5


@dataclass(frozen=True)
class State:
    """How things are: ok; degraded (a board is missing); loading (boards are being asked, or load their sections); or
    no cluster (no board answers). `ready` is whether a question would be answered now."""

    status: str
    ready: bool
    known: int = 0
    answering: int = 0
    missing: tuple[tuple[str, str], ...] = ()  # boards, and why

    def to_dict(self, named: bool) -> dict[str, Any]:
        """Return what is told; board names and reasons only if `named`."""
        content: dict[str, Any] = {
            "status": self.status, "ready": self.ready,
            "boards": {"known": self.known, "answering": self.answering},
        }  # fmt: skip
        if named:
            content["missing"] = dict(self.missing)
        return content


def routes(server: "Server") -> list[BaseRoute]:
    """Return the routes of both. Without an API key, they name no board."""

    def look(request: Request) -> tuple[State, dict[str, Any]]:
        clients = server.models.clients.values()
        for client in clients:
            client.start()
        state = state_of(clients)
        return state, state.to_dict(named=bool(request.state.key) or not server.keys.needed)

    async def health(request: Request) -> Response:
        return JSONResponse(look(request)[1])

    async def ready(request: Request) -> Response:
        state, content = look(request)
        if state.ready:
            return JSONResponse(content)
        return JSONResponse(content, 503, {"Retry-After": str(_RETRY_S)})

    return [Route("/health", health), Route("/ready", ready)]


def state_of(clients: Iterable[AsyncClient]) -> State:
    """Return how things are: where several models stand, that of the one that is best off."""
    states = [_state_of_one(client) for client in clients]
    order = {"ok": 0, "degraded": 1, "loading": 2, "no cluster": 3}
    return min(states, key=lambda state: (not state.ready, order[state.status]), default=State("loading", False))


def _state_of_one(client: AsyncClient) -> State:
    boards, missing, plan = client.boards, client.missing, client.plan
    told = (len({*boards, *missing, *plan.boards}), len(boards), tuple(sorted(missing.items())))
    if not boards and not missing:
        return State("loading", False, *told)  # nobody has been asked yet
    if not boards:
        return State("no cluster", False, *told)
    serving = all(b in boards and boards[b].serves(plan) for b in plan.boards)
    lost = any(b in missing for b in plan.boards)
    if serving or lost:
        return State("degraded" if missing else "ok", serving, *told)
    return State("loading", False, *told)

