"""Owns all connections to boards: dials them, keeps them while they live, and closes them together."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from edgellm.config import CONNECT_TIMEOUT_S
from edgellm.errors import BoardError
from edgellm.manager.board import BoardClient
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials

_T = TypeVar("_T")


class Connections:
    """Connections by board name, over TLS if there are credentials; any number of tasks share one. Closed at the end of
    an `async with` block."""

    def __init__(self, tls: Credentials | None = None):
        self._tls = tls
        self._clients: dict[str, BoardClient] = {}
        self._dialling: dict[str, tuple[Address, asyncio.Task[BoardClient]]] = {}

    async def __aenter__(self) -> "Connections":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __getitem__(self, board: str) -> BoardClient:
        if board not in self._clients:
            raise BoardError(f"board {board}: the connection was closed", board)
        return self._clients[board]

    def lost(self, board: str) -> bool:
        """Return whether there was a connection to this board that has ended by itself."""
        client = self._clients.get(board)
        return client is not None and client.lost.done()

    async def to(self, board: str, address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> BoardClient:
        """Return the connection to a board, dialled now unless there is one to this address that lives.

        Tasks that ask for one board at once share one dial, with the timeout of the first. Raises BoardError if the
        board can't be reached.
        """
        client = self._clients.get(board)
        if client is not None and not client.lost.done() and (client.host, client.port) == address:
            return client
        under_way = self._dialling.get(board)
        if under_way is None or under_way[0] != address:
            if under_way is not None:
                under_way[1].cancel()
            task = asyncio.create_task(self._dial(board, address, timeout_s))
            task.add_done_callback(_retrieved)
            under_way = self._dialling[board] = (address, task)
        # Whoever is cancelled leaves the dial to the others. If the dial is cancelled, its board was dropped meanwhile.
        await asyncio.wait([under_way[1]])
        if under_way[1].cancelled():
            raise BoardError(f"board {board} ({address[0]}:{address[1]}): the connection was closed", board)
        return under_way[1].result()

    async def to_all(self, addresses: Mapping[str, Address]) -> list[BoardClient]:
        """Return connections to all these boards, dialled at once. Raises BoardError naming the first that can't be
        reached."""
        return await all_of(self.to(board, address) for board, address in addresses.items())

    def drop(self, board: str) -> None:
        """Hang up on a board, if there is a connection or one is being made."""
        under_way = self._dialling.pop(board, None)
        if under_way is not None:
            under_way[1].cancel()
        client = self._clients.pop(board, None)
        if client is not None:
            client.close()

    def close(self) -> None:
        """Hang up on every board."""
        for board in {*self._clients, *self._dialling}:
            self.drop(board)

    async def _dial(self, board: str, address: Address, timeout_s: float) -> BoardClient:
        client = BoardClient(board, *address, self._tls)
        try:
            await client.connect(timeout_s)
        except BaseException:
            client.close()
            raise
        finally:
            if self._dialling.get(board, (None, None))[1] is asyncio.current_task():
                del self._dialling[board]
        before, self._clients[board] = self._clients.get(board), client
        if before is not None:
            before.close()
        return client


def _retrieved(task: asyncio.Task[BoardClient]) -> None:
    """Mark a dial's error as seen, though everybody who waited for it may be gone."""
    if not task.cancelled():
        task.exception()


async def all_of(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Return all results in order, or raise the first error with the others cancelled."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
