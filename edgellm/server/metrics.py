"""What Prometheus scrapes at /metrics: requests, answers and their tokens as they happen, and boards as last surveyed.

Every label has few values: routes, statuses, names of API keys, of models and of boards. Counters start at zero with
the server.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgellm.client import AsyncClient
from edgellm.server.asking import (
    WATCHING,
    Accepted,
    Ask,
    Ended,
    Event,
    Queued,
    Reasoning,
    Text,
    ToolArguments,
    ToolBegin,
)
from edgellm.server.models import Models
from edgellm.wire.status import BoardStatus

if TYPE_CHECKING:
    from edgellm.server.app import Server

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, which Prometheus doesn't need
_OTHER = "other"  # no route takes it
# Small boards take seconds for a prompt and tenths of a second for a token.
_FIRST_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
_BETWEEN_S = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
_QUEUE_S = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300)
_REQUEST_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)


def routes(server: "Server") -> list[BaseRoute]:
    """Return the route that Prometheus scrapes."""

    async def metrics(request: Request) -> Response:
        for client in server.models.clients.values():
            client.start()
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return [Route("/metrics", metrics)]


class Metrics:
    """Counts what happens in one server."""

    def __init__(self, models: Models):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "edgellm_requests", "HTTP requests that have been answered.", ("route", "status", "key"), registry=registry
        )
        self.seconds = Histogram(
            "edgellm_request_seconds", "How long HTTP requests took, to the last byte.", ("route",),
            buckets=_REQUEST_S, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge("edgellm_requests_in_flight", "HTTP requests that are being answered.",
                               registry=registry)  # fmt: skip
        self.answers = Counter(
            "edgellm_answers", "Answers that have ended: stop, length, tool_calls, cancelled (the client went away) or "
            "failed.", ("model", "outcome"), registry=registry,
        )  # fmt: skip
        self.running = Gauge("edgellm_answers_running", "Answers that are not complete.", ("model",), registry=registry)
        self.waiting = Gauge(
            "edgellm_answers_waiting", "Of these, answers in line for a slot.", ("model",), registry=registry
        )
        self.tokens = Counter(
            "edgellm_tokens", "Tokens: prompt (all of them), cached (of the prompt, not computed again), completion, "
            "reasoning (of the completion).", ("model", "kind", "key"), registry=registry,
        )  # fmt: skip
        self.drafts = Counter(
            "edgellm_draft_tokens", "Draft tokens that the boards tried.", ("model", "outcome"), registry=registry
        )
        self.first = Histogram(
            "edgellm_first_token_seconds", "From the question to the first token, waiting and loading included.",
            ("model",), buckets=_FIRST_S, registry=registry,
        )  # fmt: skip
        self.between = Histogram(
            "edgellm_inter_token_seconds", "Between the pieces of an answer, mostly one token each.", ("model",),
            buckets=_BETWEEN_S, registry=registry,
        )  # fmt: skip
        self.queue = Histogram(
            "edgellm_queue_seconds", "How long answers stood in line for a slot.", ("model",), buckets=_QUEUE_S,
            registry=registry,
        )  # fmt: skip
        ProcessCollector(registry=registry)
        registry.register(Boards(models))

    def watch(self, model: str, ask: Ask) -> "Watched":
        """Return what is told each event of an answer, and its end."""
        return Watched(self, model, ask.key)


class Watched:
    """One answer, counted as it goes."""

    def __init__(self, metrics: Metrics, model: str, key: str):
        self._metrics, self._model, self._key = metrics, model, key
        self._began_s = self._last_s = time.perf_counter()
        self._has_text = self._waits = False
        self._outcome: str | None = None
        metrics.running.labels(model).inc()
        metrics.waiting.labels(model)  # 0 until somebody waits, in place of nothing

    def saw(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, Queued):
            self._wait(True)
        elif isinstance(event, Text | Reasoning | ToolBegin | ToolArguments):
            self._piece()
        elif isinstance(event, Ended):
            self._end(event)
        elif not isinstance(event, Accepted):
            return
        if not isinstance(event, Queued | Accepted):
            self._wait(False)

    def close(self, outcome: str) -> None:
        """Count the answer as `outcome`, unless it was complete before."""
        self._wait(False)
        self._metrics.running.labels(self._model).dec()
        self._metrics.answers.labels(self._model, self._outcome or outcome).inc()

    def _wait(self, waits: bool) -> None:
        if waits != self._waits:
            self._waits = waits
            self._metrics.waiting.labels(self._model).inc(1 if waits else -1)

    def _piece(self) -> None:
        now_s, metrics = time.perf_counter(), self._metrics
        histogram = metrics.between if self._has_text else metrics.first
        histogram.labels(self._model).observe(now_s - self._last_s)
        self._has_text, self._last_s = True, now_s

    def _end(self, event: Ended) -> None:
        metrics, usage, timings = self._metrics, event.usage, event.timings
        self._outcome = event.reason
        for kind in ("prompt", "cached", "completion", "reasoning"):
            metrics.tokens.labels(self._model, kind, self._key).inc(getattr(usage, kind))
        metrics.drafts.labels(self._model, "accepted").inc(timings.accepted_drafts)
        metrics.drafts.labels(self._model, "refused").inc(max(0, timings.drafts - timings.accepted_drafts))
        metrics.queue.labels(self._model).observe(timings.queue_s)


class Counting:
    """ASGI middleware: counts requests, and has answers counted that begin in them."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[BaseRoute]):
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began_s, metrics = 499, time.perf_counter(), self._metrics  # 499: the client went away before

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = WATCHING.set(metrics.watch)
        metrics.in_flight.inc()
        try:
            await self._app(scope, receive, sending)
        finally:
            WATCHING.reset(token)
            metrics.in_flight.dec()
            route, key = self._route(scope), scope.get("state", {}).get("key") or ""
            metrics.requests.labels(route, str(status), key).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - began_s)

    def _route(self, scope: Scope) -> str:
        """Return the route's own path, so that what clients make up is no label."""
        for route in self._routes:
            if isinstance(route, Route | Mount) and route.matches(scope)[0] != Match.NONE:
                return route.path
        return _OTHER


class Boards(Collector):
    """The boards as the clients' keepers surveyed them last, at most some ten seconds ago."""

    def __init__(self, models: Models):
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yield the boards' and the plans' metrics."""
        clients = dict(self._models.clients)
        yield from _plans(clients)
        boards: dict[str, BoardStatus | None] = {}
        for client in clients.values():
            boards |= dict.fromkeys(client.missing)
        for client in clients.values():
            boards |= client.boards
        up = _gauge("up", "Whether the board answered the last survey.")
        for name, status in boards.items():
            up.add_metric([name], float(status is not None))
        yield up
        statuses = {name: status for name, status in boards.items() if status is not None}
        for metric, value in _GAUGES:
            family = _gauge(*metric)
            for name, status in statuses.items():
                if (number := value(status)) is not None:
                    family.add_metric([name], float(number))
            yield family
        yield from _sections(statuses)


def _plans(clients: dict[str, AsyncClient]) -> Iterator[Metric]:
    epoch = GaugeMetricFamily("edgellm_plan_epoch", "The number of the plan that answers; it grows.", labels=["model"])
    recovered = CounterMetricFamily(
        "edgellm_recoveries", "Answers that went on after a board was lost, or the plan changed.", labels=["model"]
    )
    for name, client in clients.items():
        epoch.add_metric([name], client.plan.epoch)
        recovered.add_metric([name], client.recoveries)
    yield from (epoch, recovered)


def _sections(statuses: dict[str, BoardStatus]) -> Iterator[Metric]:
    layers = GaugeMetricFamily("edgellm_board_layers", "Layers that the board holds.", labels=["board", "model"])
    first = GaugeMetricFamily("edgellm_board_first_layer", "The first of these, from 0.", labels=["board", "model"])
    taken = GaugeMetricFamily(
        "edgellm_board_section_bytes", "RAM that a model's weights, slots and scratch memory take on the board.",
        labels=["board", "model"],
    )  # fmt: skip
    drafts = CounterMetricFamily(
        "edgellm_board_draft_tokens", "Drafts that the boards verified under this plan, as the last one tells, by who "
        "made them: lookup (in the text so far), a draft model, or mtp (the model's own head).",
        labels=["board", "model", "by", "outcome"],
    )  # fmt: skip
    hop = GaugeMetricFamily(
        "edgellm_board_hop_seconds", "A message's way to another board that this one sends to.", labels=["board", "to"]
    )
    for name, status in statuses.items():
        for plan, section in status.sections.values():
            if section.start is not None and section.end is not None:
                layers.add_metric([name, plan.model], section.end - section.start)
                first.add_metric([name, plan.model], section.start)
            if section.ram_bytes is not None:
                taken.add_metric([name, plan.model], section.ram_bytes)
            for by, (verified, accepted) in section.drafts.items():
                drafts.add_metric([name, plan.model, by, "accepted"], accepted)
                drafts.add_metric([name, plan.model, by, "refused"], max(0, verified - accepted))
        for other, link in status.links.items():
            if link.hop_s is not None:
                hop.add_metric([name, other], link.hop_s)
    yield from (layers, first, taken, drafts, hop)


def _gauge(name: str, about: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"edgellm_board_{name}", about, labels=["board"])


def _capacity(status: BoardStatus) -> int | None:
    return None if status.capacity is None else status.capacity.ram_bytes


def _of_section(field: str) -> Callable[[BoardStatus], float | None]:
    return lambda status: None if status.section is None else getattr(status.section, field)


def _of_cache(field: str) -> Callable[[BoardStatus], float | None]:
    return lambda status: None if status.cache is None else getattr(status.cache, field)


def _link_bytes(status: BoardStatus) -> float | None:
    return None if status.health.link_mbit is None else status.health.link_mbit * 1e6 / 8


_GAUGES: tuple[tuple[tuple[str, str], Callable[[BoardStatus], float | None]], ...] = (
    (("memory_bytes", "RAM of the board."), lambda s: s.health.ram_total_bytes),
    (("memory_offered_bytes", "RAM that the board offers for a section, the one it holds included."), _capacity),
    (("disk_free_bytes", "Free room for shards."), lambda s: s.disk_free_bytes),
    (("temperature_celsius", "The hottest zone."), lambda s: s.health.temperature_c),
    (("throttled", "Whether heat or voltage holds the CPU below its speed."), lambda s: s.health.throttled),
    (("undervoltage", "Whether the power supply is too weak."), lambda s: s.health.undervoltage),
    (("link_speed_bytes", "Bytes a second that the network interface negotiated."), _link_bytes),
    (("uptime_seconds", "Since the board booted."), lambda s: s.health.uptime_s),
    (("token_seconds", "A token's time in this board's section, as its last steps took."), _of_section("token_s")),
    (("predicted_token_seconds", "The same, as the plan predicted."), _of_section("predicted_s")),
    (("slots", "Sequences that the board holds at once."), _of_section("slots")),
    (("free_slots", "Of these, free ones."), _of_section("free_slots")),
    (("cache_bytes", "What the board keeps of prompts on its disk."), _of_cache("bytes")),
    (("cache_written_today_bytes", "Bytes written for that since midnight, UTC."), _of_cache("written_today_bytes")),
    (("cache_ram_bytes", "What the board keeps of prompts in RAM that no plan needs."), _of_cache("ram_bytes")),
)  # fmt: skip
