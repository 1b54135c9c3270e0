"""A server in a thread of this process, over boards of the fake model."""

import asyncio
import contextlib
import faulthandler
import json
import threading
from pathlib import Path

import httpx
import uvicorn

from edgellm.server.app import Settings, make_app
from edgellm.server.change_over import SeveralModels
from edgellm.server.http import Http
from edgellm.server.listen import listen
from edgellm.shards.manifest import Manifest
from tests.cli.commands import Cluster
from tests.fakes import until

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Serving:
    """Two boards with two slots of the fake model, whose template writes contents alone; and a server for them. `other`
    is a further fake model."""

    def __init__(self, folder: Path, patience_s: float = 20.0, other: Manifest | None = None, **settings):
        self.cluster = Cluster(folder, other)
        for model_dir in (self.cluster.model_dir, *self.cluster.boards.more):
            (model_dir / "chat_template.jinja").write_text(TEMPLATE)
        self.settings = Settings(folder / "api-keys.json", **settings)
        self.told: list[str] = []
        self.models = SeveralModels(self.cluster.file, self.told.append, patience_s)
        self.app = make_app(self.models, self.settings)
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        config = uvicorn.Config(
            self.app, log_level="warning", access_log=False, ws="none", http=Http, timeout_graceful_shutdown=1,
            lifespan="on",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

        async def started():
            await until(lambda: self._server.started)

        asyncio.run_coroutine_threadsafe(started(), self._loop).result(20)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # ends what is left, as the command does
            runner.run(self._server.serve([self._listener]))

    def stop(self) -> None:
        """End as the command does: answers that run are told."""
        self.http.close()
        self._loop.call_soon_threadsafe(self.app.state.ending.set)
        self._server.should_exit = True
        self._thread.join(20)
        if self._thread.is_alive():  # the reason is what its thread does now, and what its tasks wait for
            faulthandler.dump_traceback()
            for task in asyncio.all_tasks(self._loop):
                task.print_stack()
            self._thread.join(60)
        self._listener.close()
        self.cluster.stop()

    def wait(self, condition) -> None:
        """Wait for a condition, and fail if it doesn't hold soon."""
        asyncio.run(until(condition))

    def wait_free(self) -> None:
        """Wait until every slot is free."""
        self.wait(lambda: self.cluster.free_slots() == [2, 2])

    def post(self, path: str, body, **headers) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(path, content=content, headers={"content-type": "application/json", **headers})

    def chat(self, text: str = "Why?", **fields) -> httpx.Response:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def events(self, path: str, body) -> list:
        """What a stream sends: JSON, or the word [DONE]; comments are left out."""
        response = self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return events_of(response.text)


def events_of(text: str) -> list:
    """The data of server-sent events."""
    found = []
    for block in text.split("\n\n"):
        data = [line.removeprefix("data: ") for line in block.splitlines() if line.startswith("data: ")]
        if data:
            found.append(data[0] if data[0] == "[DONE]" else json.loads(data[0]))
    return found


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]
