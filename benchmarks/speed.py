"""Measures edgellm beside llama.cpp, in three tables of benchmarks/results/: `speed` and `pipeline` beside llama.cpp
RPC, two workers each, a core a worker, one thread each, over loopback; `board` beside llama.cpp without a network, two
threads each.

Both sides run the same weights, in turns; a speed is a median of five runs, every ratio is taken within a run. What
one core reads is measured in the same run. The first time llama.cpp is built, and models with random weights are
written into the user's cache, of which up to 15 GB are kept. Needs 16 GB of RAM, and two cores that nothing else uses.
All takes some two hours, so each model of `pipeline` and `board` can be measured on its own, in minutes: its rows take
their places in the table.

    python -m benchmarks.speed
    python -m benchmarks.speed --table pipeline --models qwen3.5-4b,gemma3-1b
    python -m benchmarks.speed --quick --only smollm2 --only repeated
    python -m benchmarks.speed --quick --layers 4 --table board      # does it work?
    python -m benchmarks.speed --clean

What falls short is shown, and is no error.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from benchmarks import asking, chart, lean, models, peer_build, report, tables
from benchmarks.models import Model
from benchmarks.ours import Cluster, Memory
from benchmarks.peer import Peer
from benchmarks.processes import FAILURES, worker_cores
from benchmarks.report import Row
from benchmarks.targets import COLUMNS, TARGETS, Result, Run, Target, cells, make_result, markdown
from edgellm.console import note
from edgellm.plan import Settings

WORKERS, CONTEXT, DECODED, PREFILL, STREAMS = 2, 32, 64, 512, 4
MICRO_BATCH = 64  # tokens; of 16, 32, 64, 96, 128, 256 and 512 llama.cpp took a prompt fastest in 64 or 128
QUICK_DECODED = 16
RESULTS = Path(__file__).parent / "results"
_SETTINGS = {  # slots that hold what is measured, and no more
    "phi3-int4": Settings(context=640, slots=1, kv_dtype="float16", objective="throughput"),
    "phi3-int8": Settings(context=640, slots=1, kv_dtype="float16", objective="throughput"),
    "1b-int4": Settings(context=128, slots=STREAMS, kv_dtype="float16", objective="throughput"),
    "smollm2": Settings(context=1024, slots=1, kv_dtype="float16", objective="throughput"),
}


class Bench:
    """What is measured with: both sides' programs, the cores, and how often."""

    def __init__(self, runs: int, decoded: int, work: Path):
        self.cores = worker_cores(WORKERS)
        self.runs, self.decoded, self.work = runs, decoded, work
        self.memory = Memory(self.cores)
        self.peer: Peer | None = None
        self.peer_settings: dict[str, dict] = {}  # by row

    def model(self, model: Model, targets: list[Target], with_lean: bool) -> tuple[list[Result], list[Row]]:
        """Measure the rows of one model, and what else it takes if `with_lean`."""
        note(f"{model.name}: starts {WORKERS} agents")
        settings = _SETTINGS[model.name]
        first, serving = [], []
        if with_lean:
            for i in range(1 + min(self.runs, 3)):
                for taken in (first, serving):
                    with Cluster(model, settings, self.cores, self.work / f"{model.name}-{i}") as cluster:
                        taken.append(cluster.serving_s)
            del first[0]  # it brought the files into memory
        with Cluster(model, settings, self.cores, self.work / "agents") as cluster:
            cluster.decode(CONTEXT, 4)  # warms up
            found = self._runs(cluster, model, targets)
            rows = []
            if with_lean:
                note(f"{model.name}: memory, start-up")
                rows = lean.rows(cluster, self.peer, self.runs, first, serving, self.work)
        sizes = model.bytes_a_token()
        results = [make_result(t, found[t.key], sizes, cluster.paths) for t in targets]
        return results, rows

    def _runs(self, cluster: Cluster, model: Model, targets: list[Target]):
        """{key: runs}; in every other run the peer comes first."""
        found = defaultdict(list)
        for i in range(self.runs):
            for target in targets:
                note(f"{target.title}: run {i + 1} of {self.runs}")
                try:
                    if target.measure == "repeated":
                        run = self._repeated(cluster, i % 2 == 1)
                    else:
                        run = self._beside(cluster, model, target, i % 2 == 1)
                except FAILURES as e:  # the others go on; it stands in the table if no run succeeds
                    note(f"run {i + 1}: {e}")
                    run = Run(reason=f"not measured: {e}")
                found[target.key].append(run)
        return found

    def _beside(self, cluster: Cluster, model: Model, target: Target, peer_first: bool) -> Run:
        measures = {
            "decode": (lambda: cluster.decode(CONTEXT, self.decoded),
                       lambda: self.peer.decode(model.gguf, CONTEXT, self.decoded)),
            "prefill": (lambda: cluster.prefill(PREFILL), lambda: self.peer.prefill(model.gguf, PREFILL)),
            "pipelined": (lambda: cluster.prefill(PREFILL),
                          lambda: self.peer.prefill(model.gguf, PREFILL, MICRO_BATCH)),
            "streams": (lambda: cluster.streams(STREAMS, CONTEXT, self.decoded),
                        lambda: self.peer.streams(model.gguf, STREAMS, CONTEXT, self.decoded)),
        }  # fmt: skip
        ours, peer = measures[target.measure]
        base = peer() if peer_first else None
        read = self.memory.read_bytes_per_s()
        rate = ours()
        base = peer() if base is None else base
        self.peer_settings[target.key] = self.peer.settings
        return Run(rate, base, read)

    def _repeated(self, cluster: Cluster, without_first: bool) -> Run:
        path = cluster.write(self.work / "cluster.json")
        options = [["--no-speculate"], []] if without_first else [[], ["--no-speculate"]]
        first, second = (asking.repeated(path, *o) for o in options)
        plain, drafted = (first, second) if without_first else (second, first)
        return Run(drafted.tokens_per_s, plain.tokens_per_s, same=drafted.tokens == plain.tokens)


def measure(keys: list[str], with_lean: bool, runs: int, decoded: int, work: Path):
    """Build, write and measure everything that is asked for; returns (results, rows, what else is worth keeping)."""
    targets = [t for t in TARGETS if t.key in keys]
    names = list(dict.fromkeys(t.model for t in targets)) or ["smollm2"]
    bench = Bench(runs, decoded, work)
    made = models.prepare(names)
    if any(t.measure != "repeated" for t in targets):
        bench.peer = Peer(peer_build.build(), bench.cores, work)
    results, rows = [], []
    for name in names:
        more_results, more_rows = bench.model(made[name], [t for t in targets if t.model == name], with_lean)
        results += more_results
        rows += more_rows
    if with_lean:
        rows.append(Row("one core reads", bench.memory.read_bytes_per_s() / 1e9, "GB/s"))
        rows.append(Row(f"{WORKERS} cores together read", bench.memory.read_together_bytes_per_s() / 1e9, "GB/s"))
    results.sort(key=lambda r: keys.index(r.target.key))
    peer = {"package": f"{peer_build.PACKAGE} {peer_build.VERSION}", "cmake": peer_build.FLAGS}
    if bench.peer:
        peer |= {"settings": bench.peer_settings, "compiler": peer_build.compiler()}
    sizes = {n: dict(zip(("edgellm", "llama.cpp"), made[n].bytes_a_token(), strict=True)) for n in names}
    return results, rows, {"peer": peer, "cores": bench.cores, "weight_bytes_a_token": sizes}


def commit() -> str | None:
    """The checkout's commit, "+" after it if files differ from it; None outside of git."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def write_results(folder: Path, name: str, machine: dict, results: list[Result], rows: list[Row], more: dict) -> str:
    """Write NAME.md, NAME.json and NAME.png; returns the text of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    about = report.machine_text(machine, machine["load_average_after"][0])
    parts = [about, f"commit {machine['commit'] or '–'}, {more['runs']} runs, peer: {more['peer']['package']}"]
    if results:
        parts.append(markdown(COLUMNS, map(cells, results)))
    if rows:
        lines = [(r.name, f"{report.number(r.value)} {r.unit}".strip(), r.limit, r.verdict) for r in rows]
        parts.append(markdown(("", "", "limit", ""), lines))
    text = "\n\n".join(parts) + "\n"
    (folder / f"{name}.md").write_text(text)
    table = [{**asdict(r), "verdict": r.verdict} for r in results]
    (folder / f"{name}.json").write_text(report.to_json("speed", machine, rows, speed=table, **more) + "\n")
    if results:
        what = (machine["cpu"], f"{machine['cores']} cores", machine["date"][:10], machine["commit"] or "")
        caption = ", ".join(w for w in what if w)
        chart.draw(results, caption, folder / f"{name}.png")
    return text


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    keys = [*(t.key for t in TARGETS), "lean"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="append", choices=["speed", *tables.TABLES], dest="tables",
                        help="measure this table (repeatable); by default all, or speed with --only")  # fmt: skip
    parser.add_argument("--only", action="append", choices=keys, metavar="ROW",
                        help=f"measure this row of speed (repeatable): {', '.join(keys)}; lean is memory and start-up")
    known = {name: list(dict.fromkeys(t.model for t in found)) for name, found in tables.TABLES.items()}
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="A,B",
                        help="measure these models of the other tables: " +
                        "; ".join(f"{', '.join(names)} ({name})" for name, names in known.items()))  # fmt: skip
    parser.add_argument("--runs", type=int, default=5, help="how often everything is measured (default: 5)")
    parser.add_argument("--quick", action="store_true", help=f"one run, {QUICK_DECODED} tokens: does it work?")
    parser.add_argument("--layers", type=int, metavar="N",
                        help="cut the shapes of pipeline and board to N layers: does it work?")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--clean", action="store_true", help="remove llama.cpp and the models from the cache, and end")
    options = parser.parse_args(arguments)
    if options.runs < 1 or (options.layers or 1) < 1:
        parser.error("--runs and --layers must be at least 1")
    options.tables = options.tables or (["speed"] if options.only else ["speed", *tables.TABLES])
    if options.models:
        options.tables = [t for t in options.tables if t in known]
        there = {model for t in options.tables for model in known[t]}
        if strange := [m for m in options.models if m not in there]:
            parser.error(f"--models: {strange[0]} isn't in {' or '.join(options.tables) or 'speed'}")
    wanted = {t: known[t] for t in options.tables if t in known}
    options.models = {t: [m for m in names if m in (options.models or names)] for t, names in wanted.items()}
    return options


def main() -> None:
    """Parses the options, measures, prints, and ends all that it started."""
    options = parse()
    if options.clean:
        print(f"{models.cache_folder()}: {models.clean() / 1e9:.1f} GB removed")
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: sys.exit(128 + n))  # so that everything is ended
    runs, decoded = (1, QUICK_DECODED) if options.quick else (options.runs, DECODED)
    machine = {**report.machine(), "commit": commit()}
    try:
        with tempfile.TemporaryDirectory(prefix="edgellm-speed-") as temporary:
            if "speed" in options.tables:
                _measure_speed(options, machine, runs, decoded, Path(temporary))
            trial = options.quick or options.layers  # which takes no row's place
            out = Path(temporary) if trial else options.out
            for name, wanted in options.models.items():
                print(tables.measure(name, wanted, runs, decoded, options.layers, machine, out), end="")
                if not trial:
                    note(f"{out / name}.md, .json, .png")
    except FAILURES as e:
        sys.exit(f"benchmark: {e}")
    except KeyboardInterrupt:
        sys.exit("benchmark: interrupted; all that it started has ended")


def _measure_speed(options: argparse.Namespace, machine: dict, runs: int, decoded: int, work: Path) -> None:
    only = options.only or [*(t.key for t in TARGETS), "lean"]
    # What isn't the whole table doesn't take its place.
    name = "speed-part" if options.only or options.quick else "speed"
    results, rows, more = measure([k for k in only if k != "lean"], "lean" in only, runs, decoded, work)
    machine = {**machine, "load_average_after": list(os.getloadavg())}
    more |= {"runs": runs, "decoded_tokens": decoded, "context_tokens": CONTEXT, "prefill_tokens": PREFILL}
    print(write_results(options.out, name, machine, results, rows, more), end="")
    note(f"{options.out / name}.md, .json, .png")


if __name__ == "__main__":
    main()
