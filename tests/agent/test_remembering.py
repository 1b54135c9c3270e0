"""What failed is remembered and reported: a load, a damaged shard, a link to another board."""

import asyncio
import hashlib
import os
from dataclasses import replace

import pytest

from edgellm.errors import ManifestError
from edgellm.manager.board import BoardClient
from edgellm.manager.client import ClusterClient
from edgellm.shards.mapped import map_checked
from edgellm.wire import messages as m
from tests.agent.changing import plan_of
from tests.agent.hostile import until
from tests.fakes import Boards, ask, assign, connect_all, generate, make_plan, run

PROMPT = [5, 17, 3, 42]


def test_a_load_that_failed_is_reported_until_that_section_is_loaded(on_board):
    async def go(boards, holding, manager):
        boards.broken.add("b0")
        await manager.claim(None, 1)
        assert "SHA-256 differs" in (await manager.prepare(plan_of(boards, (0, 3, 6))))["error"]
        failed = (await manager.board.status()).load_error
        assert (failed.start, failed.end) == (0, 3) and "layer-0000.safetensors: SHA-256 differs" in failed.reason
        assert 0 <= failed.age_s < 30
        boards.broken.clear()
        await manager.claim(None, 2)
        await manager.prepare(plan_of(boards, (0, 2, 6), epoch=2))  # a part of it: the rest may still be wrong
        assert (await manager.board.status()).load_error is not None
        await manager.claim(None, 3)
        await manager.prepare(plan_of(boards, (0, 4, 6), epoch=3))
        assert (await manager.board.status()).load_error is None

    on_board(go, count=2)


def test_what_a_load_raises_that_is_no_error_of_ours_is_reported_too(on_board, caplog):
    async def go(boards, holding, manager):
        def load(*args):
            raise MemoryError

        holding._load = load
        await manager.claim(None, 1)
        await manager.prepare(plan_of(boards))
        return (await manager.board.status()).load_error

    assert on_board(go).reason == "MemoryError: "


def test_a_damaged_shard_is_not_there_until_it_is_replaced(on_board):
    async def go(boards, holding, manager):
        good = (boards.folder / "layer-0002.safetensors").read_bytes()
        shards = [replace(s, sha256=hashlib.sha256(bytes(s.bytes)).hexdigest()) for s in holding.manifest.shards]
        holding.model.manifest = replace(holding.manifest, shards=tuple(shards))
        shard = holding.manifest.layer(2)
        path = boards.folder / shard.name
        assert (await manager.board.status()).shards.layers == ((0, 6),)
        path.write_bytes(b"x" * shard.bytes)
        assert (await manager.board.status()).shards.layers == ((0, 6),)  # nobody has looked yet
        with pytest.raises(ManifestError, match="SHA-256"):
            map_checked(path, shard)
        told = (await manager.board.status()).shards
        assert (told.layers, told.damaged) == (((0, 2), (3, 6)), (shard.name,)) and not told.has(0, 3, 6)
        (new := path.with_suffix(".new")).write_bytes(good)
        os.replace(new, path)
        told = (await manager.board.status()).shards
        assert (told.layers, told.damaged) == (((0, 6),), ())

    on_board(go)


def test_links_are_reported_by_both_sides_of_a_failure(tmp_path, monkeypatch):
    """A board that can't be dialled is named in Failed and in the status of who dialled it, and for a while after the
    plan that needed it."""

    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                assert [c.token for c in await ask(cluster, PROMPT)] == generate(PROMPT, 10)
                said = (await cluster.boards[0].status()).links["b1"]
                assert (said.code, said.reason, said.broken) == ("ok", "", False) and said.age_s >= 0
            clients = await connect_all(boards.addresses)
            cut = make_plan(boards.manifest, (0, 3, 6), epoch=2)
            await assign(cut, {**boards.addresses, "b1": ("127.0.0.1", 1)}, clients)
            (first, second, _) = clients
            async with BoardEvents(first, 7) as events:
                first.send(m.Open(2, 7, {"plan": cut.digest, "max_tokens": 3}, (1, 2)))
                failed = await events.failed()
            assert (m.FAILURES[failed.code], failed.board) == ("link", "b1") and "board b1" in failed.reason
            said = (await first.status()).links["b1"]
            assert (said.code, said.broken) == ("refused", True) and "connection refused" in said.reason
            await assign(make_plan(boards.manifest, (0, 6), epoch=3), boards.addresses, clients)
            assert (await first.status()).links.keys() == {"b1"}
            assert (await second.status()).links == {}
            monkeypatch.setattr("edgellm.agent.link._REMEMBERED_S", 0.0)
            assert (await first.status()).links == {}
            for client in clients:
                client.close()

    run(go())


class BoardEvents:
    """The messages of one sequence."""

    def __init__(self, client: BoardClient, seq_id: int):
        self.client, self.seq_id, self.queue = client, seq_id, asyncio.Queue()

    async def __aenter__(self):
        self.client.subscribe(self.seq_id, self.queue)
        return self

    async def __aexit__(self, *exc):
        self.client.unsubscribe(self.seq_id)

    async def failed(self) -> m.Failed:
        while True:
            _, message = await self.client.receive(self.queue, 10.0, "nothing")
            if isinstance(message, m.Failed):
                return message


def test_a_link_that_was_cut_is_reported_as_lost(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            async with ClusterClient.dial(plan, boards.addresses) as cluster:
                await ask(cluster, PROMPT)
                (peer,) = [p for p in boards.agents[1].connections.peers if p.name == "b0"]
                peer.refuse("\x1b[2Jno boards today\n")
                await until(lambda: boards.agents[0].stage._next.peer is None)
                said = (await cluster.boards[0].status()).links["b1"]
                assert (said.code, said.reason, said.broken) == ("lost", "refused: [2Jno boards today ", False)

    run(go())
