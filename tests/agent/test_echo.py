"""Hops by pings and pongs: what counts, and what boards report of their links."""

import pytest

from edgellm.agent.echo import Echo
from edgellm.agent.measure import hop_s
from edgellm.manager.connections import Connections
from tests.fakes import Boards, run, until


def test_it_is_half_the_median_round_trip():
    echo, now_s, asked = Echo(), 100.0, 0
    for trip_s in (0.004, 0.9, 0.002, 0.002, 0.0018):
        assert echo.hop_s is None
        number = echo.next(now_s)
        assert number is not None and echo.next(now_s) is None  # one at a time
        now_s += trip_s
        echo.came(number, now_s)
        asked += 1
    assert echo.hop_s == pytest.approx(0.001)
    assert echo.next(now_s + 29) is None  # from now on it is asked now and then
    assert echo.next(now_s + 31) == asked + 1


def test_pongs_that_nobody_asked_for_count_nothing():
    echo = Echo()
    for number in (0, 1, 2**64 - 1):
        echo.came(number, 5.0)
    number = echo.next(5.0)
    for _ in range(9):
        echo.came(number, 5.5)
    assert echo.hop_s is None


def test_a_new_connection_is_asked_at_once():
    echo = Echo()
    lost = echo.next(5.0)
    assert echo.next(6.0) is None
    echo.restart()
    number = echo.next(6.0)
    echo.came(lost, 6.1)
    assert number == lost + 1 and echo.next(6.2) is None
    echo.came(number, 6.2)
    assert echo.next(6.2) == number + 1


@pytest.mark.parametrize(
    ("measured_s", "link_mbit", "expected_s"),
    [(None, 1000, 0.0005), (0.0002, None, 0.0002), (0.0002, 100, 0.0002 + 0.0013), (9.0, 1000, 1.0 + 0.00013)],
)
def test_a_hop_is_a_message_and_the_bytes_of_a_token(measured_s, link_mbit, expected_s):
    assert hop_s(measured_s, link_mbit, 16_250) == pytest.approx(expected_s)


def test_boards_measure_the_links_that_they_dial(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.agent.settled.HOLD_S", 0.0)

    async def go():
        async with Boards(tmp_path, 2, hops=True) as boards:
            await boards.form((0, 3, 6))
            links = [agent.holding.links for agent in boards.agents]
            for agent in boards.agents:
                for link in agent.stage._links:
                    link.ensure()
            await until(lambda: all(link.hop_s() for link in links))
            async with Connections() as connections:
                clients = await connections.to_all(boards.addresses)
                return [await client.status() for client in clients]

    first, last = run(go())
    for board, other in ((first, last), (last, first)):
        link = board.links[other.name]
        assert link.code == "ok" and 0 < link.hop_s < 1
        assert board.capacity.hop_s == pytest.approx(link.hop_s)
