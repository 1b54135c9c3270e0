"""What a playbook's run looks like: a page that renews itself, one line a step, or JSON lines."""

import json
import sys
import time

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from edgellm.console import note
from edgellm.controller.events import Row, Run, Step

_MARKS = {"running": ("●", "yellow"), "done": ("✓", "green"), "failed": ("✗", "red")}
_LEAST_WIDTH = 20


def page(run: Run, title: str, seconds: float, width: int) -> list[Text]:
    """Return the page as lines of at most `width` columns: a title, the controller, and each board."""
    rows = [row for row in (run.machine, *run.boards.values()) if row.steps or row.reason or row is not run.machine]
    names = max((len(row.name) for row in rows), default=0)
    lines = [Text.assemble((title, "bold"), f"  {clock(seconds)}")]
    lines += [_line(row, names, max(width, _LEAST_WIDTH)) for row in rows]
    for line in lines:
        line.truncate(max(width, _LEAST_WIDTH), overflow="ellipsis")
    return lines


def _line(row: Row, names: int, width: int) -> Text:
    head = Text.assemble((f"{row.name:<{names}}  ", "bold red" if row.reason else "bold"))
    now = _now(row)
    if row.reason:
        return head + Text("✗ left out", style="red")
    past = [step for step in row.steps if step is not row.now]
    for counted in range(len(past) + 1):  # the oldest give way to their number, as many as it takes
        failed = [step for step in past[:counted] if step.state == "failed"]
        count = [Text(f"✓ {counted - len(failed)}", style="green")] if counted > len(failed) else []
        line = head + Text("  ").join([*count, *map(_mark, [*failed[-1:], *past[counted:]]), *now])
        if line.cell_len <= width:
            break
    return line


def _mark(step: Step) -> Text:
    mark, colour = _MARKS[step.state]
    return Text.assemble((f"{mark} ", colour), (step.name, "" if step.changed or step.state != "done" else "dim"))


def _now(row: Row) -> list[Text]:
    """Return the step that runs and how far it is, as texts."""
    if row.now is None:
        return []
    found = [_mark(row.now)]
    if row.doing:
        found.append(Text(row.doing.rstrip(" …"), style="dim"))
    if row.total > 0:
        found.append(Text(amount(row.done, row.total), style="yellow"))
    return found


def amount(done: int, total: int) -> str:
    """Return how much of something is done: in MB for bytes, else as a share."""
    if total >= 1 << 20:
        return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
    return f"{100 * done // total} %"


def clock(seconds: float) -> str:
    """Return seconds as 0:07 or 12:34."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Page:
    """Shows a run that goes on, on stderr: as a page on a terminal, otherwise as one line a step."""

    def __init__(self, title: str):
        self.run, self._title, self._began_s = Run(), title, time.monotonic()
        self._live: Live | None = None
        self._shown = ""  # what the page says now
        self._steps: list[str] = []
        self._told: set[str] = set()

    def __enter__(self) -> "Page":
        console = Console(stderr=True, highlight=False)
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *exc) -> None:
        if self._live is not None:
            self.tick()
            self._live.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s

    def event(self, event: dict) -> None:
        """Take in an event of ansible-runner."""
        for row, step in self.run.take(event):
            self.began(row, step)
        for board, reason in self.run.left_out.items():
            if reason not in self._told:
                self._told.add(reason)
                self.out(board, reason)

    def began(self, row: Row, step: Step) -> None:
        """Show that a step began."""
        if self._live is None and step.name not in self._steps[-1:]:
            self._steps.append(step.name)
            who = row.name if row is self.run.machine else "boards"
            note(f"{self.seconds:5.0f} s  {who}: {step.name}")

    def out(self, board: str, reason: str) -> None:
        """Show that a board is left out."""
        if self._live is None:
            note(f"{self.seconds:5.0f} s  {board} is left out")

    def tick(self) -> None:
        """Renew the page."""
        if self._live is not None:
            lines = page(self.run, self._title, self.seconds, self._live.console.width)
            if (shown := "\n".join(line.plain for line in lines)) != self._shown:
                self._shown = shown
                self._live.update(Group(*lines), refresh=True)

    def end(self, rc: int) -> bool:
        """Show how the run ended, once the page stands still; return whether it went well."""
        errors = self.run.errors(rc)
        for line in [*self.run.notes, *([] if errors else self.run.sentences)]:
            note(line)
        for error in errors:
            note(f"edgellm: {error}")
        for line in self.run.ready:
            click.echo(line)
        return not errors


class Events(Page):
    """The same as JSON lines on stdout: one a step, and a summary as the last."""

    def __enter__(self) -> "Events":
        return self

    def began(self, row: Row, step: Step) -> None:
        board = None if row is self.run.machine else row.name
        self._print({"event": "step", "board": board, "step": step.name})

    def out(self, board: str, reason: str) -> None:
        self._print({"event": "left out", "board": board, "reason": reason})

    def end(self, rc: int) -> bool:
        errors = self.run.errors(rc)
        self._print({
            "event": "end", "ok": not errors, "changed": self.run.changed, "errors": errors,
            "left_out": self.run.left_out, "notes": [*self.run.notes, *([] if errors else self.run.sentences)],
            "ready": self.run.ready,
        })  # fmt: skip
        return not errors

    def _print(self, content: dict) -> None:
        click.echo(json.dumps({"seconds": round(self.seconds, 1), **content}))
        sys.stdout.flush()
