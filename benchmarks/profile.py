"""Where the agents' time goes while they decode, a core and a thread each: perf's samples of both, by kind of work.

    pip install -e . -C install.strip=false     # the native library with its symbols
    python -m benchmarks.profile
    python -m benchmarks.profile --model smollm2 --tokens 500

Needs perf (Debian: linux-perf) and the right to use it. The models are those of `make bench`, made if they aren't
there.
"""

import argparse
import contextlib
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import models, report
from benchmarks.ours import Cluster
from benchmarks.processes import BenchmarkError, worker_cores
from benchmarks.report import Row
from edgellm.console import note
from edgellm.plan import Settings

MODELS = ("phi3-int4", "smollm2")
PRODUCTS, ATTENTION, OTHERS = "products with packed weights", "attention", "norms, activations, quantizing, KV"
PYTHON, KERNEL = "Python and its libraries", "the kernel"
KINDS = (PRODUCTS, ATTENTION, OTHERS, PYTHON, KERNEL)
_CONTEXT, _STOP_TIMEOUT_S, _READ_TIMEOUT_S = 32, 30.0, 300.0
_SAMPLE = re.compile(r"\s*[0-9a-f]+ (.+) \((.+)\)\s*")  # address, symbol, library


def kind_of(symbol: str, library: str) -> str:
    """The kind of work of a sample. Raises BenchmarkError for one in a library without symbols."""
    if "libedgellm" in library:
        if symbol == "[unknown]":
            raise BenchmarkError("the native library has no symbols. pip install -e . -C install.strip=false")
        return PRODUCTS if "integer_" in symbol else ATTENTION if "attend" in symbol else OTHERS
    return KERNEL if library.startswith("[") else PYTHON


def shares(script: str) -> dict[str, float]:
    """Per cent of each of KINDS, of what `perf script -F ip,sym,dso` prints."""
    found = Counter(kind_of(*m.groups()) for line in script.splitlines() if (m := _SAMPLE.fullmatch(line)))
    if not found:
        raise BenchmarkError("perf has taken no samples")
    return {kind: 100 * found[kind] / found.total() for kind in KINDS}


def measure(model: models.Model, tokens: int, cores: list[int], work: Path) -> list[Row]:
    """Rows of one model: how fast it decoded, and the shares."""
    note(f"{model.name}: decodes {tokens} tokens")
    settings = Settings(_CONTEXT + tokens + 8, 1, kv_dtype="float16", objective="throughput")
    data = work / "perf.data"
    with Cluster(model, settings, cores, work / "agents") as cluster:
        cluster.decode(_CONTEXT, 4)  # warms up
        pids = ",".join(str(pid) for pid in cluster.pids.values())
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "2999", "-p", pids, "-o", str(data)]
        with _running(command):
            rate = cluster.decode(_CONTEXT, tokens)
    command = ["perf", "script", "-i", str(data), "-F", "ip,sym,dso"]
    said = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_READ_TIMEOUT_S)
    if said.returncode:
        raise BenchmarkError(f"perf script failed: {said.stderr.strip()[-200:]}")
    found = shares(said.stdout)
    return [Row(f"{model.name}: decode", rate, "tokens/s"), *(Row(f"  {k}", v, "%") for k, v in found.items())]


@contextlib.contextmanager
def _running(command: list[str]):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
        if process.poll() is not None:
            raise BenchmarkError(f"perf record failed: {process.stderr.read().decode(errors='replace').strip()[-200:]}")
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(models.RECIPES), help="repeatable; default: two")
    parser.add_argument("--tokens", type=int, default=100, help="decoded after 32 (default: 100)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if not shutil.which("perf"):
        raise SystemExit("benchmark: there is no perf. On Debian: apt install linux-perf")
    machine, rows = report.machine(), []
    try:
        cores, made = worker_cores(2), models.prepare(options.model or list(MODELS))
        with tempfile.TemporaryDirectory(prefix="edgellm-profile-") as work:
            for model in made.values():
                rows += measure(model, options.tokens, cores, Path(work))
    except BenchmarkError as e:
        raise SystemExit(f"benchmark: {e}") from None
    print(report.text("profile", machine, rows, options.json))


if __name__ == "__main__":
    main()
