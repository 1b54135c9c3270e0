"""Managers that do only what they are told, against fake boards that serve a plan."""

import asyncio
from contextlib import asynccontextmanager

from edgellm.manager.board import BoardClient
from edgellm.wire import messages as m
from tests.fakes import Boards

PROMPT = [5, 17, 3, 42, 8, 1, 90]


class Manager:
    """One that does only what it is told: it opens, starts and closes by hand. `got` are the messages about its
    sequences, by board."""

    def __init__(self, plan, clients):
        self.plan, self.clients = plan, {c.name: c for c in clients}
        self.events = asyncio.Queue()
        self.got = {c.name: [] for c in clients}

    def subscribe(self, *seq_ids):
        for seq_id in seq_ids:
            for client in self.clients.values():
                client.subscribe(seq_id, self.events)

    def open(self, board, seq_id, ids=PROMPT, **options):
        options = {"plan": self.plan.digest, "max_tokens": 5, **options}
        self.clients[board].send(m.Open(self.plan.epoch, seq_id, options, tuple(ids)))

    def start(self, seq_id, reuse=0):
        self.clients[self.plan.boards[0]].send(m.Start(self.plan.epoch, seq_id, reuse))

    def close(self, seq_id, *boards):
        for board in boards or self.plan.boards:
            self.clients[board].send(m.Close(self.plan.epoch, seq_id))

    async def next(self, kind, seq_id, board=None):
        """The next message of this kind about a sequence; those before it are dropped."""
        async with asyncio.timeout(10):
            while True:
                client, message = await self.events.get()
                right = isinstance(message, kind) and message.seq_id == seq_id and board in (None, client.name)
                if right:
                    return message
                assert not isinstance(message, m.Failed) or "was given to another" in message.reason, message


@asynccontextmanager
async def managers(tmp_path, count, boards=2, cuts=(0, 3, 6), gates=None, **settings):
    """Fake boards that serve a plan, and managers of them with connections of their own."""
    async with Boards(tmp_path, boards, gates=gates) as cluster:
        plan, made = await cluster.form(cuts, **settings), []
        try:
            for _ in range(count):
                clients = [await BoardClient(b, *cluster.addresses[b]).connect() for b in plan.boards]
                made.append(Manager(plan, clients))
            yield cluster, *made
        finally:
            for manager in made:
                for client in manager.clients.values():
                    client.close()


async def anext_failure(manager, seq_id):
    """The failure of a sequence."""
    async with asyncio.timeout(10):
        while True:
            _, message = await manager.events.get()
            if isinstance(message, m.Failed) and message.seq_id == seq_id:
                return message
