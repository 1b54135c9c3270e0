"""Two checkouts beside each other, in turns: did a change cost speed?

    python -m benchmarks.pair ../before --only smollm2 1b-int4     # the other checkout has its own .venv

Each checkout measures itself with its own `benchmarks.ours`: two agents with a core and a thread each, on loopback.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.models import RECIPES
from benchmarks.processes import BenchmarkError
from edgellm.console import note

HERE = Path(__file__).parents[1]
_TIMEOUT_S = 60.0  # for agents to end
# What a checkout runs: it serves one model, and answers each line with a number.
_SIDE = """
import sys
from pathlib import Path
from benchmarks import models
from benchmarks.ours import Cluster
from benchmarks.processes import worker_cores
from edgellm.plan import Settings
name, state = sys.argv[1], Path(sys.argv[2])
model = models.prepare([name])[name]
with Cluster(model, Settings(2048, 4, objective="throughput"), worker_cores(2), state) as cluster:
    print("ready", flush=True)
    for line in sys.stdin:
        what, *numbers = line.split()
        print(getattr(cluster, what)(*map(int, numbers)), flush=True)
"""
MEASURED = {  # and the method of Cluster with its arguments
    "decode, tokens/s": "decode 64 64", "prefill, tokens/s": "prefill 512", "4 streams, tokens/s": "streams 4 64 48",
}  # fmt: skip


class Side:
    """One checkout's agents, which serve a model as long as the `with` block lasts."""

    def __init__(self, checkout: Path, model: str, work: Path):
        python = checkout / ".venv" / "bin" / "python"
        if not python.is_file():
            raise BenchmarkError(f"{checkout} has no .venv. Run 'make test' or 'make .venv/dev' there.")
        work.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [python, "-c", _SIDE, model, work / "state"], cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "XDG_CACHE_HOME": str(work / "cache"), "PYTHONPATH": str(checkout)},
        )  # fmt: skip

    def __enter__(self) -> "Side":
        self._line()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.stdin.close()
        self._process.wait(_TIMEOUT_S)
        self._process.stdout.close()

    def measure(self, what: str) -> float:
        """Return the tokens per second of one measurement, such as "decode 64 64"."""
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"a checkout's agents ended with code {self._process.wait(_TIMEOUT_S)}")
        return line


def compare(before: Path, model: str, runs: int, work: Path) -> dict[str, tuple[float, float]]:
    """Return medians (before, now) of each measurement, taken in turns, of one start of the agents."""
    with Side(before, model, work / "before") as old, Side(HERE, model, work / "now") as new:
        found: dict[str, tuple[list[float], list[float]]] = {what: ([], []) for what in MEASURED}
        for i in range(runs + 1):
            for what, command in MEASURED.items():
                for side in ((old, 0), (new, 1)) if i % 2 else ((new, 1), (old, 0)):
                    value = side[0].measure(command)
                    if i:  # the first warms up
                        found[what][side[1]].append(value)
            note(f"{model}: {i} of {runs}")
    return {what: (statistics.median(a), statistics.median(b)) for what, (a, b) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the checkout to compare with")
    parser.add_argument("--only", nargs="+", default=["smollm2"], choices=list(RECIPES), help="models")
    parser.add_argument("--runs", type=int, default=7, help="turns a start")
    parser.add_argument("--starts", type=int, default=5, help="how often agents start anew: where their memory "
                        "falls and how their layers are cut changes more than a turn does")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    found: dict[str, list[dict[str, tuple[float, float]]]] = {model: [] for model in options.only}
    with tempfile.TemporaryDirectory(prefix="edgellm-pair-") as work:
        for _ in range(options.starts):
            for model in options.only:
                found[model].append(compare(options.before.resolve(), model, options.runs, Path(work) / model))
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'':32}{'before':>9}{'now':>9}{'ratio':>8}   of each start")
    for model, starts in found.items():
        for what in MEASURED:
            pairs = [rows[what] for rows in starts]
            before, now = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratios = sorted(b / a for a, b in pairs)
            each = " ".join(f"{r:.2f}" for r in ratios)
            print(f"{model + ', ' + what:32}{before:9.1f}{now:9.1f}{statistics.median(ratios):8.3f}   {each}")


if __name__ == "__main__":
    try:
        main()
    except BenchmarkError as e:
        sys.exit(f"benchmarks.pair: {e}")
