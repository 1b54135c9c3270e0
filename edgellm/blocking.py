"""Asks a cluster from threads: `Client` does what AsyncClient does, and blocks.

    with Client() as client:
        for delta in client.chat([{"role": "user", "content": "Why is the sky blue?"}]):
            print(delta.text, end="", flush=True)
"""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar, Unpack

from edgellm.client import Answer, AnswerStream, AsyncClient, Delta, Message, OnLoading, Options, Tell
from edgellm.config import PATIENCE_S
from edgellm.errors import UsageError
from edgellm.manager.answer import Asker
from edgellm.manager.keeper import SURVEY_EVERY_S
from edgellm.plan import Plan

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class BlockingStream:
    """An answer as it arrives, for a thread that waits for it: iterate over its deltas, once. See AnswerStream."""

    def __init__(self, client: "Client", stream: AnswerStream):
        self._client, self._stream = client, stream

    @property
    def answer(self) -> Answer:
        """What has arrived so far, with timings at the end."""
        return self._stream.answer

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        """Return the next delta. Raises as AnswerStream does."""
        delta = self._client._run(self._next())
        if delta is None:
            raise StopIteration
        return delta

    async def _next(self) -> Delta | None:
        return await anext(self._stream, None)

    def close(self) -> None:
        """End the answer: the boards stop, and the slot is free."""
        self._client._run(self._stream.aclose())

    def read(self) -> Answer:
        """Return the answer, once it is complete."""
        for _ in self:
            pass
        return self.answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Client:
    """AsyncClient for threads: any number of them may ask at once. It runs an event loop in a thread of its own."""

    def __init__(
        self, cluster: str | os.PathLike[str] | None = None, *, patience_s: float = PATIENCE_S,
        survey_every_s: float | None = SURVEY_EVERY_S, tell: Tell = log.info, model: str | None = None,
        on_loading: OnLoading = lambda progress: None,
    ):  # fmt: skip
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edgellm-client", daemon=True)

        async def make() -> AsyncClient:
            return AsyncClient(
                cluster, patience_s=patience_s, survey_every_s=survey_every_s, tell=tell, model=model,
                on_loading=on_loading,
            )  # fmt: skip

        self._thread.start()
        try:
            self._client = self._run(make())
        except BaseException:
            self._stop()
            raise

    @property
    def asker(self) -> Asker:
        """The model's tokenizer, its manifest, and its authors' sampling."""
        return self._client.asker

    @property
    def plan(self) -> Plan:
        """The plan that the next question takes."""
        return self._client.plan

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> BlockingStream:
        """Return the assistant's next message, as AsyncClient.chat does."""
        return BlockingStream(self, self._client.chat(messages, **options))

    def generate(self, prompt: str, **options: Unpack[Options]) -> BlockingStream:
        """Return how the model continues `prompt`, as AsyncClient.generate does."""
        return BlockingStream(self, self._client.generate(prompt, **options))

    def embed(self, texts: Sequence[str]) -> list[tuple[list[float], int]]:
        """Return the embeddings of texts, as AsyncClient.embed does."""
        return self._run(self._client.embed(texts))

    def close(self) -> None:
        """End all answers, and hang up on every board."""
        if self._thread.is_alive():
            self._run(self._client.aclose())
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Return what a coroutine returns in the client's loop."""
        if not self._thread.is_alive():
            coroutine.close()
            raise UsageError("the client is closed")
        future: Future[_T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C, say: the answer ends
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
