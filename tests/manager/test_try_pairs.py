"""Every pair of boards is tried by the boards themselves: agents on loopback, of which some can't be reached."""

import asyncio
import contextlib
import logging
import shutil
import socket
import time
from datetime import timedelta

import pytest

from edgellm.manager.pairs import HERE, try_pairs
from edgellm.wire import messages as m
from tests.certificates import NOW, ensure, make_cluster
from tests.fakes import Boards, run


def outcomes(pairs) -> dict[str, str | None]:
    """By "dialler>board": the code, None for unknown."""
    return {f"{p.dialler}>{p.board}": p.outcome and p.outcome.code for p in pairs}


def reasons(pairs) -> dict[str, str]:
    return {f"{p.dialler}>{p.board}": p.outcome.reason for p in pairs if p.broken}


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return make_cluster(tmp_path_factory.mktemp("tls"), [f"b{i}" for i in range(5)])


@pytest.mark.parametrize("secure", [True, False])
def test_all_pairs_in_both_directions_are_tried_and_leave_nothing_behind(tmp_path, tls, secure, caplog):
    caplog.set_level(logging.INFO)

    async def go():
        async with Boards(tmp_path, 3, tls=tls if secure else None) as boards:
            pairs = await try_pairs(boards.addresses, boards.client_tls)
            async with asyncio.timeout(5):
                while any(a.connections.peers or a.connections.strangers for a in boards.agents):
                    await asyncio.sleep(0.01)
            return pairs, boards.addresses

    pairs, addresses = run(go())
    names = ["b0", "b1", "b2"]
    assert outcomes(pairs) == {f"{d}>{b}": "ok" for d in [HERE, *names] for b in names if d != b}
    assert all(p.address == addresses[p.board] and not p.broken for p in pairs)
    assert "ended" not in caplog.text  # a try is nothing to log on a board


def test_dead_mute_swapped_and_unknown_boards_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.reaching.REACH_TIMEOUT_S", 0.5)
    monkeypatch.setattr("edgellm.manager.pairs.REACH_TIMEOUT_S", 0.5)

    async def go():
        with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, and says nothing
            async with Boards(tmp_path, 3) as boards:
                addresses = {
                    "b0": boards.addresses["b0"], "b1": boards.addresses["b2"], "gone": ("127.0.0.1", 1),
                    "mute": mute.getsockname(), "lost": ("no-such-board.invalid", 7710),
                }  # fmt: skip
                began_s = time.monotonic()
                return await try_pairs(addresses), time.monotonic() - began_s

    pairs, seconds = run(go())
    codes = outcomes(pairs)
    for dialler in (HERE, "b0"):
        assert [codes[f"{dialler}>{b}"] for b in ("b1", "gone", "mute")] == ["rejected", "refused", "silent"]
        assert codes[f"{dialler}>lost"] in ("name", "timeout")  # some resolvers take their time
    assert reasons(pairs)["b0>b1"] == "calls itself b2; is the address right?"
    assert codes["gone>b0"] is None and {p.unknown for p in pairs if p.dialler == "gone"} == {"it can't be asked"}
    assert seconds < 5


def test_certificates_of_another_cluster_and_of_a_clock_that_is_wrong(tmp_path):
    """b1's certificate was made by a clock that is ahead of the others, b2's by another CA."""
    folder = tmp_path / "tls"
    ensure(folder, ["b0"], NOW - timedelta(days=1))
    ensure(folder, ["b1"], NOW + timedelta(days=20))
    ensure(tmp_path / "other", ["b2"], NOW)
    shutil.copytree(tmp_path / "other" / "boards" / "b2", folder / "boards" / "b2")

    async def go():
        (tmp_path / "model").mkdir()
        async with Boards(tmp_path / "model", 3, tls=folder) as boards:
            return await try_pairs(boards.addresses, boards.client_tls)

    told = reasons(run(go()))
    for dialler in (HERE, "b0"):
        assert told[f"{dialler}>b1"] == "its certificate is not valid yet; are the clocks right?"
        assert told[f"{dialler}>b2"] == "its certificate belongs to another cluster. Deploy again if it is yours"
    assert len(told) == 4  # nothing is made up for those that can't be asked


def test_an_agent_that_does_not_know_the_question_is_unknown_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.delitem(m.BY_TYPE, m.Reach.TYPE)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            return await try_pairs(boards.addresses), await try_pairs(boards.addresses)

    for pairs in run(go()):
        assert outcomes(pairs) == {f"{HERE}>b0": "ok", f"{HERE}>b1": "ok", "b0>b1": None, "b1>b0": None}
        assert {p.unknown for p in pairs if p.dialler != HERE} == {"its edgellm is too old to try"}


def test_an_answer_that_makes_no_sense_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.reaching.reached_content", lambda outcomes: {"boards": {"b1": [7]}})

    async def go():
        async with Boards(tmp_path, 2) as boards:
            return await try_pairs(boards.addresses)

    assert {p.unknown for p in run(go()) if p.dialler != HERE} == {"its answer makes no sense"}


def test_a_board_that_does_not_answer_the_question_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.reaching.Reaching.asked", lambda reaching, peer, message: None)
    monkeypatch.setattr("edgellm.manager.pairs._SPARE_S", -1.8)

    async def go():
        async with Boards(tmp_path, 2) as boards:
            return await try_pairs(boards.addresses)

    assert all("gave no answer" in p.unknown and "no reached within" in p.unknown for p in run(go())[1::2])


def test_packets_that_are_dropped_cost_one_deadline_not_one_a_board(tmp_path, monkeypatch):
    """Nobody accepts at these addresses, and their queues are full: like a firewall that drops."""
    monkeypatch.setattr("edgellm.agent.reaching.REACH_TIMEOUT_S", 0.5)
    monkeypatch.setattr("edgellm.manager.pairs.REACH_TIMEOUT_S", 0.5)

    async def go(stack):
        full = [stack.enter_context(full_listener()) for _ in range(4)]
        async with Boards(tmp_path, 2) as boards:
            addresses = {**boards.addresses, **{f"dropped{i}": address for i, address in enumerate(full)}}
            began_s = time.monotonic()
            return await try_pairs(addresses), time.monotonic() - began_s

    with contextlib.ExitStack() as stack:
        pairs, seconds = run(go(stack))
    codes = outcomes(pairs)
    assert codes["b0>b1"] == codes["b1>b0"] == "ok"
    assert {codes[f"{d}>dropped{i}"] for d in (HERE, "b0", "b1") for i in range(4)} == {"timeout"}
    assert reasons(pairs)["b0>dropped0"] == "no answer within 0.5 s"
    assert seconds < 1.5


@contextlib.contextmanager
def full_listener():
    """An address at which no connection is ever made, because its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()
