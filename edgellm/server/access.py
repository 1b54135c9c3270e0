"""The access log: a line a request, with who asked what and how it went, and never a word of a prompt."""

import json
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgellm.server.errors import api_of, respond
from edgellm.wire.printable import printable

log = logging.getLogger("edgellm.access")
_QUIET = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by programs


class AccessLog:
    """ASGI middleware. Routes put the counts of an answer's tokens into `request.state.tokens`."""

    def __init__(self, app: ASGIApp, as_json: bool):
        self._app, self._as_json = app, as_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.perf_counter(), 499  # the client went away before
        path, state = scope["path"], scope.setdefault("state", {})

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as e:  # a bug of ours
            if status != 499:  # half an answer is out: the connection is cut
                raise
            log.error("%s %s failed", scope["method"], printable(path[:200]), exc_info=e)
            await respond(api_of(path), e)(scope, receive, sending)
        finally:
            if path not in _QUIET or status >= 400:
                self._tell(scope["method"], path, status, time.perf_counter() - began_s, state)

    def _tell(self, method: str, path: str, status: int, took_s: float, state: dict[str, object]) -> None:
        tokens = state.get("tokens")
        prompt, completion = tokens if isinstance(tokens, tuple) else (None, None)
        key, ms = state.get("key") or None, round(1e3 * took_s)
        if self._as_json:
            told = {"method": method, "path": path, "key": key, "status": status, "ms": ms, "prompt_tokens": prompt,
                    "completion_tokens": completion}  # fmt: skip
            log.info(json.dumps(told))
            return
        counts = f", {prompt} + {completion} tokens" if tokens else ""
        log.info("%s %s by %s: %d in %d ms%s", method, printable(path[:200]), key or "anybody", status, ms, counts)
