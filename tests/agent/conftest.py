"""What the tests of hostile peers watch in the log, and a board whose plan is changed."""

import logging

import pytest

from tests.agent.changing import Manager
from tests.fakes import Boards, run

pytest.register_assert_rewrite("tests.agent.hostile")  # so that its asserts, too, show both sides


@pytest.fixture
def logged(caplog):
    """The log as text; it must hold no traceback, whatever the peers did."""
    caplog.set_level(logging.INFO)
    yield lambda: caplog.text
    during = caplog.get_records("call")
    assert not [r for r in during if r.levelno >= logging.ERROR or r.exc_info], caplog.text


@pytest.fixture
def on_board(tmp_path):
    """Run `go(boards, what board b0 holds, a manager)`."""

    def on_board(go, *, manifest=None, gate=None, count=1):
        async def between():
            async with Boards(tmp_path, count, manifest, gates={"b0": gate} if gate else None) as boards:
                async with Manager.of(boards) as manager:
                    return await go(boards, boards.agents[0].holding, manager)

        return run(between())

    return on_board
