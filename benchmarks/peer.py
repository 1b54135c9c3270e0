"""llama.cpp, measured by its own benchmarks: over RPC with two ggml-rpc-servers, each pinned to a core with one thread,
or without a network.

llama-bench measures one stream, llama-batched-bench several in one batch: what its developers measure with, without the
cost of HTTP or of sampling.
"""

import json
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import BenchmarkError, Finished, memory_of, pinned, run_measured

_START_TIMEOUT_S, _STOP_TIMEOUT_S, _MEASURE_TIMEOUT_S = 30.0, 10.0, 1800.0
_SETTINGS = ("backends", "n_threads", "n_batch", "n_ubatch", "type_k", "type_v", "flash_attn", "split_mode")  # if told
MICRO_BATCHES = (32, 64, 128, 256, 512)  # tokens
_EVERYTHING = 99  # layers to offload: more than there are


@dataclass(frozen=True)
class PeerMemory:
    """Peak RSS in bytes of the workers and of the client, mapped files included."""

    workers: tuple[int, ...]
    client: int


class Peer:
    """llama.cpp's programs in `programs`, their logs in `logs`; a worker on each of `cores`."""

    _cold: tuple[str, ...] = ("--no-warmup",)

    def __init__(self, programs: Path, cores: list[int], logs: Path):
        self._programs, self._cores, self._logs = programs, cores, logs
        self.memory: dict[str, PeerMemory] = {}  # of each model, the largest seen
        self.settings: dict = {}  # that its program says it last ran with

    def decode(self, gguf: Path, context: int, tokens: int) -> float:
        """Tokens a second of one stream, decoded from `context` tokens on."""
        return self._bench(gguf, "-p", "0", "-n", str(tokens), "-d", str(context))

    def prefill(self, gguf: Path, tokens: int, micro_batch: int | None = None) -> float:
        """Tokens a second of a prompt. Over RPC without a warm-up, which would be the same prompt once more.

        By default llama.cpp passes on up to 512 tokens at once, so one worker waits for the other; in smaller
        micro-batches they overlap.
        """
        options = [] if micro_batch is None else ["-ub", str(micro_batch)]
        return self._bench(gguf, "-p", str(tokens), "-n", "0", *self._cold, *options)

    def best_micro_batch(self, gguf: Path, tokens: int) -> int:
        """The micro-batch in tokens that a prompt is fastest in."""
        sizes = ",".join(str(n) for n in MICRO_BATCHES if n <= tokens)
        said = self._run(gguf, "llama-bench", "-r", "1", "-o", "json", "-p", str(tokens), "-n", "0", "-ub", sizes)
        return parse_micro_batches(said)

    def streams(self, gguf: Path, count: int, context: int, tokens: int) -> float:
        """Tokens a second of `count` streams together, decoded from `context` tokens on."""
        said = self._run(
            gguf, "llama-batched-bench", "-c", str(count * (context + tokens)), "-npp", str(context),
            "-ntg", str(tokens), "-npl", str(count), "--output-format", "jsonl", "-fit", "off",
        )  # fmt: skip
        rate, self.settings = parse_batched(said, count)
        return rate

    def _bench(self, gguf: Path, *options: str) -> float:
        said = self._run(gguf, "llama-bench", "-r", "1", "-o", "json", *options)
        rate, self.settings = parse_bench(said)
        return rate

    def _run(self, gguf: Path, program: str, *options: str) -> str:
        with _Workers(self._programs / "ggml-rpc-server", self._cores, self._logs) as workers:
            command = [
                str(self._programs / program), "-m", str(gguf), "--rpc", ",".join(workers.addresses),
                "-ngl", str(_EVERYTHING), "-t", "1", *options,
            ]  # fmt: skip
            done = self._measured(program, command)
            before = self.memory.get(str(gguf), PeerMemory((0,) * len(self._cores), 0))
            peaks = tuple(max(a, b) for a, b in zip(workers.peak_bytes(), before.workers, strict=True))
            self.memory[str(gguf)] = PeerMemory(peaks, max(done.peak_bytes, before.client))
        return done.stdout

    def _measured(self, program: str, command: list[str]) -> Finished:
        log = self._logs / f"{program}.log"
        with open(log, "wb") as stderr:
            done = run_measured(command, _MEASURE_TIMEOUT_S, stderr)
        if done.code:
            raise BenchmarkError(f"{program} ended with code {done.code}: {_last_line(log)}")
        return done


class BoardPeer(Peer):
    """The same without a network: one process, with a thread on each of `cores`. A prompt comes after a warm-up,
    because the first one also waits for the file's pages."""

    _cold = ()

    def _run(self, gguf: Path, program: str, *options: str) -> str:
        command = [
            *pinned(*self._cores), str(self._programs / program), "-m", str(gguf), "-ngl", "0",
            "-t", str(len(self._cores)), *options,
        ]  # fmt: skip
        return self._measured(program, command).stdout


def parse_micro_batches(said: str) -> int:
    """The micro-batch of the fastest of llama-bench's tests, in JSON."""
    try:
        rates = {int(test["n_ubatch"]): float(test["avg_ts"]) for test in json.loads(said)}
        return max(rates, key=lambda size: rates[size])
    except (ValueError, TypeError, KeyError) as e:
        raise BenchmarkError(f"llama-bench said something else than tests' JSON ({e}): {said[:200]!r}") from None


def parse_bench(said: str) -> tuple[float, dict]:
    """(tokens a second, what it ran with) of llama-bench's JSON with one test that ran once."""
    try:
        tests = json.loads(said)
        (test,) = tests
        (rate,) = test["samples_ts"]
        return float(rate), {name: test.get(name) for name in _SETTINGS}
    except (ValueError, TypeError, KeyError) as e:
        raise BenchmarkError(f"llama-bench said something else than one test's JSON ({e}): {said[:200]!r}") from None


def parse_batched(said: str, count: int) -> tuple[float, dict]:
    """(tokens a second of all streams together, what it ran with) of llama-batched-bench's lines of JSON."""
    for line in said.splitlines():
        if line.startswith("{"):
            try:
                found = json.loads(line)
                if found["pl"] == count:
                    return float(found["speed_tg"]), {name: found[name] for name in _SETTINGS if name in found}
            except (ValueError, TypeError, KeyError):
                continue
    raise BenchmarkError(f"llama-batched-bench said nothing of {count} streams: {said[:200]!r}")


class _Workers:
    """A ggml-rpc-server on each core, started anew: one that served before keeps its peak memory."""

    def __init__(self, program: Path, cores: list[int], logs: Path):
        self._program, self._cores, self._logs = program, cores, logs
        self._processes: list[subprocess.Popen] = []
        self.addresses: list[str] = []

    def __enter__(self) -> "_Workers":
        try:
            for core in self._cores:
                self._start(core)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, core: int) -> None:
        port = _free_port()
        command = [*pinned(core), str(self._program), "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
        path = self._logs / f"ggml-rpc-server-{core}.log"
        with open(path, "wb") as log:
            # Its own session: Ctrl-C is for us, and we end it.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._processes.append(process)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"ggml-rpc-server doesn't listen on port {port}: {_last_line(path)}")
            time.sleep(0.02)
        self.addresses.append(f"127.0.0.1:{port}")

    def peak_bytes(self) -> list[int]:
        return [memory_of(process.pid).peak for process in self._processes]

    def __exit__(self, *exc) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        return True
    except OSError:
        return False


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"it said nothing in {path}"
