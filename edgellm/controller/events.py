"""A playbook's events, in ansible-runner's form, as what each board is doing and how the run ended; without I/O."""

import re
from dataclasses import dataclass, field
from typing import Any

from edgellm.wire.printable import printable

MACHINE = "this machine"
# What a role does, in a word or two for the page, and whether the controller does it for all boards at once. A role's
# file of tasks may be a step of its own; None is no step.
STEPS: dict[str, tuple[str, bool] | None] = {
    "edgellm": ("inventory", True),
    "preflight": ("inspection", False),
    "preflight/packages": ("packages", False),
    "model": ("model", True),
    "wheelhouse": ("wheels", True),
    "cluster/fit": ("fit", True),
    "agent/compare": ("comparison", False),
    "python": ("Python", False),
    "python/fetch": ("Python", True),
    "base": ("base", False),
    "identity": ("certificate", False),
    "identity/step": ("certificates", True),
    "identity/revocations": ("revocation", False),
    "identity/restart": ("restart", False),
    "software": ("software", False),
    "shards": ("shards", False),
    "agent": ("agent", False),
    "cluster": ("cluster", True),
    "cluster/sections": ("plan", True),
    "cluster/gone": None,
    "cluster/remove": None,
    "cluster/removed": None,
    "cluster/forget": ("files", True),
    "retire": ("agent stopped", False),
    "server": ("server", False),
    "server/choose": None,
    "server/gone": ("server removed", False),
    "server/forget": ("certificates", True),
    "server/key": ("API key", True),
    "reset": ("removal", False),
}
_REASONS = ("preflight_reason", "reset_reason", "retire_reason", "server_reason")  # facts that leave a board out
_HELD = re.compile(r"ready: |serving: |\S+ holds ")  # how lines of the ending begin that tell what is there
_PUSHED = re.compile(r"(\S+): (\d{1,9}) of (\d{1,9}) MB")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MOST_LINES = 200  # of output that belongs to no task


@dataclass
class Step:
    """A step of a board or of the controller. `state` is running, done or failed."""

    name: str
    state: str = "running"
    changed: bool = False
    ran: bool = False  # some task of it was not skipped


@dataclass
class Row:
    """A board, or the controller: its steps so far, what it does now, and why it is left out."""

    name: str
    steps: list[Step] = field(default_factory=list)
    doing: str = ""
    done: int = 0
    total: int = 0
    reason: str = ""

    @property
    def now(self) -> Step | None:
        """The step that runs."""
        return self.steps[-1] if self.steps and self.steps[-1].state == "running" else None

    def begin(self, name: str) -> bool:
        """Note that a task of a step begins; return whether the step is new."""
        if self.now and self.now.name == name:
            return False
        self.end()
        self.steps.append(Step(name))
        return True

    def end(self, state: str = "done") -> None:
        """End the step that runs. One whose tasks were all skipped never was."""
        step = self.now
        if step is not None:
            step.state = state
            if not step.ran and state == "done":
                self.steps.pop()
        self.doing, self.done, self.total = "", 0, 0


class Run:
    """A playbook's run as its events tell it. `boards` are in the order in which they appeared, `notes` is what tasks
    said for people, and `output` what Ansible said outside of tasks. What edgellm_ending printed after the recap is
    divided: `ready` says what each board holds and how to ask, `sentences` who is left out and why."""

    def __init__(self) -> None:
        self.machine = Row(MACHINE)
        self.boards: dict[str, Row] = {}
        self.ready: list[str] = []
        self.notes: list[str] = []
        self.sentences: list[str] = []
        self.output: list[str] = []
        self.changed = False
        self._failures: dict[str, str] = {}  # host → what its last failed task said
        self._ended: dict[str, Any] | None = None

    def take(self, event: dict[str, Any]) -> list[tuple[Row, Step]]:
        """Take in an event; return the steps that it began."""
        kind, data = str(event.get("event", "")), event.get("event_data") or {}
        if kind == "runner_on_start":
            return self._start(data)
        if kind in ("playbook_on_play_start", "playbook_on_stats"):
            for row in (self.machine, *self.boards.values()):
                row.end()
        if kind == "playbook_on_stats":
            self._ended = data
            self.changed = any((data.get("changed") or {}).values())
        elif kind == "runner_on_ok":
            self._ok(data)
        elif kind == "runner_on_failed" and not data.get("ignore_errors"):
            self._failed(data)
        elif kind in ("error", "verbose", "warning", "system_warning"):
            lines = _lines(event.get("stdout"))
            if self._ended is not None and kind == "verbose":
                self.ready += [line for line in lines if _HELD.match(line)]
                self.sentences += [line for line in lines if line and not _HELD.match(line)]
            else:
                self.output = [*self.output, *(line for line in lines if not self._pushed(line))][-_MOST_LINES:]
        return []

    def progress(self, told: dict[str, Any]) -> None:
        """Take in a report of progress: {"board": name or "", "what": text, "done": n, "total": n}."""
        row = self.boards.get(str(told.get("board") or "")) if told.get("board") else self.machine
        if row is not None:
            row.doing = " ".join(_lines(told.get("what")))
            row.done, row.total = (n if isinstance(n := told.get(key), int) else 0 for key in ("done", "total"))

    @property
    def left_out(self) -> dict[str, str]:
        """Why each board that was left out is, by board."""
        found = {name: row.reason for name, row in self.boards.items() if row.reason}
        for name in (self._ended or {}).get("dark") or {}:
            if name in self.boards and name not in found:
                found[name] = f"board {name} was lost. Check its power and cable, then run this again."
        return found

    def errors(self, rc: int) -> list[str]:
        """Return one sentence for each reason why the run failed with exit code `rc`; [] if it is 0."""
        if rc == 0:
            return []
        if self.sentences:
            return self.sentences
        found = list(self.left_out.values())
        failed = (self._ended or {}).get("failures") or self._failures
        for host in failed:
            # A playbook may repeat reasons, or put several into one line.
            for line in _lines(self._failures.get(host)):
                if line and not any(line in known for known in found):
                    found.append(line)
        if not found:
            said = " ".join(line.strip() for line in self.output if line.strip())
            errors = re.findall(r"\[?ERROR\]?!?:? *(.+?)(?= *\[?(?:ERROR|WARNING)\]?:|$)", said)
            why = errors[-1][:600].rstrip(". ") if errors else "it said nothing"
            found.append(f"ansible-playbook ended with exit code {rc}: {why}. Run this again with -v to see all of it.")
        return found

    def _pushed(self, line: str) -> bool:
        """Take in how far a push is, as edgellm_push says it; return whether the line says that."""
        said = _PUSHED.fullmatch(line)
        if said and said[1] in self.boards:
            row = self.boards[said[1]]
            row.done, row.total = int(said[2]) * 10**6, int(said[3]) * 10**6
        return bool(said)

    def _row(self, host: str) -> Row | None:
        if host in ("", "localhost"):
            return None
        return self.boards.setdefault(host, Row(host))

    def _start(self, data: dict[str, Any]) -> list[tuple[Row, Step]]:
        step, row = step_of(data), self._row(str(data.get("host", "")))
        name, here = step or ("", False)
        if self.machine.now and not (here and self.machine.now.name == name):
            self.machine.end()
        if row is not None and row.now and (here or row.now.name != name):
            row.end()
        target = self.machine if here else row
        if step is None or target is None or not target.begin(name):
            return []
        return [(target, target.steps[-1])]

    def _step(self, data: dict[str, Any]) -> Step | None:
        step = step_of(data)
        row = self.machine if step and step[1] else self.boards.get(str(data.get("host", "")))
        return row.now if step and row else None

    def _ok(self, data: dict[str, Any]) -> None:
        result = data.get("res") or {}
        if step := self._step(data):
            step.ran = True
            step.changed |= bool(result.get("changed"))
            if result.get("problem") and step is self.machine.now:  # edgellm_controller never fails a task
                self.machine.end("failed")
        row = self.boards.get(str(data.get("host", "")))
        facts = result.get("ansible_facts")
        if row and isinstance(facts, dict):
            for name in _REASONS:
                if name in facts:
                    row.reason = " ".join(_lines(facts[name]))
                    if row.reason:
                        row.end("failed")
        if str(data.get("resolved_action") or data.get("task_action", "")).split(".")[-1] == "debug" and row:
            self._say(row, result)

    def _failed(self, data: dict[str, Any]) -> None:
        host, result = str(data.get("host", "")), data.get("res") or {}
        step = step_of(data)
        row = self.machine if step and step[1] else self.boards.get(host)
        if row and row.now:
            row.end("failed")
        texts = [result.get("msg"), *(i.get("msg") for i in result.get("results") or [] if i.get("failed"))]
        told = re.findall(r"^edgellm: (.+)$", str(result.get("stderr") or ""), re.M)
        self._failures[host] = str(told[-1] if told else next((t for t in texts if t), "") or "it gave no reason")

    def _say(self, row: Row, result: dict[str, Any]) -> None:
        """Take in what a debug task prints: a note, or what a board begins to do, which ends in "…"."""
        results = result.get("results")
        said = [i.get("msg") for i in results if not i.get("skipped")] if results else [result.get("msg")]
        lines = [line for line in _lines(said) if line]
        if len(lines) == 1 and lines[0].endswith("…"):
            row.doing = lines[0].removeprefix(f"{row.name}: ")
        else:
            self.notes += [line for line in lines if line not in self.notes and not line.endswith("…")]


def step_of(data: dict[str, Any]) -> tuple[str, bool] | None:
    """Return (a step's name, whether the controller does it) for the task of an event, or None."""
    if str(data.get("task") or "").startswith("Validating arguments against arg spec"):
        return None  # Ansible's own, before the tasks of a role
    role = str(data.get("role") or "").split(".")[-1]
    file = re.search(r"/tasks/(\w+)\.yml", str(data.get("task_path") or ""))
    key = f"{role}/{file[1]}" if file and f"{role}/{file[1]}" in STEPS else role
    return STEPS.get(key)


def _lines(text: Any) -> list[str]:
    """Return the lines of a text, or of a list of texts, without what a terminal would obey: a board may say it."""
    if isinstance(text, list):
        return [line for part in text for line in _lines(part)]
    lines = _COLOURS.sub("", str(text or "")).splitlines()
    return [printable(line).strip() for line in lines]
