"""Gathers doctor's facts over the wire and over SSH, from all boards at once."""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from edgellm import __version__
from edgellm.controller import pairs as between
from edgellm.controller.doctor import HERE, Facts
from edgellm.controller.remembered import Failure, failures
from edgellm.controller.script import QUICK_SCRIPT, SCRIPT, parse
from edgellm.controller.ssh import run_script
from edgellm.controller.status import Word, ask_boards, describe
from edgellm.errors import EdgellmError
from edgellm.files import sha256_of
from edgellm.manager.cluster_file import Board, ClusterFile
from edgellm.manager.pairs import Pair, try_pairs
from edgellm.plan import section_need
from edgellm.shards.manifest import Manifest
from edgellm.wire.credentials import Credentials
from edgellm.wire.reasons import connection_reason

_T = TypeVar("_T")
_TCP_TIMEOUT_S = 4.0
_SCRIPT_S = 90.0  # without reading the model
_SLOWEST_READ = 4e6  # bytes/s: of a card that is given up on


class Meter:
    """Progress of several boards as one: `report(what, done, total)` in bytes, called from one thread at a time."""

    def __init__(self, report: Callable[[str, int, int], None] = lambda what, done, total: None):
        self._report, self._lock = report, threading.Lock()
        self._done, self._total = 0, 0

    def expect(self, count: int) -> None:
        with self._lock:
            self._total += count

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._report("verifying shards", self._done, self._total)


async def examine(
    cluster: ClusterFile, path: Path, names: tuple[str, ...] = (), *, quick: bool = False, run=run_script,
    meter: Meter | None = None, tell: Callable[[str], None] = lambda text: None,
) -> list[Facts]:  # fmt: skip
    """Return facts of this machine and of the boards named (all, if none are). Raises nothing for a board.

    Every board tries to reach every other one, named or not. With `quick`, shards are looked at but not read. `run`
    is what runs a script on a board (`run_script`).
    """
    meter = meter or Meter()
    here, manifest, tls = _this_machine(cluster, path)
    boards = [b for b in cluster.boards if not names or b.name in names]
    mute = cluster.tls is not None and tls is None  # no certificate to ask with, which is a finding of this machine
    asked = asyncio.create_task(ask_boards({} if mute else cluster.addresses(), tls))  # all: they hold one plan
    trying = asyncio.create_task(try_pairs({} if mute else cluster.addresses(), tls))
    tasks = [asyncio.create_task(in_thread(_by_ssh, b, manifest, quick, run, meter, tell)) for b in boards]
    local = cluster.is_local() and manifest is not None and not quick
    own = in_thread(_sums_here, cluster.model_dir_path(path), manifest, meter) if local else asyncio.sleep(0, {})
    try:
        here = replace(here, **await own)
        words = await asked or {b.name: Word(b.host, b.port) for b in boards}
        rows = {row["board"]: row for row in describe(cluster, words, manifest)["boards"]}
        silent = [b for b in boards if words[b.name].error]
        tcp = dict(zip([b.name for b in silent], await asyncio.gather(*map(_tcp_error, silent)), strict=True))
        facts = [here]
        for board, task in zip(boards, tasks, strict=True):
            by_wire = _by_wire(board, words[board.name], rows[board.name], cluster, manifest)
            elsewhere = any(row["path"] == "native" for name, row in rows.items() if name != board.name)
            facts.append(replace(by_wire, tcp_error=tcp.get(board.name), native_elsewhere=elsewhere, **await task))
        pairs = await trying
        facts = [_with_failures(f, words[f.board], pairs) if f.board in words else f for f in facts]
        return _with_pairs(facts, pairs)
    finally:
        for task in (asked, *tasks):
            task.cancel()
        trying.cancel()


def facts_by_wire(
    cluster: ClusterFile, words: dict[str, Word], manifest: Manifest | None, rows: list[dict]
) -> list[Facts]:
    """Return what is known of the boards without SSH, from their `words` and the `rows` that `describe` makes of
    them."""
    by_name = {row["board"]: row for row in rows}
    native = {row["board"] for row in rows if row["path"] == "native"}
    return [
        replace(
            _with_failures(_by_wire(b, words[b.name], by_name[b.name], cluster, manifest), words[b.name], []),
            tcp_error=words[b.name].error, wire_error=None, has_ssh=False, native_elsewhere=bool(native - {b.name}),
        )
        for b in cluster.boards if b.name in words
    ]  # fmt: skip


def _with_failures(facts: Facts, word: Word, pairs: list[Pair]) -> Facts:
    """Return the facts with what the board's agent says has failed."""
    found = failures(word.status, between.tried_by(pairs, facts.board)) if word.status is not None else []
    if word.lie:
        what = "it reports a plan that no admin of this cluster made, so it is left out"
        todo = f"Deploy to it again. If it lies again, somebody else has it: 'edgellm revoke {facts.board}'."
        found.append(Failure("plan", what, todo))
    return replace(facts, failures=tuple(found), idle=None if word.lie else facts.idle)


def _with_pairs(facts: list[Facts], pairs: list[Pair]) -> list[Facts]:
    """Return the facts with what keeps boards from reaching each other, each at the first board that it is about."""
    names = {f.board for f in facts}
    found: dict[str, list[tuple[str, str]]] = {}
    for trouble in between.troubles(pairs):
        for board in [b for b in trouble.boards if b in names][:1]:
            found.setdefault(board, []).append((trouble.what, trouble.todo))
    return [
        replace(f, pairs=tuple(found.get(f.board, ())), reached_by=tuple(between.reached_by(pairs, f.board)))
        for f in facts
    ]


async def in_thread(function: Callable[..., _T], *args: Any) -> _T:
    """Run `function(*args)` in a thread that doesn't keep the program from ending, and return what it returns."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def settle(end: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            end(value)

    def work() -> None:
        end: Callable[[Any], None] = done.set_result
        value: Any
        try:
            value = function(*args)
        except Exception as e:
            end, value = done.set_exception, e
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, end, value)

    threading.Thread(target=work, daemon=True).start()
    return await done


def _this_machine(cluster: ClusterFile, path: Path) -> tuple[Facts, Manifest | None, Credentials | None]:
    """Return facts of the controller itself, the manifest of the cluster's model, and credentials to ask boards with;
    None for what can't be had."""
    manifest = tls = None
    here = Facts(HERE, our_version=__version__, has_ssh=False)
    try:
        manifest = Manifest.read(cluster.model_dir_path(path))
        here = replace(here, manifest_sha256=cluster.plan.manifest_sha256, model_sha256=manifest.sha256)
    except EdgellmError as e:
        here = replace(here, manifest_error=str(e))
    if manifest is not None and manifest.sha256 != cluster.plan.manifest_sha256:
        manifest = None
    folder = cluster.tls_path(path)
    if folder is not None:
        from edgellm.controller.certificates import remaining_days

        try:
            here = replace(here, certificate_days=remaining_days(folder / "cert.pem"))
            here = replace(here, ca_days=remaining_days(folder / "ca.pem"))
            tls = cluster.client_tls(path)
        except EdgellmError as e:
            here = replace(here, certificate_error=str(e).removesuffix(" Deploy again."))
    return here, manifest, tls


def _sums_here(folder: Path, manifest: Manifest, meter: Meter) -> dict:
    """Return facts of the model that the agents of this machine share."""
    wanted = _wanted(manifest)
    files = {n: (folder / n).stat().st_size for n in wanted if (folder / n).is_file()}
    meter.expect(sum(files.values()))
    sums = {}
    for name, size in files.items():
        try:
            sums[name] = sha256_of(folder / name)
        except OSError:
            sums[name] = ""
        meter.add(size)
    return {"manifest": wanted, "needed": frozenset(wanted), "files": files, "sums": sums}


def _wanted(manifest: Manifest) -> dict[str, tuple[int, str]]:
    return {f.name: (f.bytes, f.sha256) for f in manifest.entries}


def _by_wire(board: Board, word: Word, row: dict, cluster: ClusterFile, manifest: Manifest | None) -> Facts:
    """Return what the board's agent tells, and what is expected of the board."""
    facts = Facts(
        board.name, our_version=__version__, has_ssh=board.ssh is not None, wire_error=word.error, port=board.port,
        version=row["version"], link_mbit=row["link_mbit"], temperature_c=row["temperature_c"],
        throttled=row["throttled"], undervoltage=row["undervoltage"], ram_total_bytes=row["ram_total_bytes"],
        offered_bytes=row["ram_offered_bytes"], disk_free_bytes=row["disk_free_bytes"],
        manifest_sha256=cluster.plan.manifest_sha256, path=row["path"], kernels=row["kernels"],
    )  # fmt: skip
    if word.status is not None:
        said = word.status.of_model(cluster.plan.manifest_sha256)  # the default one of several models
        facts = replace(facts, model_sha256=said.manifest_sha256)
    if row["ready"]:
        facts = replace(facts, ready=True)
    elif row["in_plan"] and not row["serving"] and word.status is not None:
        facts = replace(facts, idle=row["state"])
    if manifest is None:
        return facts
    facts = replace(facts, manifest=_wanted(manifest), needed=frozenset(f.name for f in manifest.files))
    held = None if word.status is None else word.status.plan
    section = row["section"] if held is None or held.manifest_sha256 == manifest.sha256 else None
    if section is None and board.name in cluster.plan.boards:
        own = cluster.plan.section_of(board.name)
        section = {"start": own.start, "end": own.end}
    if section is None or section["end"] > manifest.num_layers:
        return facts
    generic = word.status is not None and word.status.compute.path == "generic"
    need = section_need(
        manifest.as_generic() if generic else manifest, cluster.plan.settings, section["start"], section["end"]
    ).least(cluster.plan.swap_experts)
    shards = {s.name for s in manifest.section_shards(section["start"], section["end"])}
    return replace(facts, need_bytes=need, needed=facts.needed | shards)


def _by_ssh(board: Board, manifest: Manifest | None, quick: bool, run, meter: Meter, tell) -> dict:
    """Return facts that need SSH, as the fields of `Facts`."""
    if board.ssh is None:
        return {}
    wanted = _wanted(manifest) if manifest else {}
    total = sum(size for size, _ in wanted.values())
    deadline_s = _SCRIPT_S if quick else _SCRIPT_S + 2 * total / _SLOWEST_READ
    lines: list[tuple[float, str]] = []

    def on_line(line: str) -> None:
        lines.append((time.time(), line))
        word, _, rest = line.partition(" ")
        name = rest.rpartition(" ")[2]
        if name in wanted and not quick and word in ("file", "sum"):
            (meter.expect if word == "file" else meter.add)(wanted[name][0])

    try:
        run(board.name, board.ssh, QUICK_SCRIPT if quick else SCRIPT, on_line, deadline_s=deadline_s, tell=tell)
    except EdgellmError as e:
        return {"ssh_error": re.sub(r"^board \S+( \(\S+\))?: ", "", str(e))}
    return parse(lines, quick)


async def _tcp_error(board: Board) -> str | None:
    """Return why the board's port can't be connected to; None if it can."""
    try:
        async with asyncio.timeout(_TCP_TIMEOUT_S):
            _, writer = await asyncio.open_connection(board.host, board.port)
        writer.close()
    except TimeoutError:
        return f"no answer from {board.host}:{board.port} within {_TCP_TIMEOUT_S:g} s"
    except (OSError, ValueError) as e:
        return f"{board.host}:{board.port}: {connection_reason(e)}"
    return None
