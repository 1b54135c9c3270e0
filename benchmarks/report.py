"""What a benchmark prints: rows with their limits, the machine they were measured on, as a table or as JSON."""

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Row:
    """One number. `limit` says what is asked of it, `ok` whether it is met; both are empty where nothing is asked."""

    name: str
    value: float | str | None
    unit: str = ""
    limit: str = ""
    ok: bool | None = None

    @property
    def verdict(self) -> str:
        if not self.limit:
            return ""
        return {True: "ok", False: "falls short", None: "not measured"}[self.ok]


def at_most(name: str, value: float | None, unit: str, limit: float) -> Row:
    """A row that may not exceed `limit`; None if it could not be measured."""
    return Row(name, value, unit, f"≤ {number(limit)}", None if value is None else value <= limit)


def at_least(name: str, value: float | None, unit: str, limit: float) -> Row:
    """A row that must reach `limit`; None if it could not be measured."""
    return Row(name, value, unit, f"≥ {number(limit)}", None if value is None else value >= limit)


def holds(name: str, value: str, limit: str, ok: bool) -> Row:
    """A row that says something other than a number."""
    return Row(name, value, "", limit, ok)


def number(value: float | str | None) -> str:
    """Three digits or so, as people write them: 1234, 56.7, 8.90, 12 for the integer 12."""
    if value is None:
        return "–"
    if isinstance(value, (str, int)):
        return str(value)
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"


def median(values: Iterable[float | None]) -> float | None:
    """The median of what was measured; None if nothing was."""
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b, None if either is missing or b is 0."""
    return a / b if a is not None and b else None


def table(rows: list[Row]) -> str:
    """Aligned columns: name, value, unit, limit, verdict."""
    cells = [(r.name, number(r.value), r.unit, r.limit, r.verdict) for r in rows]
    widths = [max((len(c[i]) for c in cells), default=0) for i in range(4)]
    return "\n".join(
        f"{name:{widths[0]}}  {value:>{widths[1]}} {unit:{widths[2]}}  {limit:{widths[3]}}  {verdict}".rstrip()
        for name, value, unit, limit, verdict in cells
    )


def machine() -> dict:
    """What it was measured on, when, and how busy the machine was with other things."""
    packages = ("edgellm", "torch", "transformers", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = _source_version() if package == "edgellm" else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "arch": platform.machine(),
        "cores": cores(),
        "ram_bytes": psutil.virtual_memory().total,
        "load_average": list(os.getloadavg()),
        "versions": versions,
    }


def machine_text(found: dict, load_after: float | None = None) -> str:
    """`machine()` in two lines."""
    after = "" if load_after is None else f", {load_after:.2f} at the end"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    return (
        f"{found['date']}  {found['cpu']} ({found['arch']}), {found['cores']} cores, "
        f"{found['ram_bytes'] / 1e9:.1f} GB RAM, load average {found['load_average'][0]:.2f}{after}\n{versions}"
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, or the board's where the processor has none."""
    for path, key in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", "")):
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue
        if not key:
            return text.strip("\0\n ")
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def to_json(benchmark: str, found: dict, rows: list[Row], **more) -> str:
    """Everything, for a program to read."""
    content = {"benchmark": benchmark, "machine": found, "rows": [{**asdict(r), "verdict": r.verdict} for r in rows]}
    return json.dumps({**content, **more}, indent=1)


def text(benchmark: str, found: dict, rows: list[Row], as_json: bool) -> str:
    """What a benchmark prints: JSON, or the machine and a table."""
    return to_json(benchmark, found, rows) if as_json else f"{machine_text(found)}\n\n{table(rows)}"


def _source_version() -> str:
    from edgellm import __version__

    return __version__
