"""`edgellm status`, `doctor` and `logs`: the cluster's condition, what is wrong with it, what its agents log."""

import json
import os
import sys
from pathlib import Path

import click

from edgellm.cli.group import verbose_option
from edgellm.console import Progress, note
from edgellm.errors import ManifestError, UsageError

_REFRESH_S = 2.0
_PAIRS_EVERY_S = 30.0  # with --watch: handshakes between all boards take some of their time
_NUMBERS = {"layers", "RAM GB", "KV", "°C", "Mb/s", "ms/token (plan)", "epoch"}
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_red")

cluster_option = click.option(
    "--cluster", type=click.Path(path_type=Path), metavar="FILE",
    help="Cluster file.  [default: $EDGELLM_CLUSTER, ./cluster.json, the user's config folder]",
)  # fmt: skip


def _open(cluster: Path | None):
    """Return (cluster file, its path); raise UsageError if there is none."""
    from edgellm.manager.cluster_file import ClusterFile, find

    path = find(str(cluster) if cluster else None)
    if path is None:
        raise UsageError("no cluster file. Deploy, or start a local cluster with 'edgellm local up'.")
    return ClusterFile.read(path), path


def _named(file, names: tuple[str, ...]) -> list:
    """Return the boards with these names, or all; raise UsageError for an unknown name."""
    known = {b.name: b for b in file.boards}
    for name in names:
        if name not in known:
            raise UsageError(f"{name!r} is none of the cluster's boards: {', '.join(known)}")
    return [known[n] for n in dict.fromkeys(names)] or list(file.boards)


def _console():
    """Return a console for tables on stdout, which wraps lines only on a terminal."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


@click.command()
@click.option("--watch", is_flag=True, help=f"Refresh every {_REFRESH_S:g} seconds, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object (with --watch, one per line).")
@cluster_option
@verbose_option
def status(watch, as_json, cluster, verbose):
    """Show what every board is doing, and its condition.

    RAM is what is free beside the section, and what the board offers in total. KV is free slots, and all slots.
    After a restart, a board loads its section at the next question, and is ready until then. Every board also tries to
    reach every other one, because hidden states go from board to board. status exits with 1 unless every board of the
    plan serves it or is ready, and reaches the next one.

    \b
    Examples:
      edgellm status
      edgellm status --watch
      edgellm status --json | jq '.boards[] | {board, temperature_c}'
    """
    import asyncio

    try:
        sys.exit(asyncio.run(_status(cluster, watch, as_json)))
    except KeyboardInterrupt:
        if not watch:
            raise


async def _status(cluster: Path | None, watch: bool, as_json: bool) -> int:
    import asyncio
    import time

    from rich.live import Live

    console, live = _console(), None
    pairs, tried_s = None, float("-inf")
    try:
        while True:
            if time.monotonic() - tried_s > _PAIRS_EVERY_S:
                pairs, tried_s = None, time.monotonic()
            with Progress() as progress:
                content, pairs = await _look(cluster, pairs, progress if live is None else lambda what: None)
            if as_json:
                click.echo(json.dumps(content))
            elif watch and console.is_terminal:
                if live is None:
                    live = Live(console=console, auto_refresh=False)
                    live.start()
                live.update(_rendered(content), refresh=True)
            else:
                console.print(_rendered(content))
            if not watch:
                return 0 if content["ready"] else 1
            await asyncio.sleep(_REFRESH_S)
    finally:
        if live is not None:
            live.stop()


async def _look(cluster: Path | None, pairs: list | None, progress) -> tuple[dict, list]:
    """Return the cluster's state, and the pairs of boards, which are tried unless they are given."""
    import asyncio

    from edgellm.controller.status import ask_boards, describe
    from edgellm.manager.pairs import try_pairs
    from edgellm.shards.manifest import Manifest

    file, path = _open(cluster)
    manifests = {}
    for name in file.models:
        try:
            manifests[name] = Manifest.read(file.model_dir_path(path, name))
        except ManifestError:
            pass  # doctor names it
    tls = file.client_tls(path)
    asking = ask_boards(file.addresses(), tls, lambda boards: progress(f"waiting for {', '.join(boards)}"))
    trying = asyncio.sleep(0, pairs) if pairs is not None else try_pairs(file.addresses(), tls)
    words, tried = await asyncio.gather(asking, trying)
    model = describe(file, words)["model"]  # which one counts
    return {"cluster_file": str(path), **describe(file, words, manifests.get(model), tried)}, tried


def _rendered(content: dict):
    """Return the table of boards, a line about the model, and the notes."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in (
        "board", "address", "layers", "path", "RAM GB", "KV", "°C", "throttled", "Mb/s", "ms/token (plan)", "version",
        "epoch", "state",
    ):  # fmt: skip
        table.add_column(header, justify="right" if header in _NUMBERS else "left", overflow="fold")
    for row in content["boards"]:
        style = "green" if row["serving"] or row["ready"] else "red" if row["in_plan"] else "dim"
        cells = [row["board"], row["address"], *_measures(row), Text(row["state"], style=style)]
        table.add_row(*(c if isinstance(c, Text) else Text(c) for c in cells))
    speed = f", about {content['tokens_per_s']:.3g} tokens/s" if content["tokens_per_s"] else ""
    if content["predicted_tokens_per_s"]:
        speed += f", {content['predicted_tokens_per_s']:.3g} predicted"
    lines = [
        f"{content['model']}: {content['num_layers']} layers, {content['slots']} slots of {content['context']} tokens, "
        f"{content['objective']}, epoch {content['epoch']}{speed}",
        *([_models(content)] if len(content["models"]) > 1 else []),
        *_drafts(content["boards"]),
        *_prompts(content["boards"]),
        *(f"! {n}" for n in content["notes"]),
    ]
    return Group(table, *(Text(line) for line in lines))


def _models(content: dict) -> str:
    """Return the line on a cluster's models: which stand, and which are loaded when they are asked."""
    others = [name for name in content["models"] if name not in content["standing"]]
    stands = f"loaded: {', '.join(content['standing']) or 'none'}"
    return f"{stands}; loaded when it is asked: {', '.join(others)}" if others else stands


def _drafts(rows: list[dict]) -> list[str]:
    """Return the line on drafts, if any were verified, or a model is there to make them."""
    lines = []
    for row in rows:
        counts = [f"{accepted} of {verified} accepted ({name})" for name, (verified, accepted) in row["drafts"].items()]
        by = [f"{row['draft_model']} drafts on {row['board']}"] if row["draft_model"] else []
        if row["in_plan"] and (by or counts):
            lines.append(f"drafts: {', '.join([*by, *counts])}")
    return lines


def _prompts(rows: list[dict]) -> list[str]:
    """Return the line on what boards keep of prompts, if they do."""
    kept = [row["cache"] for row in rows if row.get("cache")]

    def gb(field: str) -> str:
        return f"{sum(cache[field] or 0 for cache in kept) / 1e9:.2f}"

    if not kept:
        return []
    return [f"prompts: {gb('bytes')} of {gb('budget_bytes')} GB on disks, {gb('ram_bytes')} of "
            f"{gb('ram_budget_bytes')} GB in RAM that no plan needs"]  # fmt: skip


def _token_ms(row: dict) -> str:
    """Return what a token takes on a board, and what its plan was made for."""
    measured, planned = row["measured_ms_per_token"], row["predicted_ms_per_token"]
    measured = row["decode_ms_per_token"] if measured is None else measured
    shown = "–" if measured is None else f"{measured:.1f}"
    return shown if planned is None else f"{shown} ({planned:.1f})"


def _measures(row: dict) -> list:
    def shown(value, form="{}"):
        return "–" if value is None else form.format(value)

    def gb(value):
        return shown(None if value is None else value / 1e9, "{:.2f}")

    section, flags = row["section"], {None: "–", True: "yes", False: "no"}
    return [
        f"{section['start']}-{section['end']}" if section else "–",
        shown(row["path"]),
        f"{gb(row['ram_free_bytes'])}/{gb(row['ram_offered_bytes'])}",
        f"{shown(row['free_slots'])}/{shown(row['slots'])}" if section else "–",
        shown(row["temperature_c"], "{:.0f}"),
        flags[row["throttled"]] + (", undervoltage" if row["undervoltage"] else ""),
        shown(row["link_mbit"]),
        _token_ms(row),
        shown(row["version"]),
        shown(row["epoch"]),
    ]


@click.command()
@click.argument("boards", nargs=-1, metavar="[BOARD]...")
@click.option("--quick", is_flag=True, help="Check that the shards exist, but don't read them.")
@click.option("--json", "as_json", is_flag=True, help="Print findings and measurements as JSON.")
@cluster_option
@verbose_option
def doctor(boards, quick, as_json, cluster, verbose):
    """Find what is wrong with the boards, and say what to do.

    doctor checks reachability (also from every board to every other one), versions, clocks, links of 100 Mb/s, slow
    or full disks, heat, undervoltage, missing or damaged shards, certificates that expire soon, and agents that fail.
    Reading 3 GB of shards takes about a minute on a good card. doctor exits with 1 if it finds anything.

    \b
    Examples:
      edgellm doctor
      edgellm doctor pi2 --quick
      edgellm doctor --json | jq '.boards[].findings[].todo'
    """
    import asyncio

    from edgellm.controller.doctor import diagnose, report
    from edgellm.controller.examine import Meter, examine

    file, path = _open(cluster)
    _named(file, boards)
    told: list[str] = []  # printed later, so as not to break a progress bar
    with Progress() as progress:
        progress(f"examining {', '.join(boards) or f'{len(file.boards)} boards'}")
        facts = asyncio.run(examine(file, path, boards, quick=quick, meter=Meter(progress), tell=told.append))
    for text in told:
        note(text)
    findings = {f.board: diagnose(f) for f in facts}
    healthy = not any(findings.values())
    if as_json:
        click.echo(json.dumps({"healthy": healthy, "boards": [report(f, findings[f.board]) for f in facts]}))
    else:
        _console().print(*_diagnoses(facts, findings), sep="\n")
    sys.exit(0 if healthy else 1)


def _diagnoses(facts, findings) -> list:
    from rich.padding import Padding
    from rich.text import Text

    from edgellm.controller.doctor import summary

    width = max(len(f.board) for f in facts)
    lines: list[Text | Padding] = []
    for fact in facts:
        found = findings[fact.board]
        mark = ("✗ ", "bold red") if found else ("✓ ", "green")
        lines.append(Text.assemble(mark, (f"{fact.board:<{width}}", "bold"), "  ", (summary(fact), "dim")))
        for f in found:
            text = Text.assemble((f"{f.about}: ", "red"), f"{f.what.rstrip('.')}. ", (f.todo, "bold"))
            lines.append(Padding(text, (0, 0, 0, width + 4), expand=False))
    return lines


@click.command()
@click.argument("boards", nargs=-1, metavar="[BOARD]...")
@click.option("-f", "--follow", is_flag=True, help="Follow new lines, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), default=100, show_default=True,
              help="Number of past lines per board.")  # fmt: skip
@cluster_option
@verbose_option
def logs(boards, follow, lines, cluster, verbose):
    """Show what the agents log: each board's journal over SSH, or the log files of a local cluster.

    The lines of several boards are sorted by time, and each begins with its board's name.

    \b
    Examples:
      edgellm logs
      edgellm logs pi2 -n 1000
      edgellm logs -f
    """
    from edgellm.controller.logs import End, read_logs
    from edgellm.manager.local import state_dir

    file, _ = _open(cluster)
    chosen = _named(file, boards)
    width, failed = max(len(b.name) for b in chosen), False
    prefixes = {
        b.name: click.style(f"{b.name:<{width}} | ", fg=_COLOURS[i % len(_COLOURS)]) if len(chosen) > 1 else ""
        for i, b in enumerate(chosen)
    }
    entries = read_logs(
        chosen, lines=lines, follow=follow, log_dir=state_dir(), tell=note,
        waits=lambda names: note(f"waiting for {', '.join(names)} …"),
    )  # fmt: skip
    try:
        for entry in entries:
            if not isinstance(entry, End):
                click.echo(f"{prefixes[entry.board]}{f'{entry.time} ' if entry.time else ''}{entry.text}")
            elif entry.error:
                note(f"edgellm: {entry.error}")
                failed = True
    except KeyboardInterrupt:
        if not follow:
            raise
    except BrokenPipeError:  # the reader has enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1 if failed else 0)
