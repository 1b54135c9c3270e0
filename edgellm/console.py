"""Output for people: the standard streams, and notes and progress on stderr."""

import errno
import io
import json
import os
import sys
import time

from edgellm.config import PROGRESS_FILE
from edgellm.wire.printable import printable, without_controls

_REPORT_EVERY_S = 0.2


def prepare_streams() -> None:
    """Make stdout and stderr accept any text in any encoding, and make closed ones harmless.

    Characters that an encoding lacks become "?" on stdout, escapes on stderr. Writing to a closed stdout raises
    OSError; what goes to a closed stderr is lost.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # the next file or socket would take its number, and be written to by mistake
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def discard_stdout() -> None:
    """Discard what is still buffered for an unwritable stdout, so that the exit doesn't fail again."""
    try:
        fd = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)


class _Closed(io.TextIOBase):
    """A stdout that the caller has closed."""

    encoding = "utf-8"
    errors = "replace"

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "stdout is closed")


def note(text: str) -> None:
    """Print one line on stderr, without control characters that a board may have said; nothing if stderr is closed."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        pass


def for_terminal(text: str) -> str:
    """Return a part of an answer as stdout may have it: on a terminal without control characters, because a model, or
    who pretends to be one, may say anything."""
    return without_controls(text) if sys.stdout.isatty() else text


class Progress:
    """Progress of something that may take longer than two seconds: call it with (what, done, total).

    On a terminal it is a bar, which disappears at the end; otherwise one line whenever something begins. `total` 0
    means unknown. A program that started this one gets the numbers too, if it named a file in $EDGELLM_PROGRESS_FILE.
    """

    def __init__(self):
        self._bar = self._task = None
        self._what = ""
        self._file, self._reported_s = os.environ.get(PROGRESS_FILE), 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        self.end()

    def end(self) -> None:
        """Take the bar away; the next call begins anew."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._what = None, ""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        what = printable(what)
        if self._file:
            self._report(what, done, total)
        if not sys.stderr.isatty():
            if what != self._what:
                note(f"{what} …")
                self._what = what
            return
        if self._bar is None:
            self._start()
        if what != self._what:
            self._bar.reset(self._task, description=what, total=total or None)
            self._what = what
        self._bar.update(self._task, completed=done, total=total or None)

    def _report(self, what: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if what == self._what and done < total and now_s - self._reported_s < _REPORT_EVERY_S:
            return
        self._reported_s = now_s
        line = json.dumps({"board": "", "what": what, "done": done, "total": total}) + "\n"
        try:
            with open(self._file, "ab", buffering=0) as file:  # one write, so that lines of two programs don't mix
                file.write(line.encode())
        except OSError:
            self._file = None

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None)
        self._bar.start()
