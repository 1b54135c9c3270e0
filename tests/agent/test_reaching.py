"""A board tries whether it reaches others: for managers only, a few at a time, and beside its work."""

import asyncio
import contextlib

import pytest

from edgellm.agent.reaching import _MAX_ASKED
from edgellm.errors import BoardError
from edgellm.manager.board import BoardClient
from edgellm.wire import messages as m
from edgellm.wire.reach import MAX_DIALS, MAX_TRIES, reach_content
from tests.agent.hostile import BOARD, MANAGER, Stranger, mid_answer, until
from tests.fakes import Boards, run

pytestmark = pytest.mark.usefixtures("logged")


class Mute:
    """Takes connections and says nothing; `most` were open at once."""

    def __init__(self):
        self.open: set[asyncio.StreamWriter] = set()
        self.count = self.most = 0

    async def __aenter__(self) -> "Mute":
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.address = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *exc) -> None:
        self._server.close()
        for writer in self.open:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        self.count, self.most = self.count + 1, max(self.most, len(self.open))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self.open.discard(writer)
        writer.close()


def many(address, count: int) -> m.Reach:
    return m.Reach(reach_content({f"x{i}": address for i in range(count)}))


async def asked(boards, message, timeout_s=10.0):
    board = await BoardClient("b0", *boards.addresses["b0"], boards.client_tls).connect()
    try:
        return (await board.ask(message, m.Reached, timeout_s)).content["boards"]
    finally:
        board.close()


def test_a_few_are_dialled_at_a_time_whoever_asks(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.reaching.REACH_TIMEOUT_S", 0.2)

    async def go():
        async with Mute() as mute, Boards(tmp_path, 1) as boards:
            answers = await asyncio.gather(*(asked(boards, many(mute.address, 20)) for _ in range(3)))
            return answers, mute

    answers, mute = run(go())
    assert mute.count == 60 and mute.most <= MAX_DIALS
    assert all(x == {"code": "silent", "reason": "no answer within 0.2 s, though it takes connections"}
               for answer in answers for x in answer.values())  # fmt: skip


def test_too_many_questions_are_refused_and_those_before_are_answered(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.reaching.REACH_TIMEOUT_S", 0.5)

    async def go():
        async with Mute() as mute, Boards(tmp_path, 1) as boards:
            first = [asyncio.create_task(asked(boards, many(mute.address, 2))) for _ in range(_MAX_ASKED)]
            await until(lambda: mute.count)
            await until(lambda: len(boards.agents[0].dispatcher._reaching._tasks) == _MAX_ASKED)
            with pytest.raises(BoardError, match=f"refused: {_MAX_ASKED} questions of which boards can be reached"):
                await asked(boards, many(mute.address, 1))
            assert [len(a) for a in await asyncio.gather(*first)] == [2] * _MAX_ASKED
            return await asked(boards, many(mute.address, 1))

    assert list(run(go())) == ["x0"]


def test_for_a_manager_that_is_gone_nothing_more_is_dialled(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.reaching.REACH_TIMEOUT_S", 0.2)

    async def go():
        async with Mute() as mute, Boards(tmp_path, 1) as boards:
            with pytest.raises(BoardError, match="no reached within 0.05 s"):
                await asked(boards, many(mute.address, MAX_TRIES), 0.05)
            await until(lambda: not boards.agents[0].dispatcher._reaching._tasks)
            return mute.count

    assert run(go()) == MAX_DIALS


@pytest.mark.parametrize("content", [{}, {"boards": {}}, {"boards": {"x": ["h", 0]}}, {"boards": [["x", "h", 1]]}])
def test_a_malformed_question_ends_that_connection_alone(tmp_path, content):
    async def go():
        async with mid_answer(tmp_path) as at:
            stranger = await Stranger.dial(at.last, MANAGER, m.Reach(content))
            return await stranger.refused()

    assert run(go()).startswith("reach: ")


def test_a_board_may_not_ask(tmp_path):
    async def go():
        async with mid_answer(tmp_path) as at:
            stranger = await Stranger.dial(at.last, BOARD, many(("127.0.0.1", 1), 1))
            return await stranger.refused()

    assert "type 24 from a board is not part of this protocol" in run(go())


def test_boards_are_tried_while_a_step_is_computed(tmp_path):
    """The step stands still until the answer is there: nothing of it runs in the engine's thread."""

    async def go():
        async with mid_answer(tmp_path) as at:
            await until(lambda: at.last.stage.engine.waiting)
            addresses = {**at.boards.addresses, "gone": ("127.0.0.1", 1)}
            stranger = await Stranger.dial(at.last, MANAGER, m.Reach(reach_content(addresses)))
            return (await stranger.next()).content["boards"]

    outcome = run(go())
    assert outcome["b0"] == outcome["b1"] == {"code": "ok", "reason": ""}
    assert outcome["gone"] == {"code": "refused", "reason": "connection refused, is its agent running?"}


def test_an_agent_that_stops_gives_up_what_it_tries(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.reaching.REACH_TIMEOUT_S", 60.0)

    async def go():
        async with Mute() as mute, Boards(tmp_path, 1) as boards:
            stranger = await Stranger.dial(boards.agents[0], MANAGER, many(mute.address, 5))
            await until(lambda: mute.count)
            await boards.stop(0)
            await until(lambda: not mute.open)
            assert await stranger.next() is None
            await Stranger.hang_up()

    run(go())
