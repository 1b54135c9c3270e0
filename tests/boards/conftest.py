"""A lab for the session, a cluster of three boards on it, and what to show when a test fails.

EDGELLM_BOARDS=required: a machine that can't have boards fails these tests instead of skipping them.
EDGELLM_BOARDS_KEEP=1: leave boards and controller as they are at the end, and begin with those of the run before.
"""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.boards import harness
from tests.boards.harness import FIGURES, HOME, LAB, ROOT, Board, Controller, Process, figure, lab

KEEP = bool(os.environ.get("EDGELLM_BOARDS_KEEP"))
CACHE = HOME / "cache"
# A folder is tested in this order: what changes the cluster for good comes last.
ORDER = (
    "test_lab",
    "test_deploy",
    "test_python",
    "test_hostile",
    "test_identities",
    "test_server",
    "test_cache",
    "test_pairs",
    "test_loss",
    "test_models",
    "test_draft_model",
    "test_rebalance",
    "test_healing",
    "test_bad_inventory",
    "test_left_out",
    "test_odd_boards",
    "test_ram",
    "test_newcomer",
    "test_upgrade",
    "test_arm",
)

PROMPT = "How does a bicycle stay upright? Explain in detail."  # answers are longer than 200 tokens, and repeat little
MAX_TOKENS = 200


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Everything here is marked, so that none of it can run unasked or be left out where it is asked for."""
    ours = [i for i in items if Path(__file__).parent in i.path.parents]
    for item in ours:
        if not item.get_closest_marker("arm") and not item.get_closest_marker("boards_all"):
            item.add_marker("boards")
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
    ours.sort(key=lambda i: ORDER.index(i.path.stem))
    rest = iter(ours)
    items[:] = [next(rest) if i in ours else i for i in items]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and "lab_up" in item.fixturenames:
        if Controller.played:
            report.sections.append(("the last playbook", Controller.played[-1].text[-5000:]))
        for number in lab("list", check=False).split():
            try:
                report.sections.append((f"board{number}'s agent", Board(int(number)).journal()))
            except AssertionError as e:
                report.sections.append((f"board{number}'s agent", f"not to be reached: {e}"))
    return report


def pytest_terminal_summary(terminalreporter):
    if FIGURES:
        terminalreporter.section("figures")
        for what, value in FIGURES:
            terminalreporter.line(f"{value:>12}  {what}")
        (HOME / "figures.json").write_text(json.dumps(FIGURES, indent=1) + "\n")


@pytest.fixture(scope="session")
def lab_up():
    """Images are built, the network is there; afterwards nothing of the lab is left running."""
    said = subprocess.run([LAB, "check"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    if said.returncode:
        reason = "; ".join(said.stdout.split("\n")).strip("; ") or said.stderr
        if os.environ.get("EDGELLM_BOARDS") == "required":
            pytest.fail(f"boards can't be had here: {reason}")
        pytest.skip(f"boards can't be had here: {reason}")
    HOME.mkdir(parents=True, exist_ok=True)
    with open(HOME / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.fail(f"another run is using the boards: it holds {HOME}/lock")
        if not KEEP:
            lab("stop", timeout=120)
        began = time.monotonic()
        lab("build", timeout=1500)
        figure("images built, or found", time.monotonic() - began)
        lab("start")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends us wants our programs and boards ended too
        yield
        for process in list(Process.started):
            process.kill()
        if not KEEP:
            lab("stop", timeout=120)


def sources() -> str:
    """A hash of the code that computes."""
    rooms = [ROOT / "edgellm" / room for room in ("check", "checkpoint", "kernels", "model", "shards", "text")]
    files = sorted(p for room in rooms for p in room.rglob("*") if p.suffix in (".py", ".cpp", ".h"))
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


@pytest.fixture(scope="session")
def references():
    """What one process answers to PROMPT, MAX_TOKENS greedy tokens and their text: that of plain "transformers", and of
    one "native" section."""
    file, asked = CACHE / "reference.json", [PROMPT, MAX_TOKENS, sources()]
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("asked") != asked:
        command = [sys.executable, "-m", "tests.boards.reference", PROMPT, str(MAX_TOKENS)]
        env = {**os.environ, "XDG_CACHE_HOME": str(CACHE)}
        done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=400)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        known = {**json.loads(done.stdout), "asked": asked}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known))
    for answer in (known["transformers"], known["native"]):
        assert len(answer["tokens"]) == MAX_TOKENS and known["transformers"]["eos"] not in answer["tokens"]
    return known


@pytest.fixture(scope="session")
def reference(references):
    """What the boards have to answer to PROMPT."""
    return references["native"]


def new_controller(name: str) -> Controller:
    """A controller with an empty home; what it fetched and built in earlier runs is in the cache they share."""
    controller = Controller(HOME / "controllers" / name, CACHE)
    if not KEEP:
        controller.remove()
    return Controller(HOME / "controllers" / name, CACHE)


class Cluster:
    """Three boards of 4, 4 and 2 GB without any uplink, deployed from blank, every one of them in use."""

    def __init__(self):
        self.controller = new_controller("offline")
        self.boards = [Board(1), Board(2), Board(3)]
        self.blank_files: dict[Board, set[str]] = {}
        self.inventory()
        for board, memory in zip(self.boards, (4096, 4096, 2048), strict=True):
            if not board.is_up():
                board.up(memory=memory)
                if not board.ours():
                    self.blank_files[board] = board.files()

    def inventory(self, *more: Board, per_board: dict[Board, str] | None = None, **options) -> None:
        """The three boards, and `more`. Objective throughput: the model is cut for all of them. One thread each: they
        share two cores, and threads that wait for each other there would be measured, not the board."""
        usual = {"edgellm_objective": "throughput", "edgellm_threads": 1}
        self.controller.inventory([*self.boards, *more], per_board, **{**usual, **options})

    def slow(self, percent: str) -> None:
        """Give each agent so much of a core, "" for all: so that an answer lasts as long as what happens meanwhile."""
        for board in self.boards:
            board.root(f"systemctl set-property --runtime edgellm-agent.service CPUQuota={percent}")

    def heal(self) -> None:
        """As it was after its deploy, whatever a test left: boards, cables, agents, plan."""
        lab("start")
        self.inventory()
        for board in self.boards:
            if not board.is_up():
                board.up()
            board.heal()
            for pid in board.pids():
                os.kill(pid, signal.SIGCONT)
        if set(self.controller.plan()) != {b.name for b in self.boards} or not self.answers():
            self.controller.deploy().good()

    def answers(self) -> bool:
        return self.controller.edgellm("ask", "Hi", "--max-tokens", "2", check=False).wait(1) == 0


class Answers:
    """Asks again and again while its `with` block runs: at least once, and every answer is as it should be."""

    def __init__(self, controller: Controller, reference: dict):
        self._controller, self._reference, self._over = controller, reference, threading.Event()
        self.count, self._wrong = 0, None
        self._thread = threading.Thread(target=self._go, daemon=True)

    def _go(self) -> None:
        try:
            while not self._over.is_set():
                text = self._controller.asking(PROMPT, MAX_TOKENS).answer(120)
                assert text == self._reference["text"]
                self.count += 1
                self._over.wait(1)  # the boards have other work too
        except BaseException as e:  # told at the end, in the test's thread
            self._wrong = e

    def __enter__(self) -> "Answers":
        self._thread.start()
        return self

    def __exit__(self, kind, *exc) -> None:
        self._over.set()
        self._thread.join(150)
        if kind is None:
            assert self._wrong is None and not self._thread.is_alive() and self.count, self._wrong


@pytest.fixture(scope="session")
def blank(lab_up) -> Cluster:
    """The cluster before its deploy."""
    return Cluster()


@pytest.fixture(scope="session")
def deployed(blank) -> tuple[Cluster, harness.Played]:
    """The cluster after its first deploy, and what that said."""
    return blank, blank.controller.deploy(timeout=900)


@pytest.fixture
def cluster(deployed):
    """The deployed cluster, healthy; and healthy again afterwards, or the next test would be blamed."""
    cluster, played = deployed
    played.good()
    cluster.heal()
    yield cluster
    for process in list(Process.started):  # what a test that failed left running
        process.kill()


@pytest.fixture
def controller(cluster) -> Controller:
    return cluster.controller


@pytest.fixture
def extra(lab_up):
    """Makes further boards, blank and up; they are gone after the test."""
    made = []

    def make(number: int, **options) -> Board:
        board = Board(number)
        if board.is_up() or KEEP:
            board.destroy()
        made.append(board)
        return board.up(**options)

    yield make
    for board in made:
        board.destroy()
