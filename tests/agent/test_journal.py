"""An agent's log: no peer forges a line of it, and none fills the card."""

import io
import logging

import pytest

from edgellm.agent import journal
from edgellm.agent.journal import Formatter, Sparing
from edgellm.wire import messages as m
from tests.agent.hostile import BOARD, MANAGER, Stranger, until
from tests.fakes import Boards, run

log = logging.getLogger("edgellm.tests")


@pytest.fixture
def written():
    """(the log's text so far, a clock that stands still until it is set)."""
    clock = [0.0]
    stream, sparing = io.StringIO(), Sparing(lambda: clock[0])
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter())
    handler.addFilter(sparing)
    root = logging.getLogger("edgellm")
    before = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    yield stream.getvalue, clock, sparing
    root.removeHandler(handler)
    root.setLevel(before)


def say(who, count, text="connection of %s ended"):
    token = journal.speaking(who)
    for i in range(count):
        log.info(text, i)
    journal.done_speaking(token)


def test_a_flood_is_twenty_lines_and_a_sum(written):
    text, clock, sparing = written
    say("manager mallory", 500)
    say("manager anna", 3)
    assert text().count("\n") == 23
    clock[0] = 9.0
    sparing.sum_up()
    assert text().count("\n") == 23
    clock[0] = 10.0
    sparing.sum_up()
    sparing.sum_up()
    assert text().splitlines()[-1].endswith("480 more lines of manager mallory were left out")
    say("manager mallory", 1)
    assert text().count("\n") == 25


def test_lines_that_nobody_caused_are_limited_by_what_they_say(written):
    text, clock, sparing = written
    say(None, 30)
    say(None, 2, "another line %d")
    assert text().count("\n") == 22
    clock[0] = 20.0
    say(None, 1, "the next one %d")
    assert "10 more lines of “connection of %s ended” were left out" in text()


def test_tracebacks_count_for_more(written):
    text, _, _ = written
    token = journal.speaking("manager mallory")
    for _ in range(5):
        try:
            raise ValueError("\x1b[2J")
        except ValueError:
            log.exception("failed")
    journal.done_speaking(token)
    assert text().count("Traceback") == 2 and "ValueError: [2J" in text()


def test_many_names_share_the_same_few_places(written):
    text, clock, sparing = written
    for i in range(5000):
        say(f"manager m{i}", 1)
    assert text().count("\n") == 64 + 20
    clock[0] = 10.0
    sparing.sum_up()
    assert text().splitlines()[-1].endswith(f"{5000 - 84} more lines of others were left out")


def test_no_peer_forges_a_line_or_moves_a_cursor(written):
    text, _, _ = written
    log.warning("it says: %s", "x\n2026-01-01 00:00:00 INFO serves\x1b[2J\u202e")
    assert text().endswith("it says: x 2026-01-01 00:00:00 INFO serves[2J\n") and text().count("\n") == 1


def test_an_agent_says_little_of_a_peer_that_has_much_to_be_said_of(tmp_path, written):
    text, clock, sparing = written

    async def go():
        async with Boards(tmp_path, 1) as boards:
            await boards.form((0, 6))
            (agent,) = boards.agents
            for hello, message in ((MANAGER, m.Trace(9, 0, 1, bytes(4))), (BOARD, m.Tokens(1, 1, 0, 0, (1,)))):
                for _ in range(40):
                    assert await (await Stranger.dial(agent, hello, message)).refused()
            await until(lambda: not agent.connections.peers)
            await Stranger.hang_up()

    run(go())
    for who in ("admin", "board"):
        assert text().count("of mallory") == 40
        clock[0] = 60.0
        sparing.sum_up()
        assert f"20 more lines of {who} mallory were left out" in text()
