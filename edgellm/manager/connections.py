"""Owns all connections to boards: dials them, keeps them while they live, and closes them together."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from edgellm.config import CONNECT_TIMEOUT_S
from edgellm.manager.board import BoardClient
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials

_T = TypeVar("_T")


class Connections:
    """Connections by board name, over TLS if there are credentials. Closed at the end of an `async with` block."""

    def __init__(self, tls: Credentials | None = None):
        self._tls = tls
        self._clients: dict[str, BoardClient] = {}

    async def __aenter__(self) -> "Connections":
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __getitem__(self, board: str) -> BoardClient:
        return self._clients[board]

    def lost(self, board: str) -> bool:
        """Return whether there was a connection to this board that has ended by itself."""
        client = self._clients.get(board)
        return client is not None and client.lost.done()

    async def to(self, board: str, address: Address, timeout_s: float = CONNECT_TIMEOUT_S) -> BoardClient:
        """Return the connection to a board, dialled now unless there is one that lives. Raises BoardError if the board
        can't be reached."""
        client = self._clients.get(board)
        if client is not None and not client.lost.done():
            return client
        self.drop(board)
        client = BoardClient(board, *address, self._tls)
        try:
            await client.connect(timeout_s)
        except BaseException:
            client.close()
            raise
        self._clients[board] = client
        return client

    async def to_all(self, addresses: Mapping[str, Address]) -> list[BoardClient]:
        """Return connections to all these boards, dialled at once. Raises BoardError naming the first that can't be
        reached."""
        return await all_of(self.to(board, address) for board, address in addresses.items())

    def drop(self, board: str) -> None:
        """Hang up on a board, if there is a connection."""
        client = self._clients.pop(board, None)
        if client is not None:
            client.close()

    def close(self) -> None:
        """Hang up on every board."""
        for board in list(self._clients):
            self.drop(board)


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
