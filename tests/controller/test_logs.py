"""Logs of several boards: in order of time, as they come, without what could move a cursor."""

import json
import threading
from datetime import datetime

import pytest

from edgellm.controller.logs import End, Line, parse_file, parse_journal, read_logs
from edgellm.controller.ssh import Done
from edgellm.errors import BoardError
from edgellm.manager.cluster_file import Board, SshAccess
from tests.tiny import wait_until

NOON = datetime(2026, 11, 23, 12, 0, 0).timestamp()


def board(name: str, ssh: bool = True) -> Board:
    return Board(name, "10.0.0.1", 7710, SshAccess("10.0.0.1") if ssh else None)


def entry(at_s: float, message) -> str:
    return json.dumps({"__REALTIME_TIMESTAMP": str(int(at_s * 1e6)), "MESSAGE": message, "_PID": "1"})


class Journals:
    """`run_script` for boards whose journals hold these lines; with `follow`, until stopped."""

    def __init__(self, lines: dict[str, list[str]], code: int = 0, stderr: str = ""):
        self.lines, self.done, self.scripts = lines, Done(code, stderr), []

    def __call__(self, name, access, script, on_line, *, deadline_s, max_bytes, stop, tell):
        self.scripts.append(script)
        if name not in self.lines:
            raise BoardError(f"board {name}: no answer by SSH within 6 s", name)
        for line in self.lines[name]:
            on_line(line)
        if "--follow" in script:
            assert deadline_s is None and stop.wait(20)
        else:
            assert deadline_s is not None
        return self.done


def read(tmp_path, boards, run, **options) -> list:
    return list(read_logs(boards, **{"lines": 10, "follow": False, "log_dir": tmp_path, "run": run, **options}))


def test_lines_of_all_boards_in_order_of_time(tmp_path):
    run = Journals({"a": [entry(NOON, "one"), entry(NOON + 2, "three")], "b": [entry(NOON + 1.25, "two")]})
    items = read(tmp_path, [board("a"), board("b")], run, lines=7)
    lines = [i for i in items if isinstance(i, Line)]
    assert [(x.board, x.time, x.text) for x in lines] == [
        ("a", "2026-11-23 12:00:00.000", "one"),
        ("b", "2026-11-23 12:00:01.250", "two"),
        ("a", "2026-11-23 12:00:02.000", "three"),
    ]
    assert all(script.endswith("--lines=7") for script in run.scripts)


def test_a_board_that_cannot_be_read_is_named_and_the_others_shown(tmp_path):
    told = []
    run = Journals({"a": [entry(NOON, "one")], "empty": []})
    items = read(tmp_path, [board("gone"), board("a"), board("empty")], run, tell=told.append)
    assert [i.text for i in items if isinstance(i, Line)] == ["one"]
    errors = {i.board: i.error for i in items if isinstance(i, End)}
    assert errors == {"a": None, "empty": None, "gone": "board gone: no answer by SSH within 6 s"}
    assert told == ["empty: its journal has nothing from the agent that its SSH user may read"]


def test_a_journal_that_fails_says_so_in_one_clean_line(tmp_path):
    (end,) = read(tmp_path, [board("a")], Journals({"a": []}, 127, "\x1b[31mno\nsuch command"))
    assert end.error == "board a: its journal can't be read: [31mno such command"


def test_following_goes_on_until_it_is_left(tmp_path):
    run = Journals({"a": [entry(NOON, "one")], "b": [entry(NOON, "two")]})
    entries = read_logs([board("a"), board("b")], lines=1, follow=True, log_dir=tmp_path, run=run)
    assert {next(entries).text, next(entries).text} == {"one", "two"}
    before = threading.active_count()
    entries.close()
    wait_until(lambda: threading.active_count() <= before - 2)
    assert all(script.endswith("--lines=1 --follow") for script in run.scripts)


def test_slow_boards_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.controller.logs._PATIENCE_S", 0.05)
    told = threading.Event()

    def slow(*args, **kwargs):
        assert told.wait(20)
        return Done(0, "")

    def waits(boards):
        late.extend(boards)
        told.set()

    late = []
    read(tmp_path, [board("a")], slow, waits=waits)
    assert late == ["a"]


@pytest.mark.parametrize(
    ("text", "at_s", "shown"),
    [
        (entry(NOON, "serves layers 0-12"), NOON, "serves layers 0-12"),
        (entry(NOON, "2026-11-23 12:00:00,123 INFO serves"), NOON, "INFO serves"),  # one time is enough
        (entry(NOON, "\x1b]0;title\x07red\x1b[31m"), NOON, "]0;titlered[31m"),
        (entry(NOON, [104, 105, 255]), NOON, "hi\ufffd"),
        (entry(NOON, None), NOON, "None"),
        (entry(NOON, [999]), None, entry(NOON, [999])),
        (entry(1e300, "x"), None, None),
        ('{"__REALTIME_TIMESTAMP": "9"', None, '{"__REALTIME_TIMESTAMP": "9"'),
        ("[" * 5000, None, "[" * 4096 + "…"),
        ("-- \x1b[2J --", None, "-- [2J --"),
    ],
)
def test_journal_lines(text, at_s, shown):
    line = parse_journal("a", text)
    assert line.at_s == at_s and line.text == (text if shown is None else shown)


@pytest.mark.parametrize(
    ("text", "at_s", "shown"),
    [
        ("2026-11-23 12:00:00,250 INFO serves", NOON + 0.25, "INFO serves"),
        ("Traceback (most recent call last):", None, "Traceback (most recent call last):"),
        ("2026-99-99 99:00:00,250 INFO x", None, "INFO x"),
        ("\x1b[2Jx", None, "[2Jx"),
    ],
)
def test_lines_of_a_log_file(text, at_s, shown):
    line = parse_file("a", text)
    assert (line.at_s, line.text) == (at_s, shown) and (at_s is not None or line.time == "")


def test_the_logs_of_agents_on_this_machine(tmp_path):
    lines = "".join(f"2026-11-23 12:00:0{i},000 INFO {i}\n" for i in range(5))
    (tmp_path / "a.log").write_text(lines + "Traceback\n  half")
    (tmp_path / "b.log").write_text("2026-11-23 12:00:03,500 INFO between\n")
    items = read(tmp_path, [board("a", ssh=False), board("b", ssh=False)], None, lines=4)
    texts = [i.text for i in items if isinstance(i, Line)]
    assert texts == ["INFO 3", "INFO between", "INFO 4", "Traceback", "  half"]


def test_a_log_file_that_is_not_there(tmp_path):
    (end,) = read(tmp_path, [board("a", ssh=False)], None)
    assert "no SSH in the cluster file" in end.error and str(tmp_path / "a.log") in end.error


def test_following_a_log_file_that_is_begun_anew(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("old\nlast\n")
    entries = read_logs([board("a", ssh=False)], lines=1, follow=True, log_dir=tmp_path)
    assert next(entries).text == "last"
    with open(path, "a") as f:
        f.write("whole\nha")
        f.flush()
        assert next(entries).text == "whole"
        f.write("lf\n")
    assert next(entries).text == "half"
    path.write_text("new\n")
    assert next(entries).text == "new"
    entries.close()
