"""What a person sees besides the answer: notes and progress, on stderr."""

import sys


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Progress of something that may take longer than two seconds: call it with (what, done, total).

    On a terminal a bar that is gone at the end; otherwise a line when something begins. `total` 0 means unknown.
    """

    def __init__(self):
        self._bar = self._task = None
        self._what = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
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
