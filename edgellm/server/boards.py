"""The boards as they stand, for the page: who holds which layers, how each is, and what changes meanwhile."""

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edgellm.client import AsyncClient
from edgellm.controller.doctor import diagnose
from edgellm.controller.examine import facts_by_wire
from edgellm.controller.status import Word, ask_boards, describe
from edgellm.errors import EdgellmError
from edgellm.manager.cluster_file import ClusterFile
from edgellm.manager.connections import Connections
from edgellm.server.conversations_api import PREFIX
from edgellm.server.errors import ApiError
from edgellm.server.models import Models, find_name
from edgellm.server.sign_in import owner_of
from edgellm.server.sse import PING, Stream, event
from edgellm.shards.manifest import Manifest

if TYPE_CHECKING:
    from edgellm.server.app import Server

_EVERY_S = 2.0
_PING_S = 10.0
_MOST_NEWS = 50
_COLUMNS = (
    "board", "address", "state", "serving", "ready", "in_plan", "section", "others", "loading", "path",
    "ram_total_bytes", "ram_offered_bytes", "ram_free_bytes", "disk_free_bytes", "slots", "free_slots",
    "temperature_c", "throttled", "undervoltage", "link_mbit", "uptime_s", "predicted_ms_per_token",
    "measured_ms_per_token", "hop_s", "kernels", "version",
)  # fmt: skip


def routes(server: "Server") -> list[BaseRoute]:
    """Return the boards' state, once and live."""

    def watch_of(request: Request) -> Watch:
        owner_of(server, request)
        return server.watches.of(request.query_params.get("model", ""))

    async def boards(request: Request) -> Response:
        return JSONResponse(await watch_of(request).look())

    async def live(request: Request) -> Response:
        return Stream(_live(watch_of(request)), "openai")

    return [Route(f"{PREFIX}/boards", boards), Route(f"{PREFIX}/boards/live", live)]


async def _live(watch: "Watch") -> AsyncGenerator[bytes, None]:
    seen, pinged_s = None, time.monotonic()
    with watch.looking():
        while True:
            state = await watch.look()
            if state != seen:
                seen = state
                yield event({"kind": "boards", **state})
            elif time.monotonic() - pinged_s > _PING_S:
                pinged_s = time.monotonic()
                yield PING
            await asyncio.sleep(_EVERY_S)


class Watch:
    """What the boards of one client say, at most every two seconds however many look, and what has changed since
    somebody began to look. Connections to boards stay open while somebody does."""

    def __init__(self, client: AsyncClient, model: str | None = None):
        """`model` is the one of several to tell of, by default whichever the boards serve."""
        self.client, self._model = client, model
        self._asking = asyncio.Lock()
        self._state: dict[str, Any] | None = None
        self._looked_s = 0.0
        self._lookers = 0
        self._connections: Connections | None = None
        self._news: deque[dict[str, Any]] = deque(maxlen=_MOST_NEWS)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Keep connections open in this block."""
        self._lookers += 1
        try:
            yield
        finally:
            self._lookers -= 1
            if not self._lookers:
                self.close()

    def close(self) -> None:
        """Hang up."""
        if self._connections is not None:
            self._connections.close()
            self._connections = None

    async def look(self) -> dict[str, Any]:
        """Return the state of the boards. Raises ApiError if nothing can be known of them."""
        async with self._asking:
            if self._state is None or time.monotonic() - self._looked_s >= 0.9 * _EVERY_S:
                try:
                    state = await self._ask()
                except EdgellmError as e:
                    raise ApiError(str(e), 503, code="cluster_unavailable", retry_s=5.0) from None
                now_s = time.time()
                self._news.extend({"time_s": now_s, **told} for told in changes(self._state, state))
                self._state, self._looked_s = state, time.monotonic()
                if not self._lookers:
                    self.close()
            return {**self._state, "news": list(self._news)}

    async def _ask(self) -> dict[str, Any]:
        path, manifest = self.client.path, self.client.asker.manifest
        cluster = await asyncio.to_thread(ClusterFile.read, path)
        tls = cluster.client_tls(path)
        if self._connections is None:
            self._connections = Connections(tls)
        words = await ask_boards(cluster.addresses(), tls, connections=self._connections)
        return await asyncio.to_thread(functools.partial(state_of, cluster, words, manifest, self._model))


class Watches:
    """A watch of the boards of each model's client, made when somebody looks."""

    def __init__(self, models: Models):
        self._models = models
        self._watches: dict[str, Watch] = {}

    def of(self, model: str) -> Watch:
        """Return the watch of a model's boards; "" is whichever they serve. Raises ApiError while no model is loaded,
        UnknownModel."""
        clients = self._models.clients
        if not clients:
            raise ApiError("no model is loaded, so no boards are known", 503, code="cluster_unavailable", retry_s=5.0)
        name = find_name(model, list(clients))
        key = name if model else ""
        watch = self._watches.get(key)
        if watch is None or watch.client is not clients[name]:
            watch = self._watches[key] = Watch(clients[name], name if model else None)
        return watch

    def close(self) -> None:
        """Hang up on all boards."""
        for watch in self._watches.values():
            watch.close()


def state_of(
    cluster: ClusterFile, words: dict[str, Word], manifest: Manifest, model: str | None = None
) -> dict[str, Any]:
    """Return the boards' state as JSON: of the `model` with this manifest, or of whichever they serve."""
    cluster = cluster if model is None else cluster.led_by(model)
    own = manifest if manifest.sha256 == cluster.plan.manifest_sha256 else None
    told = describe(cluster, words, own, weigh=False, model=model)
    findings = [f for facts in facts_by_wire(cluster, words, own, told["boards"]) for f in diagnose(facts)]
    return {
        **{k: v for k, v in told.items() if k not in ("boards", "pairs")},
        "boards": [{name: row[name] for name in _COLUMNS} for row in told["boards"]],
        "findings": [{"board": f.board, "about": f.about, "what": f.what, "todo": f.todo} for f in findings],
    }


def changes(before: dict[str, Any] | None, after: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a person would call news between two states, a sentence each: boards that were lost or came back,
    layers that moved, heat. `kind` is good, bad or plain."""
    if before is None:
        return []
    told = []

    def say(kind: str, text: str, board: str | None = None) -> None:
        told.append({"kind": kind, "board": board, "text": text})

    old = {row["board"]: row for row in before["boards"]}
    new = {row["board"]: row for row in after["boards"]}
    for name in old.keys() - new.keys():
        say("plain", f"{name} is no longer in the cluster", name)
    for name, row in new.items():
        was = old.get(name)
        if was is None:
            say("good", f"{name} joined", name)
            continue
        if _lost(row) != _lost(was):
            say(*(("bad", f"{name} was lost") if _lost(row) else ("good", f"{name} is back")), name)
        elif row["section"] != was["section"] and not _lost(row):
            say("plain", _moved(name, row["section"]), name)
        if bool(row["throttled"]) != bool(was["throttled"]):
            now = bool(row["throttled"])
            say(*(("bad", f"{name} is throttled") if now else ("good", f"{name} is no longer throttled")), name)
    if after["epoch"] != before["epoch"]:
        say("plain", f"plan {after['epoch']} is in use")
    if after["serving"] and not before["serving"]:
        say("good", "every board of the plan is serving")
    return told


def _lost(row: dict[str, Any]) -> bool:
    return str(row["state"]).startswith("unreachable")


def _moved(name: str, section: dict[str, int] | None) -> str:
    if section is None:
        return f"{name} gave up its layers"
    return f"{name} holds layers {section['start']}–{section['end'] - 1} now"
