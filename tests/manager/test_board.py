"""A connection to a board: it is alive as long as bytes come, and nothing that it says unasked takes memory."""

import asyncio
import contextlib
import socket

import pytest

from edgellm.errors import BoardError
from edgellm.manager import board as board_module
from edgellm.manager.board import BoardClient
from edgellm.wire import messages as m
from edgellm.wire.peer import Peer
from edgellm.wire.protocol import Protocol
from tests.fakes import run, until


class Board:
    """What listens in the place of a board and answers as `answers(peer, message)` says."""

    def __init__(self, answers):
        self.answers, self.peers, self.ended = answers, [], []

    @classmethod
    @contextlib.asynccontextmanager
    async def listening(cls, answers):
        self = cls(answers)

        def make():
            protocol = Protocol(m.Hello("board", "b0"), dials=False)
            peer = Peer(protocol, self.answers, lambda peer, why: self.ended.append(why))
            self.peers.append(peer)
            return peer

        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        self.client = BoardClient("b0", "127.0.0.1", server.sockets[0].getsockname()[1])
        await self.client.connect()
        try:
            yield self
        finally:
            self.client.close()
            for peer in self.peers:
                peer.close()
            server.close()

    def dribble(self, data: bytes, every_s: float) -> asyncio.Task:
        """Send bytes piece by piece."""

        async def send():
            for at in range(0, len(data), 1000):
                self.peers[0]._transport.write(data[at : at + 1000])
                await asyncio.sleep(every_s)

        return asyncio.create_task(send())


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(board_module, "PONG_TIMEOUT_S", 0.2)
    monkeypatch.setattr(board_module, "PING_EVERY_S", 0.02)


def pong(peer, message):
    if isinstance(message, m.Ping):
        peer.send(m.Pong(message.number, 0, 0))


def test_a_board_whose_pong_stands_behind_its_layers_is_alive(monkeypatch):
    monkeypatch.setattr(board_module, "PONG_TIMEOUT_S", 0.5)

    async def go():
        waiting = []

        def behind(peer, message):
            waiting.append(message) if isinstance(message, m.Ping) else None

        async with Board.listening(behind) as board:
            asked = asyncio.create_task(board.client.ask(m.Trace(1, 0, 1, bytes(4)), m.Traced, 10.0))
            await until(lambda: waiting)
            data = m.encode(m.Traced(1, 0, 1, bytes(80_000), 0, 1))
            await board.dribble(data, 0.02)  # 1.6 s, three times as long as a pong may take
            assert not board.client.lost.done()
            assert len((await asked).data) == 80_000
            for ping in waiting:
                board.peers[0].send(m.Pong(ping.number, 0, 0))
            board.answers = pong
            board.peers[0]._on_message = pong
            pings = board.client._pinged
            await until(lambda: board.client._pinged > pings + 3)
            assert not board.client.lost.done()

    run(go())


def test_a_board_from_which_nothing_comes_is_lost():
    async def go():
        async with Board.listening(lambda peer, message: None) as board, asyncio.timeout(5):
            assert "has not answered for 0.2 s" in str(await board.client.lost)

    run(go())


def test_a_board_that_sends_anything_but_pongs_for_longer_than_a_step_takes_is_lost(monkeypatch):
    monkeypatch.setattr(board_module, "STEP_TIMEOUT_S", 0.5)

    async def go():
        async with Board.listening(lambda peer, message: None) as board, asyncio.timeout(5):
            dribbling = board.dribble(m.encode(m.Traced(1, 0, 1, bytes(1_000_000))), 0.02)
            assert "has not answered" in str(await board.client.lost)
            dribbling.cancel()

    run(go())


def test_what_nobody_asked_for_is_dropped():
    async def go():
        async with Board.listening(pong) as board:
            client, (peer,) = board.client, board.peers
            late = asyncio.create_task(client.ask(m.AskStatus(), m.Status, 0.05))
            with pytest.raises(BoardError, match="no status within"):
                await late
            for _ in range(100):
                peer.send(m.Status({"late": True}, 1), m.Claimed({}, 0), m.Traced(1, 0, 1, bytes(4), 0, 77))
                peer.send(m.Pong(1 << 40, 5, 5), m.Tokens(1, 99, 0, 0, (1,)), m.Failed(1, 98, 0, "no"))
            asked = asyncio.create_task(client.ask(m.AskStatus(), m.Status))
            await asyncio.sleep(0)
            for _ in range(50):
                peer.send(m.Status({"now": True}, client._requests))
            assert (await asked).content == {"now": True}
            await until(lambda: client._pinged > 3)
            assert client._answers == {} and client._sequences == {} and client.idle_s > 0
            assert not client.lost.done()

    run(go())


def test_answers_to_one_question_are_no_more_than_it_asked_for():
    async def go():
        async with Board.listening(pong) as board:
            client, (peer,) = board.client, board.peers
            answers = client.ask_for(2, m.Trace(1, 0, 1, bytes(4)), m.Traced, 5.0)
            first = asyncio.create_task(anext(answers))
            await asyncio.sleep(0)
            peer.send(m.Traced(1, 0, 1, bytes(4), 0, client._requests))
            assert (await first).layer == 0
            for layer in range(1, 1000):
                peer.send(m.Traced(1, layer, 1, bytes(4), 0, client._requests))
            (queue,) = client._answers.values()
            await until(lambda: queue.full())
            assert queue.qsize() == 2 and (await anext(answers)).layer == 1
            await answers.aclose()

    run(go())


def test_a_board_that_floods_a_sequence_is_let_go(monkeypatch):
    monkeypatch.setattr(board_module, "_MAX_UNREAD", 100)

    async def go():
        async with Board.listening(pong) as board, asyncio.timeout(5):
            events = asyncio.Queue()
            board.client.subscribe(9, events)
            for i in range(200):
                board.peers[0].send(m.Tokens(1, 9, i, 0, (1,)))
            assert "100 messages of one sequence lie unread" in str(await board.client.lost)
            assert events.qsize() == 100
            await until(lambda: board.ended)
            assert "100 messages of one sequence lie unread" in board.ended[0]

    run(go())


def test_what_is_sent_while_bulk_is_on_its_way_stands_behind_little_of_it():
    """The manager reads nothing at first: what the board has written, to asyncio and the system, stays small."""

    async def go():
        async with Board.listening(lambda peer, message: None) as board:
            board.client._watcher.cancel()
            (peer,) = board.peers
            receiving = board.client.peer._transport.get_extra_info("socket")
            receiving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
            board.client.peer.pause_reading()
            piece = m.Traced(1, 0, 32, bytes(32 * 4 * 1024))

            async def bulk():
                for _ in range(200):  # 26 MB
                    await peer.drain()
                    peer.send(piece)

            sending = asyncio.create_task(bulk())
            await until(lambda: peer.congested)
            behind = peer.sent_bytes
            peer.send(m.Pong(7, 0, 0))
            assert behind < 1 << 20
            came = []
            board.client.peer._on_message = lambda peer, message: came.append(message)
            board.client.peer.resume_reading()
            await until(lambda: any(isinstance(x, m.Pong) for x in came))
            pong = next(i for i, x in enumerate(came) if isinstance(x, m.Pong))
            assert pong < 8  # pieces before it
            sending.cancel()

    run(go())
