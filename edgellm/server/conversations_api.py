"""The page's conversations over HTTP: list, search, read, change, delete, export; each asker has its own."""

import asyncio
import functools
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edgellm.conversations import Conversation, Conversations
from edgellm.errors import ConversationError, NoConversationError
from edgellm.server.errors import ApiError
from edgellm.server.fields import read
from edgellm.server.sign_in import owner_of

if TYPE_CHECKING:
    from edgellm.server.app import Server

PREFIX = "/page/api"
_PAGE = 200  # conversations of a list
_T = TypeVar("_T")


class Kept:
    """The conversations of a server, used by one thread in the order of requests. Without history nothing is kept."""

    def __init__(self, folder: Path | None, history: bool = True):
        """Raises ConversationError for a file that can't be used."""
        self._store = Conversations(folder / "conversations.db") if history and folder is not None else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edgellm-conversations")

    @property
    def on(self) -> bool:
        """Whether anything is kept."""
        return self._store is not None

    async def do(self, action: Callable[[Conversations], _T]) -> _T:
        """Return `action(store)`, done in the thread. Raises ApiError."""
        if self._store is None:
            raise ApiError("this server keeps no conversations", 404, code="no_history")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, action, self._store)
        except NoConversationError as e:
            raise ApiError(str(e), 404, code="not_found") from None
        except ConversationError as e:
            raise ApiError(str(e), 409, code="conversation") from None

    def close(self) -> None:
        """Finish what is being written, and close the file."""
        self._thread.shutdown(wait=True)
        if self._store is not None:
            self._store.close()


class _New(msgspec.Struct):
    model: str = ""
    settings: dict[str, Any] = {}


class _Change(msgspec.Struct):
    title: str | None = None
    settings: dict[str, Any] | None = None


def routes(server: "Server") -> list[BaseRoute]:
    """Return the routes below /page/api/conversations."""
    kept = server.kept

    async def many(request: Request) -> Response:
        owner, words = owner_of(server, request), request.query_params.get("search", "")[:200]
        offset = _number(request.query_params.get("offset", "0"))
        if words.strip():
            found = await kept.do(lambda store: store.search(owner, words))
        else:
            found = await kept.do(lambda store: store.recent(owner, _PAGE, offset))
        return JSONResponse({"conversations": [_summary(c) for c in found]})

    async def new(request: Request) -> Response:
        owner, asked = owner_of(server, request), await read(request, _New)
        made = await kept.do(lambda store: store.new(owner, model=asked.model, settings=asked.settings))
        return JSONResponse(made.to_dict(), 201)

    async def one(request: Request) -> Response:
        owner, id_ = owner_of(server, request), request.path_params["id"]
        return JSONResponse((await kept.do(lambda store: store.read(owner, id_))).to_dict())

    async def change(request: Request) -> Response:
        owner, id_, asked = owner_of(server, request), request.path_params["id"], await read(request, _Change)
        changed = await kept.do(functools.partial(_changed, owner=owner, id_=id_, asked=asked))
        return JSONResponse(_summary(changed))

    async def delete(request: Request) -> Response:
        owner, id_ = owner_of(server, request), request.path_params["id"]
        await kept.do(lambda store: store.delete(owner, id_))
        return Response(status_code=204)

    async def delete_all(request: Request) -> Response:
        owner = owner_of(server, request)
        return JSONResponse({"deleted": await kept.do(lambda store: store.delete_all(owner))})

    async def export(request: Request) -> Response:
        owner, id_ = owner_of(server, request), request.path_params["id"]
        talk = await kept.do(lambda store: store.read(owner, id_))
        kind = request.query_params.get("format", "markdown")
        if kind == "json":
            return _download(json.dumps(talk.to_dict(), indent=2, ensure_ascii=False), _file_name(talk, "json"))
        if kind == "markdown":
            return _download(talk.to_markdown(), _file_name(talk, "md"))
        raise ApiError(f"format: is {kind[:20]!r}, expected json or markdown", 400, param="format")

    async def export_all(request: Request) -> Response:
        owner = owner_of(server, request)
        everything = await kept.do(lambda store: [talk.to_dict() for talk in store.export(owner)])
        return _download(json.dumps({"conversations": everything}, ensure_ascii=False), "conversations.json")

    base, each = f"{PREFIX}/conversations", f"{PREFIX}/conversations/{{id}}"
    return [
        Route(base, many, methods=["GET"]), Route(base, new, methods=["POST"]),
        Route(base, delete_all, methods=["DELETE"]), Route(f"{PREFIX}/export", export_all, methods=["GET"]),
        Route(each, one, methods=["GET"]), Route(each, change, methods=["PATCH"]),
        Route(each, delete, methods=["DELETE"]), Route(f"{each}/export", export, methods=["GET"]),
    ]  # fmt: skip


def _changed(store: Conversations, owner: str, id_: str, asked: _Change) -> Conversation:
    talk = store.read(owner, id_)
    if asked.title is not None:
        talk = store.rename(owner, id_, asked.title)
    if asked.settings is not None:
        talk = store.configure(owner, id_, asked.settings)
    return talk


def _summary(talk: Conversation) -> dict[str, Any]:
    told = talk.to_dict()
    del told["messages"]
    return told


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ApiError(f"offset: is {text[:20]!r}, expected a number", 400, param="offset")
    return int(text)


def _file_name(talk: Conversation, ending: str) -> str:
    """Return a name that is one on every system: a title is a stranger's text."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", talk.title).strip("-")[:50].lower()
    return f"{words or 'conversation'}.{ending}"


def _download(text: str, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"', "x-content-type-options": "nosniff"}
    kind = "application/json" if name.endswith(".json") else "text/markdown; charset=utf-8"
    return Response(text.encode("utf-8", "replace"), 200, headers, kind)
