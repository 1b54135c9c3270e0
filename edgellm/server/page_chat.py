"""Answers for the page: events as they happen, each message kept as soon as it is there, even half an answer."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edgellm import __version__
from edgellm.client import Options
from edgellm.conversations import Conversation, Conversations, Message
from edgellm.server import asking
from edgellm.server.asking import Ask
from edgellm.server.conversations_api import PREFIX, Kept
from edgellm.server.errors import ApiError
from edgellm.server.fields import read
from edgellm.server.sign_in import owner_of
from edgellm.server.sse import PING, Stream, event

if TYPE_CHECKING:
    from edgellm.server.app import Server

log = logging.getLogger(__name__)
_ENDS_S = 5.0  # for an answer that was stopped to be kept


class Chosen(msgspec.Struct):
    """What the page lets people choose; None is as the model's authors advise."""

    system: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    think: bool | None = None


class _Said(msgspec.Struct):
    role: str
    content: str


class _Asked(msgspec.Struct):
    """`text` is a new question after the first `keep` messages of a conversation; None answers the last one again. In
    place of a conversation, `messages` aren't kept."""

    conversation: str | None = None
    keep: int = 0
    text: str | None = None
    messages: list[_Said] | None = None
    model: str = ""
    settings: Chosen = msgspec.field(default_factory=Chosen)


def routes(server: "Server") -> list[BaseRoute]:
    """Return what the page asks at its start, and where it asks questions."""
    kept = server.kept
    turns = Turns()

    async def session(request: Request) -> Response:
        models = [asdict(server.models.describe(name)) for name in server.models.names()]
        told = {"key": owner_of(server, request), "signed_in": server.keys.needed, "history": kept.on,
                "version": __version__, "models": models}  # fmt: skip
        return JSONResponse(told)

    async def ask(request: Request) -> Response:
        owner, asked = owner_of(server, request), await read(request, _Asked)
        return Stream(_events(server, kept, turns, request, owner, asked), "openai", failed=_failed)

    return [Route(f"{PREFIX}/session", session), Route(f"{PREFIX}/answer", ask, methods=["POST"])]


class Turns:
    """One answer at a time in each conversation: the next one waits until the one before, just stopped, is kept."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, id_: str) -> AsyncGenerator[None, None]:
        """Hold a conversation. Raises ApiError if it is still being answered."""
        lock, waiting = self._locks.get(id_, (asyncio.Lock(), 0))
        self._locks[id_] = lock, waiting + 1
        try:
            try:
                async with asyncio.timeout(_ENDS_S):
                    await lock.acquire()
            except TimeoutError:
                raise ApiError("this conversation is being answered elsewhere. Stop that first.", 409) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            _, waiting = self._locks.pop(id_)
            if waiting > 1:
                self._locks[id_] = lock, waiting - 1


async def _events(
    server: "Server", kept: Kept, turns: Turns, request: Request, owner: str, asked: _Asked
) -> AsyncGenerator[bytes, None]:
    if asked.conversation is None:
        messages = [{"role": m.role, "content": m.content} for m in asked.messages or []]
        async with aclosing(_answer(server, request, _question(owner, asked, messages), Writing())) as pieces:
            async for piece in pieces:
                yield piece
        return
    id_, writing = asked.conversation, Writing()
    async with turns.of(id_):
        talk = await kept.do(lambda store: _prepared(store, owner, id_, asked))
        yield event({"kind": "kept", "count": talk.count, "title": talk.title})
        messages = [{"role": m.role, "content": m.content} for m in talk.messages]
        try:
            async with aclosing(_answer(server, request, _question(owner, asked, messages), writing)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            if (message := writing.message()) is not None:
                await asyncio.shield(_keep(kept, owner, id_, message, talk.count))


async def _keep(kept: Kept, owner: str, id_: str, message: Message, at: int) -> None:
    """Keep an answer, however far it came."""
    try:
        await kept.do(lambda store: store.append(owner, id_, [message], at=at))
    except ApiError as e:  # deleted meanwhile
        log.info("an answer was not kept: %s", e)


def _prepared(store: Conversations, owner: str, id_: str, asked: _Asked) -> Conversation:
    """Return the conversation up to the question to answer."""
    talk = store.read(owner, id_)
    if not 0 <= asked.keep <= talk.count:
        raise ApiError("the conversation was changed elsewhere. Reload the page.", 409, code="conversation")
    last = talk.messages[asked.keep - 1].role if asked.keep else ""
    if asked.text is None and last != "user":
        raise ApiError("keep: there is no question to answer", 400, param="keep")
    if asked.text is not None and not asked.text.strip():
        raise ApiError("text: the question is empty", 400, param="text")
    store.configure(owner, id_, {k: v for k, v in msgspec.to_builtins(asked.settings).items() if v not in (None, "")})
    if asked.keep < talk.count:
        talk = store.truncate(owner, id_, asked.keep)
    if asked.text is not None:
        talk = store.append(owner, id_, [Message("user", asked.text)])
    return talk


def _question(owner: str, asked: _Asked, messages: list[dict[str, str]]) -> Ask:
    chosen = asked.settings
    if not messages:
        raise ApiError("messages: there is no question", 400, param="messages")
    if chosen.system.strip():
        messages = [{"role": "system", "content": chosen.system}, *messages]
    given = msgspec.to_builtins(chosen)
    options = {k: v for k, v in given.items() if v is not None and k not in ("system", "think")}
    return Ask(asked.model, tuple(messages), options=cast(Options, options), think=chosen.think, key=owner)


class Writing:
    """An answer as far as it has come."""

    def __init__(self) -> None:
        self.model = self.finish = ""
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.timings: dict[str, Any] = {}

    def message(self) -> Message | None:
        """Return it as a message; None if nothing has come."""
        if not self.text and not self.reasoning:
            return None
        finish = self.finish or "cancelled"
        return Message("assistant", "".join(self.text), "".join(self.reasoning), self.model, finish, self.timings)


async def _answer(server: "Server", request: Request, ask: Ask, writing: Writing) -> AsyncGenerator[bytes, None]:
    async with aclosing(asking.answer(server.models, ask)) as events:
        async for happened in events:
            match happened:
                case asking.Accepted():
                    writing.model = happened.model
                    told = {"kind": "accepted", "prompt_tokens": happened.prompt_tokens, "model": happened.model}
                    yield event(told)
                case asking.Queued():
                    yield event({"kind": "queued", "position": happened.position, "eta_s": happened.eta_s})
                case asking.Progress():
                    yield event({"kind": "progress", "done": happened.done, "total": happened.total})
                case asking.Waiting():
                    yield PING
                case asking.Text() if happened.text:
                    writing.text.append(happened.text)
                    yield event({"kind": "text", "text": happened.text})
                case asking.Reasoning() if happened.text:
                    writing.reasoning.append(happened.text)
                    yield event({"kind": "reasoning", "text": happened.text})
                case asking.Ended():
                    request.state.tokens = happened.usage.prompt, happened.usage.completion
                    writing.finish, writing.timings = happened.reason, timings_of(happened)
                    yield event({"kind": "ended", "reason": happened.reason, "timings": writing.timings})


def timings_of(ended: asking.Ended) -> dict[str, Any]:
    """Return what the page shows of how an answer was computed."""
    usage, timings = ended.usage, ended.timings
    writing_s = timings.total_s - timings.first_token_s
    rate = (usage.completion - 1) / writing_s if usage.completion > 1 and writing_s > 0 else None
    return {
        "prompt_tokens": usage.prompt, "cached_tokens": usage.cached, "tokens": usage.completion,
        "first_token_s": round(timings.first_token_s, 3), "total_s": round(timings.total_s, 3),
        "tokens_per_s": None if rate is None else round(rate, 2),
    }  # fmt: skip


def _failed(error: ApiError) -> bytes:
    return event({"kind": "error", "message": str(error), "status": error.status})
