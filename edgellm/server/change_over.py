"""Several models of one cluster: who asks for one that isn't loaded waits a moment, or is told when to come back."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Self

from edgellm.client import AsyncClient, Tell
from edgellm.config import PATIENCE_S
from edgellm.errors import ClaimError, EdgellmError, PlanError
from edgellm.manager.cluster_file import ClusterFile
from edgellm.plan import Plan
from edgellm.server.models import Loading, Model, describe, find_name
from edgellm.server.turns import Turns

log = logging.getLogger(__name__)
_LOAD_PATIENCE_S = 15.0  # that a question waits for its model before it is told to come back
_LOOK_S = 0.1  # between looks at whose turn it is, while anybody waits
_RETRY_S = 0.5
_AGAIN_S = 10.0  # until boards are told again to give up a model that another program asks
_CARD_BYTES_S = 80e6  # as fast as a card reads, before a load was timed


class SeveralModels:
    """The models of the cluster file at `path`. See edgellm.server.models.Models.

    One task changes the boards over. A model whose split can't be read here is left out, with a line through `tell`.
    """

    def __init__(self, path: str | Path, tell: Tell, patience_s: float = PATIENCE_S):
        """`tell` and `patience_s` are as AsyncClient has them."""
        self._path, self._tell, self._patience_s = path, tell, patience_s
        self.clients: dict[str, AsyncClient] = {}
        self.share_cache = False
        self._turns = Turns([""])
        self._took_s: dict[str, float] = {}  # what loading each took the last time
        self._failed: dict[str, EdgellmError] = {}  # why the last change to it failed, for those who waited
        self._no_room: dict[str, str] = {}  # why it isn't loaded beside the others
        self._moved = asyncio.Event()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        file = ClusterFile.read(self._path)
        for name in file.models:
            try:
                self.clients[name] = AsyncClient(
                    self._path, patience_s=self._patience_s, tell=self._tell, model=name
                )
            except EdgellmError as e:
                if not self.clients:
                    raise
                self._tell(f"model {name} is left out: {e}")
        self._turns = Turns(list(self.clients))
        if len(self.clients) > 1:
            self._task = asyncio.create_task(self._change_over())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for client in self.clients.values():
            await client.aclose()

    def names(self) -> list[str]:
        """Return the names of all models, the default first."""
        return list(self.clients)

    def describe(self, name: str) -> Model:
        """Return the facts about a model, "" for the default. Raises UnknownModel."""
        name = find_name(name, self.names())
        facts = describe(name, self.clients[name], loaded=name in self._turns.stands)
        left_s = self._turns.expires_in_s(name, _now_s())
        return replace(
            facts, expires_s=None if left_s is None else time.time() + left_s,
            loading=self.clients[name].loading if self._turns.changing == name else None,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def use(self, name: str, keep_alive_s: float | None = None) -> AsyncGenerator[tuple[str, AsyncClient], None]:
        """Hold a model, once the boards have it. Raises UnknownModel, Loading if that takes too long, or why the boards
        can't load it."""
        name = find_name(name, self.names())
        if not self._turns.may_begin(name, _now_s()):
            await self._wait(name)
        self._turns.begin(name)
        try:
            yield name, self.clients[name]
        finally:
            self._turns.end(name, _now_s(), keep_alive_s)
            self._news.set()

    async def _wait(self, name: str) -> None:
        turns, began_s = self._turns, _now_s()
        self._failed.pop(name, None)
        turns.ask(name, began_s)
        back_s: float | None = None
        try:
            while not turns.may_begin(name, _now_s()):
                self._news.set()
                if (error := self._failed.get(name)) is not None:
                    raise error
                left_s = began_s + _LOAD_PATIENCE_S - _now_s()
                eta_s = self._eta_s()
                other = turns.changing not in (None, name) and not turns.beside
                if left_s <= 0 or other or (eta_s is not None and eta_s > left_s):
                    back_s = _now_s() + (eta_s if eta_s is not None else _LOAD_PATIENCE_S)
                    raise self._loading(name, eta_s)
                self._moved.clear()
                await _set(self._moved, min(left_s, _LOOK_S))
        finally:
            turns.leave(name, back_s)

    def _loading(self, name: str, eta_s: float | None) -> Loading:
        changing, now_s = self._turns.changing, _now_s()
        if changing is None:
            others = " and ".join(sorted(self._turns.stands - {name})) or "another model"
            why = f"{self._no_room[name].rstrip('.')}. It" if name in self._no_room else name
            return Loading(f"{why} is loaded once the answers of {others} that run are done. Ask again then.")
        past_s = now_s - self._turns.changing_since_s
        progress = 0.0 if eta_s is None else past_s / max(past_s + eta_s, 1e-9)
        first = f"the boards are loading {changing}"
        told = self.clients[changing].loading
        if told is not None and told.total_bytes:
            first, progress = f"{first}, {told} so far", told.read_bytes / told.total_bytes
        what = f"{first}." if changing == name else f"{first}; {name} comes after it."
        return Loading(f"{what} Ask again in {max(1, round(eta_s or 0))} s.", round(min(progress, 0.99), 3), eta_s)

    def _eta_s(self) -> float | None:
        """Return the seconds until the change that is under way should end: as the boards tell; before they do, as long
        as the last time, or as reading the largest section from a card takes. None if there is none."""
        changing = self._turns.changing
        if changing is None:
            return None
        told = self.clients[changing].loading
        if told is not None and told.left_s is not None:
            return max(1.0, told.left_s)
        took_s = self._took_s.get(changing)
        if took_s is None:
            manifest, plan = self.clients[changing].asker.manifest, self.clients[changing].plan
            shards = [manifest.section_shards(s.start, s.end) for s in plan.sections]
            took_s = max(sum(shard.bytes for shard in some) for some in shards) / _CARD_BYTES_S
        return max(1.0, took_s - (_now_s() - self._turns.changing_since_s))

    async def _change_over(self) -> None:
        """Change the boards over, again and again, when it is time."""
        while True:
            if (name := self._turns.next_unload(_now_s())) is not None:
                await self._unload(name)
            if (name := self._turns.next_beside(_now_s())) is not None:
                await self._add(name)
            if (name := self._turns.next_change(_now_s())) is not None:
                await self._change(name)
                continue
            self._news.clear()
            self._moved.set()
            await _set(self._news, 1.0)
            await asyncio.sleep(_LOOK_S)

    async def _add(self, name: str) -> None:
        """Have the boards load a model beside those that stand, if it fits."""
        turns, began_s = self._turns, _now_s()
        turns.change(name, began_s, beside=True)
        try:
            await self._prepare(name, beside=True)
        except EdgellmError as e:
            self._no_room[name] = e.brief if isinstance(e, PlanError) else str(e)
            log.info("the boards don't load %s beside the others: %s", name, e)
            turns.kept_out()
        else:
            self._no_room.pop(name, None)
            self._took_s[name] = _now_s() - began_s
            turns.changed(_now_s(), turns.stands | {name})
            log.info("the boards answer with %s after %.1f s", " and ".join(sorted(turns.stands)), self._took_s[name])
        finally:
            self._moved.set()

    async def _unload(self, name: str) -> None:
        """Have the boards give up a model that nobody has asked for a while."""
        try:
            if await self.clients[name].unload():
                log.info("the boards have given up %s, because nobody asked for it", name)
        except ClaimError as e:  # another program's answers run, or it changes the plan
            log.info("the boards keep %s for now: %s", name, e)
            self._turns.stay(name, _now_s() + _AGAIN_S)
            return
        except EdgellmError as e:
            log.warning("the boards were not told to give up %s: %s", name, e)
        self._turns.unloaded(name)

    async def _prepare(self, name: str, *, beside: bool = False) -> Plan:
        while True:
            try:
                return await self.clients[name].prepare(beside=beside)
            except ClaimError:  # another program's answers run, or it changes the plan
                await asyncio.sleep(_RETRY_S)

    async def _change(self, name: str) -> None:
        turns, began_s = self._turns, _now_s()
        turns.change(name, began_s)
        self._moved.set()
        log.info("the boards change over to %s", name)
        stands = set(turns.stands)
        try:
            await self._prepare(name)
            self._took_s[name] = _now_s() - began_s
            stands = {name, *[n for n in stands if await self.clients[n].stands()]}
            log.info("the boards answer with %s after %.1f s", " and ".join(sorted(stands)), self._took_s[name])
        except EdgellmError as e:
            self._failed[name] = e
            log.warning("the boards can't change over to %s: %s", name, e)
        finally:
            turns.changed(_now_s(), stands)
            self._moved.set()


async def _set(event: asyncio.Event, limit_s: float) -> None:
    """Return when the event is set, or after a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()


def _now_s() -> float:
    return time.monotonic()
