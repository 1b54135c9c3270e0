"""Timeouts for tests of managers: everything here is on loopback and takes milliseconds."""

import asyncio

import pytest

from edgellm.manager.survey import Fleet
from tests.fakes import Boards, make_manifest


@pytest.fixture
def quick(monkeypatch):
    """Boards that can't be reached are given up soon, one that answers late on a busy machine isn't, and each has all
    the RAM it likes."""
    for name, seconds in {
        "survey._REACH_TIMEOUT_S": 1.0, "survey._LOST_TIMEOUT_S": 0.5, "survey._GRACE_S": 0.1,
        "client._CLOSE_TIMEOUT_S": 0.2, "client.PONG_TIMEOUT_S": 0.05, "client.PING_EVERY_S": 0.02,
        "board.PING_EVERY_S": 0.02, "board.PONG_TIMEOUT_S": 60.0, "session._RETRY_S": (0.005, 0.01, 0.02),
    }.items():  # fmt: skip
        monkeypatch.setattr(f"edgellm.manager.{name}", seconds)
    monkeypatch.setattr("edgellm.manager.survey.Fleet._share_ram", lambda fleet: None)
    monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 4 << 30)


@pytest.fixture
def surveys(monkeypatch) -> list[Fleet]:
    """Grows by one with every survey that begins."""
    begun, survey = [], Fleet.survey

    def counted(fleet, *args, **kwargs):
        begun.append(fleet)
        return survey(fleet, *args, **kwargs)

    monkeypatch.setattr(Fleet, "survey", counted)
    return begun


class Hours:
    """The clock that patience goes by, and time that passes at once."""

    def __init__(self):
        self._passed_s = 0.0

    def now_s(self) -> float:
        return asyncio.get_running_loop().time() + self._passed_s

    def pass_by(self, seconds: float) -> None:
        self._passed_s += seconds


@pytest.fixture
def hours(monkeypatch) -> Hours:
    clock = Hours()
    monkeypatch.setattr("edgellm.manager.session._clock_s", clock.now_s)
    return clock


@pytest.fixture
def boards_of(tmp_path):
    """Boards whose layers are 300 MB each: three fit on one."""

    def boards_of(count: int, **kwargs) -> Boards:
        return Boards(tmp_path, count, make_manifest(ram_bytes=300_000_000), head_s=0.001, **kwargs)

    return boards_of
