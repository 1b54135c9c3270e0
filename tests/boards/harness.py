"""Boards and their controller as a person has them: power, cable, ssh; playbooks, commands. No wait without an end."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

ROOT = Path(__file__).parents[2]
LAB = Path(__file__).with_name("lab")
HOME = Path(os.environ.get("EDGELLM_BOARDS_HOME", "/var/tmp/edgellm-boards"))
NUMBER = int(os.environ.get("EDGELLM_BOARDS_LAB", "0"))  # of this lab, where several stand side by side
SUBNET, SUBNET6 = f"10.78.{2 * NUMBER}", f"fd00:78:{NUMBER + 1}:"
BIN = Path(sys.prefix) / "bin"
PORT = 7710

_BY_ITSELF = re.compile(
    r"/var/log/|/var/lib/systemd/|/var/lib/apt/|/var/cache/|/var/lib/private|/var/tmp/|/home/edge/\.ansible|/root/\.ansible|/etc/\w+-$"
)

FIGURES: list[tuple[str, str]] = []  # what was measured, for the end of the run


def figure(what: str, value: float, unit: str = "s") -> None:
    """Note a measured value for the summary at the end of the run."""
    FIGURES.append((what, f"{value:.1f} {unit}"))


def lab(*args: object, timeout: float = 60, check: bool = True) -> str:
    """Run one of the lab's verbs; its stdout. AssertionError with all it said if it fails or takes too long."""
    process = Process([LAB, *map(str, args)], os.environ.copy())
    rc = process.wait(timeout)
    assert rc == 0 or not check, f"lab {' '.join(map(str, args))}: exit {rc}\n{process.text}{process.errors}"
    return process.text


class Process:
    """A program in a session of its own; what it prints is kept with the time it came."""

    started: ClassVar[weakref.WeakSet] = weakref.WeakSet()  # all that may still run

    def __init__(self, command: list, env: dict[str, str], stdin: bool = False, together: bool = False):
        self.command = [str(c) for c in command]
        self.chunks: list[tuple[float, bytes]] = []  # stdout: monotonic time, bytes of one read
        self._errors: list[tuple[float, bytes]] = []
        self._changed = threading.Condition()
        self.began = time.monotonic()
        self.started.add(self)
        self._popen = subprocess.Popen(
            self.command, cwd=ROOT, env=env, start_new_session=True,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT if together else subprocess.PIPE,
        )  # fmt: skip
        streams = [(self._popen.stdout, self.chunks)] + ([] if together else [(self._popen.stderr, self._errors)])
        self._threads = [threading.Thread(target=self._read, args=s, daemon=True) for s in streams]
        for thread in self._threads:
            thread.start()

    def _read(self, stream, into):
        with stream:
            while data := os.read(stream.fileno(), 65536):
                with self._changed:
                    into.append((time.monotonic(), data))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def text(self) -> str:
        return b"".join(d for _, d in self.chunks).decode(errors="replace")

    @property
    def errors(self) -> str:
        return b"".join(d for _, d in self._errors).decode(errors="replace")

    def running(self) -> bool:
        return self._popen.poll() is None

    def until(self, condition, timeout: float, what: str) -> None:
        """Wait until condition() is true; it is tried whenever something was printed, and twice a second."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                assert self.running(), f"{self} ended with {self._popen.returncode} before {what}\n{self._tail()}"
                assert time.monotonic() < deadline, f"{self}: no {what} in {timeout:g} s\n{self._tail()}"
                self._changed.wait(0.5)

    def wait(self, timeout: float) -> int:
        """Its exit code; after `timeout` seconds it is killed and that is an AssertionError."""
        try:
            rc = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self} was not done after {timeout:g} s\n{self._tail()}") from None
        for thread in self._threads:
            thread.join(5)
        return rc

    def end_input(self) -> None:
        """Close its stdin."""
        self._popen.stdin.close()

    def interrupt(self) -> None:
        """Ctrl-C: SIGINT to everything it started."""
        os.killpg(self._popen.pid, signal.SIGINT)

    def kill(self) -> None:
        """End it and all that it started, in whatever session by now (Ansible's workers have their own)."""
        if self.running():
            for process in psutil.Process(self._popen.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._popen.kill()
            self._popen.wait(10)

    def _tail(self) -> str:
        return (self.text + self.errors)[-4000:]

    def __str__(self):
        return " ".join(Path(c).name if "/" in c and " " not in c else c for c in self.command)[:200]


class Asking(Process):
    """`edgellm ask` while it answers. A read is a token, or a few if this process was slow to read."""

    def after(self, tokens: int, timeout: float = 60) -> float:
        """Wait until so many pieces of the answer have come; the time by then."""
        self.until(lambda: len(self.chunks) >= tokens, timeout, f"{tokens} tokens")
        return time.monotonic()

    def answer(self, timeout: float) -> str:
        """The whole answer's text, once it has ended well."""
        rc = self.wait(timeout)
        assert rc == 0, f"{self}: exit {rc} after {len(self.text)} characters: {self.errors}"
        return self.text.removesuffix("\n")

    def longest_gap(self) -> float:
        """The longest time between two pieces of the answer, in seconds."""
        times = [t for t, _ in self.chunks]
        return max((b - a for a, b in zip(times, times[1:], strict=False)), default=0.0)


class Board:
    """Board N of the lab."""

    def __init__(self, number: int):
        self.number, self.name, self.host = number, f"board{number}", f"{SUBNET}.{10 + number}"
        self.host6 = f"{SUBNET6}:{10 + number}"

    def up(
        self, *, memory: int | None = None, image: str | None = None, disk: int | None = None, share: tuple = ()
    ) -> "Board":
        """Boot it (`memory` and `disk` in MB, `share` folders of this machine) and wait for ssh; without options, with
        those it had."""
        options = [("--memory", memory), ("--image", image), ("--disk", disk), *(("--share", path) for path in share)]
        lab("up", self.number, *(x for k, v in options if v is not None for x in (k, v)), timeout=300)
        return self

    def image(self) -> str:
        """The name of its image."""
        return re.search(r"image=(\w+)", (HOME / f"boards/{self.number}/options").read_text())[1]

    def is_up(self) -> bool:
        return str(self.number) in lab("list").split()

    def kill(self) -> None:
        """Power loss."""
        lab("kill", self.number)

    def cut(self) -> None:
        lab("cut", self.number)

    def heal(self) -> None:
        """Plug its cable, and take its firewall down."""
        lab("heal", self.number)
        lab("unblock", self.number)

    def block(self, who: "Board | None", how: str = "drop") -> None:
        """Keep a board (None: the controller) from its agent's port, by packets that are dropped or rejected."""
        lab("block", who.number if who else 0, self.number, how)

    def unblock(self) -> None:
        lab("unblock", self.number)

    def reboot(self) -> None:
        lab("reboot", self.number, timeout=200)

    def destroy(self) -> None:
        lab("destroy", self.number)

    def uplink(self, on: bool) -> None:
        lab("uplink", self.number, "on" if on else "off")

    def memory(self, megabytes: int) -> None:
        lab("memory", self.number, megabytes)

    def clock(self, seconds: int) -> None:
        lab("clock", self.number, seconds)

    def readonly(self) -> None:
        lab("readonly", self.number)

    def ssh(self, command: str, *, check: bool = True, timeout: float = 60) -> str:
        """Run it as the user that Ansible comes as."""
        return lab("ssh", self.number, command, check=check, timeout=timeout)

    def root(self, command: str, *, check: bool = True, timeout: float = 60) -> str:
        """Run it as root."""
        return self.ssh(f"sudo bash -c {shlex.quote(command)}", check=check, timeout=timeout)

    def fill(self, free_mb: int) -> None:
        """Leave so much of its disk free; undone by removing /home/edge/full."""
        free = int(self.ssh("df --output=avail -B1M / | tail -1"))
        self.ssh(f"fallocate -l {max(1, free - free_mb)}M /home/edge/full")

    def flip_byte(self, path: str) -> None:
        """Change one byte in the middle of a file, as a bad card does: same size, same times."""
        code = (
            "import os, sys; path = sys.argv[1]; was = os.stat(path); middle = was.st_size // 2; f = open(path, 'r+b');"
            "f.seek(middle); byte = f.read(1)[0]; f.seek(middle); f.write(bytes([byte ^ 255])); f.close();"
            "os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns)); os.sync()"
        )
        self.root(f'python3 -c "{code}" {shlex.quote(path)}')

    def files(self) -> set[str]:
        """Every file on its disk, but what a board writes by itself or when somebody logs in or asks apt."""
        return {f for f in self.root("find / -xdev").splitlines() if not _BY_ITSELF.match(f)}

    def ours(self) -> set[str]:
        """What of edgellm is on its disk."""
        return {f for f in self.files() if "edgellm" in f and "/edgellm-.service.d" not in f}

    def weighs(self) -> dict[str, float]:
        """MB on its disk: "shards", edgellm's "python", and "software" (all else that deploy put there). "pushed": MB
        that came over its cable since it was made, less the shards."""
        du = "du -cBK --apparent-size"
        sizes = self.root(
            f"{du} -s /var/lib/edgellm/models /opt/edgellm/python-*/ 2>/dev/null | grep -v total; "
            f"{du} -s --exclude=models --exclude='python-*' /opt/edgellm /var/lib/edgellm /etc/edgellm | tail -n 1"
        )
        found = {path: int(size) * 1024 / 1e6 for size, path in re.findall(r"^(\d+)K\s+(\S+)$", sizes, re.M)}
        shards = found["/var/lib/edgellm/models"]
        (link,) = json.loads(lab("in", "ip", "-s", "-j", "link", "show", f"v{self.number}"))
        return {
            "shards": shards, "software": found["total"], "python": sum(v for p, v in found.items() if "/python-" in p),
            "pushed": link["stats64"]["tx"]["bytes"] / 1e6 - shards,
        }  # fmt: skip

    def pids(self, unit: str = "edgellm-agent.service") -> list[int]:
        """The unit's processes, as this machine counts them; empty if it doesn't run."""
        return sorted(int(p) for p in lab("pids", self.number, unit).split())

    def signal_agent(self, number: int) -> None:
        pids = self.pids()
        assert pids, f"no agent runs on {self.name}\n{self.journal()}"
        for pid in pids:
            os.kill(pid, number)

    def agent_bytes(self) -> int:
        """Resident memory of the agent, shards it has mapped included."""
        status = [Path(f"/proc/{pid}/status").read_text() for pid in self.pids()]
        total = sum(int(re.search(r"VmRSS:\s+(\d+)", s)[1]) for s in status) * 1024
        assert total, f"no agent runs on {self}"
        return total

    def agent_started(self) -> str:
        """When systemd last started the agent: another value means a restart. Empty if it doesn't run."""
        return lab("ssh", self.number, "systemctl show -P ExecMainStartTimestampMonotonic edgellm-agent").strip()

    def journal(self, lines: int = 40) -> str:
        return self.root(f"journalctl --no-pager -o short-monotonic -u edgellm-agent -n {lines}", check=False)

    def __repr__(self):
        return self.name


@dataclass(frozen=True)
class Played:
    """What a playbook did: exit code, all it printed, seconds, and per host the counts of its recap."""

    rc: int
    text: str
    seconds: float

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        rows = re.findall(r"^(\S+)\s+: (ok=.*)$", self.text.rpartition("PLAY RECAP")[2], re.M)
        return {host: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in rows}

    def changed(self, *boards: Board) -> dict[str, int]:
        """Changed tasks by board."""
        return {b.name: self.recap[b.name]["changed"] for b in boards}

    def touched(self, *boards: Board) -> dict[str, int]:
        """Changed tasks by board, without those that the controller did in its name (run_once, delegated)."""
        return {b.name: len(re.findall(rf"^changed: \[{b.name}\](?! ->)", self.text, re.M)) for b in boards}

    def good(self) -> "Played":
        """Itself, if it succeeded everywhere."""
        errors = " … ".join(re.findall(r"^\[ERROR\]: (.*)", self.text, re.M))
        assert self.rc == 0, f"exit {self.rc} after {self.seconds:.0f} s: {errors[-1500:]}"
        for host, counts in self.recap.items():
            assert counts["unreachable"] == counts["failed"] == 0, (host, counts)
        return self


class Controller:
    """The machine that deploys and asks: on the boards' network, with a home of its own."""

    played: ClassVar[list[Played]] = []  # for reports: of every controller, the newest last

    def __init__(self, folder: Path, cache: Path):
        self.home, self.inventory_path = folder, folder / "inventory.ini"
        self.config = folder / ".config/edgellm"
        (folder / ".ssh").mkdir(parents=True, exist_ok=True)
        foreign = ("ANSIBLE_", "XDG_", "EDGELLM_", "PYTEST_")
        keep = {k: v for k, v in os.environ.items() if k.startswith("EDGELLM_BOARDS") or not k.startswith(foreign)}
        self.env = {
            **keep, "HOME": str(folder), "XDG_CACHE_HOME": str(cache), "XDG_CONFIG_HOME": str(folder / ".config"),
            "LC_ALL": "C.UTF-8",
            "PYTHONUNBUFFERED": "1", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", "TERM": "dumb",
        }  # fmt: skip
        # Where wheels come from is a matter of this machine, not of the controller's home.
        for pip in (Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf"):
            if pip.exists():
                self.env.setdefault("PIP_CONFIG_FILE", str(pip))
        keys = [p.read_text().split()[:2] for p in sorted((HOME / "images").glob("*/*/etc/ssh/ssh_host_*_key.pub"))]
        hosts = [place for n in range(1, 30) for place in (Board(n).host, Board(n).host6, f"[{Board(n).host}]:2222")]
        (folder / ".ssh/known_hosts").write_text("".join(f"{h} {k[0]} {k[1]}\n" for h in hosts for k in keys))

    def inventory(self, boards: list[Board], per_board: dict[Board, str] | None = None, **variables) -> None:
        """Write inventory.ini: these boards, these variables for all, `per_board` at the end of a board's line."""
        lines = ["[boards]"]
        lines += [f"{b.name} ansible_host={b.host} {(per_board or {}).get(b, '')}".strip() for b in boards]
        common = f"-o UserKnownHostsFile={self.home}/.ssh/known_hosts -o StrictHostKeyChecking=yes -F none"
        lines += ["", "[boards:vars]", "ansible_user=edge", f"ansible_ssh_private_key_file={HOME}/key"]
        lines += [f"ansible_ssh_common_args='{common}'"] + [f"{k}={v}" for k, v in variables.items()]
        self.inventory_path.write_text("\n".join(lines) + "\n")

    def start(self, program: str, *args: object, kind: type = Process, root: Path = ROOT, **options):
        """Start a program of the project's venv in `root` on the boards' network."""
        return kind([LAB, "in", "env", "-C", root, BIN / program, *args], self.env, **options)

    def playing(self, playbook: str, *args: str, root: Path = ROOT) -> Process:
        """A playbook, started."""
        options = ["-i", self.inventory_path, "--diff", *args]
        return self.start("ansible-playbook", playbook, *options, root=root, together=True)

    def ansible(self, playbook: str, *args: str, root: Path = ROOT, timeout: float = 600) -> Played:
        """Run a playbook to its end, always with --diff: no private key may ever stand in what is printed."""
        return self.finish(self.playing(playbook, *args, root=root), timeout)

    def finish(self, process: Process, timeout: float = 600) -> Played:
        """Wait for a playbook that was started."""
        rc = process.wait(timeout)
        played = Played(rc, process.text, time.monotonic() - process.began)
        self.played.append(played)
        assert "PRIVATE KEY" not in played.text
        return played

    def deploy(self, *args: str, timeout: float = 600) -> Played:
        return self.ansible("deploy.yml", *args, timeout=timeout)

    def edgellm(self, *args: object, timeout: float = 120, check: bool = True) -> Process:
        """Run `edgellm ARGS` to its end."""
        process = self.start("edgellm", *args)
        rc = process.wait(timeout)
        assert rc == 0 or not check, f"{process}: exit {rc}\n{process.text[-2000:]}{process.errors[-2000:]}"
        return process

    def ask(self, prompt: str, max_tokens: int, timeout: float = 120) -> dict:
        """The greedy answer to `edgellm ask --json`."""
        greedy = ("--temperature", 0, "--max-tokens", max_tokens)
        return json.loads(self.edgellm("ask", prompt, *greedy, "--json", timeout=timeout).text)

    def asking(self, prompt: str, max_tokens: int) -> Asking:
        """`edgellm ask` in the background."""
        return self.start("edgellm", "ask", prompt, "--temperature", 0, "--max-tokens", max_tokens, "-v", kind=Asking)

    def python(self, *args: object, timeout: float = 120) -> Process:
        """Run this Python with `args` on the boards' network."""
        process = self.start("python", *args)
        rc = process.wait(timeout)
        assert rc == 0, f"{process}: exit {rc}\n{process.text[-2000:]}{process.errors[-4000:]}"
        return process

    def cluster(self) -> dict:
        """The cluster file's content."""
        return json.loads((self.config / "cluster.json").read_text())

    def plan(self) -> dict[str, tuple[int, int]]:
        """Layers [start, end) by board, from the cluster file."""
        return {s["board"]: (s["start"], s["end"]) for s in self.cluster()["plan"]["sections"]}

    def epoch(self) -> int:
        return self.cluster()["plan"]["epoch"]

    def status(self) -> dict:
        """What `edgellm status --json` says; whether all is well it also tells by its exit code, which is ignored."""
        return json.loads(self.edgellm("status", "--json", check=False).text)

    def row(self, board: Board) -> dict:
        """What `edgellm status --json` says of a board."""
        return next(row for row in self.status()["boards"] if row["board"] == board.name)

    def remove(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)


def assert_at_rest(board: Board) -> None:
    """A board that is out of the cluster runs no agent, nor will it after a reboot."""
    said = board.ssh("systemctl is-active edgellm-agent; systemctl is-enabled edgellm-agent", check=False)
    assert said.split() == ["inactive", "disabled"]


def wait_for(condition, timeout: float, what: str):
    """The first true value of condition(), asked every half second."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} in {timeout:g} s"
        time.sleep(0.5)
    return value
