"""Grammars that answers must match, compiled and followed by llguidance in a process of its own."""

import json
import signal
import subprocess
import sys
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from edgellm.errors import ConstraintError, ModelError
from edgellm.structure import Constraint

CPU_S = 3.0  # for one request, computing
MEMORY_BYTES = 128 << 20  # the most for all grammars, beside the tokenizer
_WALL_S = 30.0  # for an answer, however busy the machine is
_WORKER = Path(__file__).with_name("grammar_worker.py")
_NAMES = {"json": "JSON", "json_schema": "the JSON schema", "regex": "the regular expression", "lark": "the grammar"}
_MAX_REASON = 200  # letters
_MOST_CHECKED = 64


class WorkerEnded(ModelError):
    """The process ended while it had this request, or one before it. `culprit` says that it was this one."""

    def __init__(self, culprit: bool):
        super().__init__("the process that follows grammars has ended")
        self.culprit = culprit


class Reply(NamedTuple):
    """What the process answers: `fields` of JSON, and a mask or nothing."""

    fields: dict[str, Any]
    mask: bytes


class GrammarProcess:
    """The process: `start`, `send`, `close`, again and again. For any thread; only `forget` and `close` never wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self.memory_bytes = MEMORY_BYTES  # of the last process that was started
        self._forgotten: deque[int] = deque()

    @property
    def running(self) -> object:
        """What stands for the process that runs, None without one: another one knows nothing of what this one was
        told."""
        running = self._running
        return None if running is None or running.dead else running

    def start(self, memory_bytes: int = MEMORY_BYTES) -> object:
        """Start the process unless it runs, with `memory_bytes` for all grammars; return what `running` does. Raises
        OSError if that can't be."""
        with self._lock:
            if self.running is None:
                self._running = _Running(memory_bytes)
                self.memory_bytes = memory_bytes
                self._end = weakref.finalize(self, self._running.kill)
            return self._running

    def send(self, request: dict[str, Any]) -> "Future[Reply]":
        """Send a request. Its future raises WorkerEnded if no process runs, or it ends before it has answered."""
        with self._lock:
            running = self._running
            if running is None:
                return _failed()
            forget = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
            return running.send({**request, "forget": forget} if forget else request)

    def forget(self, number: int) -> None:
        """Have the process forget the answer of this number, with the next request."""
        self._forgotten.append(number)

    def close(self) -> None:
        """End the process, if there is one."""
        running, self._running = self._running, None
        if running is not None:
            self._end()


class _Running:
    """A process, and the thread that reads its answers."""

    def __init__(self, memory_bytes: int) -> None:
        self.dead = False
        self._due: deque[Future[Reply]] = deque()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(CPU_S), str(memory_bytes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
        )  # fmt: skip
        self.kill = self._process.kill
        threading.Thread(target=self._read, name="grammars", daemon=True).start()

    def send(self, request: dict[str, Any]) -> "Future[Reply]":
        """Send a request, one at a time."""
        with self._lock:
            if self.dead:
                return _failed()
            future: Future[Reply] = Future()
            self._due.append(future)
        assert self._process.stdin is not None
        left = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while left:
                left = left[self._process.stdin.write(left) :]
        except (OSError, ValueError):  # it has ended, which its reader notices
            pass
        return future

    def _read(self) -> None:
        """Hand each answer to who waits for it, until the process ends. Runs in a thread."""
        assert self._process.stdout is not None and self._process.stdin is not None
        with open(self._process.stdout.fileno(), "rb", closefd=False) as stream:
            while line := stream.readline():
                fields = json.loads(line)
                mask = stream.read(fields.get("mask_bytes", 0))
                if len(mask) < fields.get("mask_bytes", 0):
                    break
                self._due.popleft().set_result(Reply(fields, mask))
        self._process.kill()  # for one that has closed its stdout; a kill from here or elsewhere is nobody's fault
        to_blame = self._process.wait() != -signal.SIGKILL
        with self._lock:
            self.dead = True
        for number, future in enumerate(self._due):
            future.set_exception(WorkerEnded(culprit=to_blame and number == 0))
        self._process.stdout.close()
        self._process.stdin.close()


def _failed() -> "Future[Reply]":
    future: Future[Reply] = Future()
    future.set_exception(WorkerEnded(culprit=False))
    return future


def refusal(constraint: Constraint, reason: str) -> ConstraintError:
    """Return the error that says why a constraint can't be compiled."""
    lines = [line.strip() for line in reason.split("\n") if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines[:1] or ["no reason"]
    text = "".join(c if c.isprintable() else " " for c in told[0])[:_MAX_REASON].rstrip(". ")
    return ConstraintError(f"{_NAMES[constraint.kind]} can't be compiled: {text}. Simplify it.")


def too_much(constraint: Constraint, memory_bytes: int = MEMORY_BYTES) -> ConstraintError:
    """Return the error of a constraint that ended the process, which had `memory_bytes` for grammars."""
    reason = f"it takes more than {CPU_S:g} s or {memory_bytes >> 20} MB"
    return refusal(constraint, reason)


_checking = GrammarProcess()
_one_at_a_time = threading.Lock()
_checked: dict[Constraint, ConstraintError | None] = {}  # the latest ones


def check(constraint: Constraint) -> None:
    """Raise ConstraintError for one that can't be compiled, as far as that can be told without a model's tokenizer.

    It takes milliseconds, after the first time, and up to some seconds for a hostile constraint; not for an event loop.
    """
    with _one_at_a_time:
        if constraint not in _checked:
            if len(_checked) >= _MOST_CHECKED:
                _checked.pop(next(iter(_checked)))
            _checked[constraint] = _why_not(constraint)
        if (error := _checked[constraint]) is not None:
            raise ConstraintError(str(error))


def _why_not(constraint: Constraint) -> ConstraintError | None:
    _checking.start()
    try:
        reply = _checking.send({"op": "check", **constraint.to_wire()}).result(_WALL_S)
    except (WorkerEnded, TimeoutError):
        _checking.close()
        return too_much(constraint)
    return refusal(constraint, reply.fields["error"]) if "error" in reply.fields else None
