"""The agents' logs: journals of boards over SSH, files of agents on this machine; sorted by time, or live."""

import contextlib
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from edgellm.controller.ssh import run_script
from edgellm.errors import BoardError
from edgellm.manager.cluster_file import Board
from edgellm.wire.printable import printable

_READ_S = 60.0
_PATIENCE_S = 1.0
_POLL_S = 0.25
_MAX_JOURNAL_BYTES = 256 << 20
_MAX_TAIL_BYTES = 16 << 20
_MAX_LINE = 4096  # characters
_WAITING_LINES = 10_000  # a board that logs faster than we print has to wait
_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ")  # as the agent logs it


@dataclass(frozen=True)
class Line:
    """One line of a board's log; `at_s` is the board's clock, None where the line has no time."""

    board: str
    at_s: float | None
    text: str

    @property
    def time(self) -> str:
        """Date and time in this machine's zone, "" without one."""
        if self.at_s is None:
            return ""
        return datetime.fromtimestamp(self.at_s).isoformat(" ", "milliseconds")


@dataclass(frozen=True)
class End:
    """A board's log has ended; `error` says why, if it shouldn't have."""

    board: str
    error: str | None


def read_logs(
    boards: list[Board], *, lines: int, follow: bool, log_dir: Path, run=run_script,
    tell: Callable[[str], None] = lambda text: None, waits: Callable[[list[str]], None] = lambda boards: None,
) -> Iterator[Line | End]:  # fmt: skip
    """Yield the last `lines` of each board's log, sorted by time; with `follow`, lines as they arrive, without end.

    Boards without SSH are agents of this machine, whose logs lie in `log_dir`. `waits` is told which are slow. When
    the iteration is left, the reading ends.
    """
    told: queue.Queue = queue.Queue(_WAITING_LINES)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                told.put(item, timeout=_POLL_S)
                return

    def work(board: Board) -> None:
        error = None
        try:
            if board.ssh is None:
                _read_file(board.name, log_dir / f"{board.name}.log", lines, follow, put, stop)
            else:
                _read_journal(board, lines, follow, put, stop, run, tell)
        except BoardError as e:
            error = str(e)
        put(End(board.name, error))

    for board in boards:
        threading.Thread(target=work, args=(board,), daemon=True).start()
    try:
        if follow:
            yield from _until_all_ended(boards, told, waits)
            return
        items = list(_until_all_ended(boards, told, waits))
        yield from _by_time([i for i in items if isinstance(i, Line)])
        yield from (i for i in items if isinstance(i, End))
    finally:
        stop.set()


def _until_all_ended(boards, told, waits) -> Iterator[Line | End]:
    left, patience_s = {b.name for b in boards}, _PATIENCE_S
    silent = set(left)
    while left:
        try:
            item = told.get(timeout=patience_s)
        except queue.Empty:
            if patience_s == _PATIENCE_S and silent & left:
                waits(sorted(silent & left))
                patience_s = 60.0
            continue
        silent.discard(item.board)
        if isinstance(item, End):
            left.discard(item.board)
        yield item


def _by_time(lines: list[Line]) -> list[Line]:
    """Return lines in order; a line without a time (of a traceback) stays behind the one before it."""
    keyed, last_s = [], {}
    for line in lines:
        if line.at_s is not None:
            last_s[line.board] = line.at_s
        keyed.append((last_s.get(line.board, 0.0), line))
    return [line for _, line in sorted(keyed, key=lambda pair: pair[0])]


def _read_journal(board: Board, lines: int, follow: bool, put, stop, run, tell) -> None:
    # The only words that aren't fixed are a number and a switch.
    script = (
        "exec journalctl --unit=edgellm-agent.service --output=json --output-fields=MESSAGE --no-pager --quiet "
        f"--lines={int(lines)}{' --follow' if follow else ''}"
    )
    count = 0

    def on_line(text: str) -> None:
        nonlocal count
        count += 1
        put(parse_journal(board.name, text))

    done = run(
        board.name, board.ssh, script, on_line, deadline_s=None if follow else _READ_S,
        max_bytes=None if follow else _MAX_JOURNAL_BYTES, stop=stop, tell=tell,
    )  # fmt: skip
    if stop.is_set():
        return
    if done.code != 0:
        said = printable(" ".join(done.stderr.split()), 300) or f"exit code {done.code}"
        raise BoardError(f"board {board.name}: its journal can't be read: {said}", board.name)
    if follow:
        raise BoardError(f"board {board.name}: its journal ended", board.name)
    if not count:
        tell(f"{board.name}: its journal has nothing from the agent that its SSH user may read")


def parse_journal(board: str, text: str) -> Line:
    """Parse a line of `journalctl --output=json`; anything else is taken as text."""
    try:
        entry = json.loads(text)
        at_s = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
        message = entry.get("MESSAGE")
        if isinstance(message, list):  # bytes that are no text
            message = bytes(message).decode(errors="replace")
        datetime.fromtimestamp(at_s)
        return Line(board, at_s, _TIME.sub("", printable(str(message), _MAX_LINE), count=1))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError, RecursionError):
        return Line(board, None, printable(text, _MAX_LINE))


def parse_file(board: str, text: str) -> Line:
    """Parse a line of an agent's log file."""
    match = _TIME.match(text)
    if match is None:
        return Line(board, None, printable(text, _MAX_LINE))
    try:
        at_s = datetime.fromisoformat(match[1]).timestamp() + int(match[2]) / 1e3
    except (ValueError, OverflowError):
        at_s = None
    return Line(board, at_s, printable(text[match.end() :], _MAX_LINE))


def _read_file(board: str, path: Path, lines: int, follow: bool, put, stop) -> None:
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - _MAX_TAIL_BYTES))
            *whole, rest = f.read(_MAX_TAIL_BYTES).split(b"\n")
            if rest and not follow:
                whole.append(rest)
                rest = b""
            for line in whole[-lines:] if lines else []:
                put(parse_file(board, line.decode(errors="replace")))
            while follow and not stop.is_set():
                data = f.read(1 << 16)
                if not data:
                    if os.fstat(f.fileno()).st_size < f.tell():
                        f.seek(0)  # started again
                    time.sleep(_POLL_S)
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    put(parse_file(board, line.decode(errors="replace")))
    except OSError as e:
        raise BoardError(
            f"board {board}: no SSH in the cluster file, and no log on this machine at {path}: {e.strerror or e}", board
        ) from None
