"""`edgellm ask` from outside, as a process: start-up, memory, and repeated text with and without speculation."""

import contextlib
import json
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import BenchmarkError, Finished, run_measured

_TIMEOUT_S, _FIRST_BYTE_TIMEOUT_S = 900.0, 60.0
ANSWER_TOKENS = 192

TEXT = (
    "The harbour office opens at seven in the morning and closes at six in the evening. Boats that arrive at night "
    "tie up at the long pier and report to the office when it opens. The fee for one night is twelve crowns for boats "
    "up to ten metres, and eighteen crowns for longer boats. Water and electricity are included in the fee. The "
    "showers are behind the harbour office, and the key for them is handed out at the desk. Fuel is sold on Tuesday, "
    "Thursday and Saturday from nine to twelve. Boats must not be moored at the fuel pier outside these hours. "
    "Rubbish goes into the green containers beside the gate, oil and batteries into the yellow one. Dogs are welcome "
    "on the pier but have to be kept on a lead. When the red flag flies above the harbour office, a storm is "
    "expected, and every boat has to have double lines."
)
# What people have a model do to a text that it is given: most of the answer stands in the question.
TASKS = (
    f"Correct the spelling of this text. Repeat the whole text and change nothing else.\n\n{TEXT}",
    f"Summarise this text in the words that it uses itself.\n\n{TEXT}",
)


@dataclass(frozen=True)
class Asked:
    """The tokens of some answers and how fast they came after each one's first, all taken together."""

    tokens: tuple[tuple[int, ...], ...]
    tokens_per_s: float


def ask(cluster: Path, prompt: str, *options: str, max_tokens: int = ANSWER_TOKENS) -> tuple[dict, Finished]:
    """One `edgellm ask`: (what it prints as JSON, what it took). Raises BenchmarkError."""
    command = [sys.executable, "-m", "edgellm", "ask", prompt, "--json", "--max-tokens", str(max_tokens)]
    done = run_measured([*command, "--cluster", str(cluster), *options], _TIMEOUT_S)
    if done.code:
        raise BenchmarkError(f"edgellm ask ended with code {done.code}")
    return json.loads(done.stdout), done


def repeated(cluster: Path, *options: str) -> Asked:
    """Both TASKS, one after the other."""
    answers = [ask(cluster, task, *options)[0] for task in TASKS]
    return Asked(tuple(tuple(a["tokens"]) for a in answers), rate(answers))


def rate(answers: list[dict]) -> float:
    """Tokens a second after the first of each answer, over all of them."""
    tokens = sum(len(a["tokens"]) - 1 for a in answers)
    return tokens / sum(a["timings"]["total_s"] - a["timings"]["first_token_s"] for a in answers)


class DeafBoards:
    """Listeners in the place of boards, which accept and never answer; `addresses` by board name. Use as `with`."""

    def __init__(self, names: tuple[str, ...]):
        self._listeners = [socket.create_server(("127.0.0.1", 0)) for _ in names]
        self.addresses = {n: s.getsockname() for n, s in zip(names, self._listeners, strict=True)}

    def __enter__(self) -> "DeafBoards":
        return self

    def __exit__(self, *exc) -> None:
        for listener in self._listeners:
            listener.close()

    def first_byte_s(self, cluster: Path) -> float:
        """Seconds from starting `edgellm ask` with this cluster file, which names our addresses, until the first byte
        is here. Raises BenchmarkError if none comes."""
        command = [sys.executable, "-m", "edgellm", "ask", "Name three birds.", "--cluster", str(cluster)]
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            began = time.perf_counter()
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            while (left := began + _FIRST_BYTE_TIMEOUT_S - time.perf_counter()) > 0:
                for key, _ in selector.select(min(left, 0.1)):
                    if key.fileobj in self._listeners:
                        peer = stack.enter_context(key.fileobj.accept()[0])
                        selector.register(peer, selectors.EVENT_READ)
                    elif key.fileobj.recv(1):
                        return time.perf_counter() - began
                    else:
                        selector.unregister(key.fileobj)
                if process.poll() is not None:
                    raise BenchmarkError(f"edgellm ask ended with code {process.returncode} and sent no byte")
        raise BenchmarkError(f"edgellm ask sent no byte within {_FIRST_BYTE_TIMEOUT_S:g} s")
