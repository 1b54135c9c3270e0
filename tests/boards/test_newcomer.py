"""`edgellm deploy` with boards: it does what the playbook does, and a newcomer gets from uvx to an answer."""

import datetime
import json
import os
import platform
import re
import shutil
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.boards.conftest import CACHE, new_controller
from tests.boards.harness import BIN, HOME, LAB, ROOT, Board, Controller, figure

PAGE = ROOT / "docs" / "first-hour.md"
BEGIN, END = "<!-- made by tests/boards/test_newcomer.py -->\n", "<!-- end -->\n"
UVX = "uvx --from 'edgellm[controller]' edgellm"
WIDTH = 100


def test_edgellm_deploy_is_the_playbook(cluster, controller):
    process = controller.edgellm("deploy", "-i", controller.inventory_path, "--json", timeout=200)
    end = json.loads(process.text.splitlines()[-1])
    held = {name: f"{name} holds layers {a}-{b - 1}" for name, (a, b) in controller.plan().items()}
    assert sorted(end["ready"][:-1]) == sorted(held.values()) and end["ready"][-1].startswith("ready: edgellm ask ")
    assert end["ok"] and not end["changed"] and end["errors"] == [] and end["left_out"] == {}
    figure("edgellm deploy: nothing to do", process.began and end["seconds"])


class Terminal:
    """What a terminal shows of the bytes that a program prints: lines, cursor up, carriage return, erasing."""

    def __init__(self):
        self.lines: list[list[str]] = [[]]
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        for control, letter, plain in re.findall(r"\x1b\[([0-9;?]*)([A-Za-z])|([^\x1b]|\x1b(?!\[))", text):
            if letter:
                self._control(letter, int(control) if control.isdigit() else 0)
            elif plain == "\n":
                self._row += 1
                self.lines += [[]] * (self._row + 1 - len(self.lines))
            elif plain == "\r":
                self._column = 0
            elif plain >= " ":
                line = self.lines[self._row] = list(self.lines[self._row])
                line += " " * (self._column + 1 - len(line))
                line[self._column] = plain
                self._column += 1

    def _control(self, letter: str, number: int) -> None:
        if letter == "A":
            self._row = max(0, self._row - max(1, number))
        elif letter == "B":
            self._row = min(len(self.lines) - 1, self._row + max(1, number))
        elif letter == "K":
            line = self.lines[self._row]
            self.lines[self._row] = [] if number == 2 else line[: self._column]
        elif letter == "J":
            self.lines[self._row] = self.lines[self._row][: self._column]
            del self.lines[self._row + 1 :]
        elif letter == "G":
            self._column = max(0, number - 1)

    @property
    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines).strip("\n")


def test_a_terminal_shows_what_was_printed_last():
    terminal = Terminal()
    terminal.feed("a\r\n\x1b[1mbc\x1b[0m\r\nd\r\n\x1b[2A\x1b[2KBC\r\n\x1b[?25lx\rX\x1b[K\r\nend")
    assert terminal.text == "a\nBC\nX\nend"


class Newcomer:
    """Types commands on a terminal in an empty home, with a folder of wheels as the package index's edgellm."""

    def __init__(self, controller: Controller, wheels: Path):
        self.controller, self.wheels, self.told = controller, wheels, []
        found = " ".join(filter(None, [str(wheels), os.environ.get("PIP_FIND_LINKS")]))
        home = controller.home
        self.env = {
            **{k: v for k, v in controller.env.items() if not k.startswith(("ANSIBLE_", "UV_CACHE", "PYTHONUNB"))},
            "XDG_CACHE_HOME": str(home / ".cache"), "PIP_FIND_LINKS": found, "UV_FIND_LINKS": str(wheels),
            "UV_PYTHON": sys.executable, "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "xterm-256color",
        }  # fmt: skip

    def types(self, command: str, timeout: float, shown: str | None = None) -> str:
        """Run a shell command; return what the terminal shows at its end."""
        import pexpect

        began, terminal = time.monotonic(), Terminal()
        child = pexpect.spawn(
            str(LAB), ["in", "env", "-C", str(self.controller.home), "sh", "-c", command], env=self.env,
            dimensions=(40, WIDTH), encoding="utf-8", codec_errors="replace", timeout=timeout, echo=False,
        )  # fmt: skip
        try:
            child.expect(pexpect.EOF)
            text = child.before
        finally:
            child.close(force=True)
        seconds = time.monotonic() - began
        terminal.feed(text)
        assert child.exitstatus == 0, f"{command}: {child.exitstatus}\n{terminal.text[-3000:]}"
        lines = [line for line in terminal.text.splitlines() if not re.match(r" *Download(ed|ing) ", line)]
        said = "\n".join(part for line in lines for part in textwrap.wrap(line, WIDTH) or [""])
        said = said.replace(str(self.wheels), "wheels").replace(str(self.controller.home), "~")
        self.told.append((shown or command, said, seconds))
        return said

    def transcript(self) -> str:
        parts = []
        for command, said, seconds in self.told:
            lines = [f"$ {command}", *said.splitlines(), *([f"# {seconds:.0f} s"] if seconds else [])]
            parts.append("".join(f"{line}\n" for line in lines if line))
        return "\n".join(parts)


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}"


@pytest.mark.boards_all
@pytest.mark.timeout(2400)
def test_from_uvx_to_the_first_answer(extra, monkeypatch):
    """Nothing of edgellm is installed or cached; wheels in a folder stand for the package index's."""
    from edgellm.controller import release

    wheels, sample = HOME / "wheels", (ROOT / "inventory.ini").read_text()
    shutil.rmtree(wheels, ignore_errors=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))  # has the compiler
    release.build(ROOT, wheels, [platform.machine()])
    shutil.rmtree(HOME / "controllers" / "newcomer", ignore_errors=True)  # whatever EDGELLM_BOARDS_KEEP kept
    controller = new_controller("newcomer")
    boards = [extra(7, memory=2048), extra(8, memory=2048)]
    controller.inventory(boards, edgellm_objective="throughput", edgellm_threads=1)
    written = controller.inventory_path.read_text()
    newcomer = Newcomer(controller, wheels)

    newcomer.types(f"{UVX} deploy --sample > inventory.ini", 300)
    assert controller.inventory_path.read_text() == sample
    names = "\n".join(re.findall(r"^board\d .*", written, re.M))
    newcomer.told.append(("nano inventory.ini", names, 0.0))
    controller.inventory_path.write_text(written)

    said = newcomer.types(f"{UVX} deploy", 1200)
    assert 'ready: edgellm ask "' in said and all(re.search(rf"^{b.name} holds layers", said, re.M) for b in boards)
    assert len(said.splitlines()) < 15
    answer = newcomer.types(f'{UVX} ask "Why is the sky blue?" --temperature 0 --max-tokens 60', 120)
    assert answer.startswith("The sky appears blue because")
    assert newcomer.types(f"{UVX} deploy", 300).count("✓") >= 2
    figure("newcomer: from uvx to ready, nothing cached", sum(s for *_, s in newcomer.told[:3]))

    text = newcomer.transcript()
    assert not re.search(rf"https?://|{re.escape(str(HOME))}|{re.escape(str(ROOT))}|/root|/tmp", text)
    date, busy = datetime.date.today().isoformat(), os.getloadavg()[2]
    how = (
        f"{date}, {machine()}, which the boards (namespaces with 2 GB each) share with the controller, and with other "
        f"work: a load of {busy:.0f} on average. The cache was empty. Lines about downloads are left out."
    )  # fmt: skip
    made = textwrap.fill(how, 120) + f"\n\n```text\n{text}```\n"
    (HOME / "first-hour.md").write_text(made)
    if os.environ.get("EDGELLM_WRITE_DOCS"):
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(head + BEGIN + made + END + rest.partition(END)[2])
    for board in boards:
        assert isinstance(board, Board) and board.pids()
