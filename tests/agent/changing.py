"""A manager that changes a board's plan step by step, for the tests of what the board makes of that."""

import contextlib

from edgellm.manager.board import BoardClient
from edgellm.plan import Plan
from edgellm.wire import messages as m
from tests.fakes import Boards, make_plan


class Manager:
    """A connection to board b0 that changes its plan step by step."""

    def __init__(self, boards: Boards, board: BoardClient):
        self.boards, self.board = boards, board

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, boards: Boards):
        board = await BoardClient("b0", *boards.addresses["b0"]).connect()
        try:
            yield cls(boards, board)
        finally:
            board.close()

    async def claim(self, replaces, epoch) -> str | None:
        return (await self.board.ask(m.Claim({"replaces": replaces, "epoch": epoch}), m.Claimed)).content["error"]

    async def prepare(self, plan: Plan, addresses: dict | None = None) -> dict:
        return (await self.board.ask(self.assign(plan, addresses), m.Assigned)).content

    def assign(self, plan: Plan, addresses: dict | None = None) -> m.Assign:
        there = {**{b: ("127.0.0.1", 9) for b in plan.boards}, **self.boards.addresses, **(addresses or {})}
        return m.Assign({"plan": plan.to_dict(), "addresses": there, "board": "b0"})

    async def commit(self, epoch) -> dict:
        return (await self.board.ask(m.Commit({"epoch": epoch}), m.Committed)).content

    async def take(self, plan: Plan, replaces=None) -> dict:
        assert await self.claim(replaces, plan.epoch) is None
        assert (await self.prepare(plan))["error"] is None
        return await self.commit(plan.epoch)


def plan_of(boards: Boards, cuts=(0, 6), **settings) -> Plan:
    return make_plan(boards.manifest, cuts, **settings)
