"""Two tables beside llama.cpp: `pipeline`, two workers with a core each, and `board`, one process with two threads.

Each model is measured on its own, in minutes, and its rows take their places in benchmarks/results/TABLE.json with the
machine, the date and the commit that they are of; TABLE.md and TABLE.png show what is there. Both sides take turns, and
a ratio is that of one turn.
"""

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import chart, models, peer_build, report
from benchmarks.models import Model
from benchmarks.ours import Cluster, Memory
from benchmarks.peer import BoardPeer, Peer
from benchmarks.processes import FAILURES, worker_cores
from benchmarks.targets import BOARD, PIPELINE, Result, Run, Target, make_result, markdown, percent
from edgellm.console import note
from edgellm.errors import CheckpointError
from edgellm.files import write_atomically
from edgellm.plan import Settings

TABLES: dict[str, tuple[Target, ...]] = {"pipeline": PIPELINE, "board": BOARD}
_CORES, _CONTEXT = 2, 32
_PREFILL = {"pipeline": 512, "board": 128}
_BASE = {"pipeline": "llama.cpp RPC", "board": "llama.cpp"}
_SETTINGS = Settings(context=640, slots=1, kv_dtype="float16", objective="throughput")
Turn = Callable[[], float]


class Table:
    """One of the tables, measured."""

    def __init__(self, name: str, decoded: int, work: Path):
        self.name, self.decoded, self.work = name, decoded, work
        self.cores = worker_cores(_CORES)
        self.memory = Memory(self.cores)
        kind = Peer if name == "pipeline" else BoardPeer
        self.peer = kind(peer_build.build(), self.cores, work)
        self.peer_settings: dict[str, dict] = {}  # by row

    def model(self, model: Model, others: dict[str, Model], runs: int) -> list[Result]:
        """Measure a model's rows; `others` are the models that some of them compare it with."""
        targets = [t for t in TABLES[self.name] if t.model == model.name]
        measured: dict[str, list[Run]] = {t.key: [] for t in targets}
        with ExitStack() as stack:
            ours = stack.enter_context(self.cluster(model))
            turns = {t.key: self._turns(t, model, ours, others, stack) for t in targets}
            for i in range(runs):
                for target in targets:
                    note(f"{target.title}: run {i + 1} of {runs}")
                    measured[target.key].append(self._run(target, *turns[target.key], base_first=i % 2 == 1))
            paths = set(ours.paths)
        return [make_result(t, measured[t.key], model.bytes_a_token(), paths) for t in targets]

    def cluster(self, model: Model, threads: int = _CORES) -> Cluster:
        """Return agents that aren't started yet: one a core, or one with `threads` of them."""
        cores = self.cores if self.name == "pipeline" else [tuple(self.cores[:threads])]
        return Cluster(model, _SETTINGS, cores, self.work / f"{model.name}-{threads}")

    def _turns(
        self, target: Target, model: Model, ours: Cluster, others: dict[str, Model], stack: ExitStack
    ) -> tuple[Turn, Turn]:
        """Return what to call for (edgellm's, the base's) tokens a second. All is warm after that."""
        tokens = _PREFILL[self.name]
        if target.measure == "prefill":
            ours.prefill(tokens)
            batch: list[int] = []

            def base_prefill() -> float:
                if self.name == "board":
                    return self.peer.prefill(model.gguf, tokens)
                if not batch:
                    batch.append(self.peer.best_micro_batch(model.gguf, tokens))
                return self.peer.prefill(model.gguf, tokens, batch[0])

            return lambda: ours.prefill(tokens), base_prefill
        ours.decode(_CONTEXT, 4)
        if not target.own:
            return lambda: self._decode(ours), lambda: self.peer.decode(model.gguf, _CONTEXT, self.decoded)
        if target.measure == "threads":
            base = stack.enter_context(self.cluster(model, threads=1))
        else:
            base = stack.enter_context(self.cluster(others[target.beside]))
        base.decode(_CONTEXT, 4)
        if target.measure == "threads":
            return lambda: self._decode(ours), lambda: self._decode(base)
        # Tokens a second, times the bytes that each takes: gigabytes a second.
        weights = [m.bytes_a_token()[0] / 1e9 for m in (model, others[target.beside])]
        return lambda: self._decode(ours) * weights[0], lambda: self._decode(base) * weights[1]

    def _decode(self, cluster: Cluster) -> float:
        return cluster.decode(_CONTEXT, self.decoded)

    def _run(self, target: Target, ours: Turn, base: Turn, *, base_first: bool) -> Run:
        """Take both sides' turns. What fails stands in the table with its reason, if no other run succeeds: a model
        that llama.cpp can't load has edgellm's figures."""
        reasons: list[str] = []

        def tried(turn: Turn, side: str) -> float | None:
            try:
                return turn()
            except FAILURES as e:
                note(f"{side}: {e}")
                reasons.append(f"not measured: {side}: {e}")
                return None

        name = "edgellm" if target.own else "llama.cpp"
        other = tried(base, name) if base_first else None
        read = self.memory.read_bytes_per_s()
        rate = tried(ours, "edgellm")
        if not base_first:
            other = tried(base, name)
        if not target.own:
            self.peer_settings[target.key] = self.peer.settings
        return Run(rate, other, read, reason="; ".join(reasons))


def measure(name: str, wanted: list[str], runs: int, decoded: int, layers: int | None, machine: dict, out: Path) -> str:
    """Measure the models `wanted` of a table, each with all its rows, and put these into their places in `out`; returns
    the table as text. Without FAILURES: a model that can't be made or served is told, and the next one comes."""
    targets = TABLES[name]
    with tempfile.TemporaryDirectory(prefix="edgellm-speed-") as work:
        table = Table(name, decoded, Path(work))
        for model in wanted:
            needed = [model, *(t.beside for t in targets if t.model == model and t.beside)]
            try:
                made = models.prepare(needed, layers)
                found = table.model(made[model], made, runs)
            except FAILURES as e:
                note(f"{model}: {e}")
                failed = [Run(reason=f"not measured: {e}")]
                made, found = {}, [make_result(t, failed, (0, 0)) for t in targets if t.model == model]
            about = {**machine, "load_average_after": list(os.getloadavg())}
            sizes = dict(zip(("edgellm", "base"), made[model].bytes_a_token(), strict=True)) if made else {}
            put(out, name, found, {
                "machine": about, "runs": runs, "decoded_tokens": decoded, "layers": layers,
                "peer": f"{peer_build.PACKAGE} {peer_build.VERSION}", "weight_bytes_a_token": sizes,
            }, table.peer_settings)  # fmt: skip
    return write(out, name)


def put(out: Path, name: str, found: list[Result], about: dict[str, Any], peer_settings: dict[str, dict]) -> None:
    """Put rows into their places in OUT/NAME.json."""
    out.mkdir(parents=True, exist_ok=True)
    rows = read(out / f"{name}.json")
    for result in found:
        figures = asdict(result)
        key = figures.pop("target")["key"]
        rows[key] = {**figures, "verdict": result.verdict, "peer_settings": peer_settings.get(key, {}), **about}
    keys = [t.key for t in TABLES[name]]
    ordered = {key: rows[key] for key in sorted(rows.keys() & set(keys), key=keys.index)}
    text = json.dumps({"benchmark": name, "rows": ordered}, indent=1)
    write_atomically(out / f"{name}.json", text.encode() + b"\n")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows by their keys; none if there is no such file. Raises CheckpointError for another file."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text())["rows"])
    except (ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: isn't a table of earlier runs ({e}); remove it") from None


def results(name: str, rows: dict[str, dict[str, Any]]) -> list[Result]:
    """Return the results that rows of the JSON file stand for, in the table's order."""
    figures = ("ours", "base", "times", "share", "base_share", "same", "reason")
    return [
        Result(target, **{f: rows[target.key][f] for f in figures}) for target in TABLES[name] if target.key in rows
    ]


def write(out: Path, name: str) -> str:
    """Write OUT/NAME.md and OUT/NAME.png of OUT/NAME.json; returns the first one's text."""
    rows = read(out / f"{name}.json")
    found = results(name, rows)
    machines = list(dict.fromkeys(_measured_on(rows[r.target.key]) for r in found))
    columns = ("", f"{_BASE[name]}, tok/s", "edgellm, tok/s", "times", "to reach")
    if name == "pipeline":
        columns += ("of one core's reads", "to reach", "llama.cpp's share")
    lines = []
    for result in found:
        mark = f" ({machines.index(_measured_on(rows[result.target.key])) + 1})"
        lines.append((result.target.title + mark, *_cells(result)[: len(columns) - 1], result.verdict))
    parts = [markdown((*columns, ""), lines), *(f"({i}) {text}" for i, text in enumerate(machines, 1))]
    text = "\n\n".join(parts) + "\n"
    write_atomically(out / f"{name}.md", text.encode())
    if found:
        what = f"times {_BASE[name]} (where it is marked as own: times its other way)"
        chart.draw(found, machines[0].split("\n")[0], out / f"{name}.png", what, _BASE[name])
    return text


def _measured_on(row: dict[str, Any]) -> str:
    """Return machine, day, commit and runs of a row."""
    machine = row["machine"]
    cut = f", cut to {row['layers']} layers" if row["layers"] else ""
    return (
        f"{machine['date'][:10]}, {machine['cpu']} ({machine['arch']}), {_CORES} of {machine['cores']} cores, "
        f"{machine['ram_bytes'] / 1e9:.1f} GB RAM, commit {machine['commit'] or '–'}, {row['runs']} runs{cut}, "
        f"peer: {row['peer']}"
    )


def _cells(result: Result) -> tuple[str, ...]:
    target = result.target
    unit = " GB/s" if target.measure == "bytes" else ""
    base = f"{report.number(result.base)}{unit}"
    return (
        f"{base} (own)" if target.own and result.base else base, f"{report.number(result.ours)}{unit}",
        report.number(result.times), f"≥ {report.number(target.times)}",
        percent(result.share), f"≥ {percent(target.share)}" if target.share else "", percent(result.base_share),
    )  # fmt: skip
