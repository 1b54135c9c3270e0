"""Timeouts for tests of managers: everything here is on loopback and takes milliseconds."""

import pytest

from tests.fakes import Boards, make_manifest


@pytest.fixture
def quick(monkeypatch):
    """Boards that don't answer are given up soon, and each has all the RAM it likes."""
    for name, seconds in {
        "survey._REACH_TIMEOUT_S": 1.0, "survey._LOST_TIMEOUT_S": 0.5, "survey._GRACE_S": 0.1,
        "client._CLOSE_TIMEOUT_S": 0.2, "client.PONG_TIMEOUT_S": 0.05, "client.PING_EVERY_S": 0.02,
        "board.PING_EVERY_S": 0.02, "session._RETRY_S": (0.005, 0.01, 0.02),
    }.items():  # fmt: skip
        monkeypatch.setattr(f"edgellm.manager.{name}", seconds)
    monkeypatch.setattr("edgellm.manager.survey.Fleet._share_ram", lambda fleet: None)
    monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 4 << 30)


@pytest.fixture
def boards_of(tmp_path):
    """Boards whose layers are 300 MB each: three fit on one."""

    def boards_of(count: int, **kwargs) -> Boards:
        return Boards(tmp_path, count, make_manifest(ram_bytes=300_000_000), head_s=0.001, **kwargs)

    return boards_of
