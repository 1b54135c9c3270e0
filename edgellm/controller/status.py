"""Builds `edgellm status`: asks all boards at once, and compares each report with the plan."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgellm.controller import predicted
from edgellm.controller.pairs import from_here, reached_by, tried_by, troubles, untried
from edgellm.controller.remembered import failures
from edgellm.errors import EdgellmError, TagError
from edgellm.manager.cluster_file import ClusterFile
from edgellm.manager.connections import Connections
from edgellm.manager.pairs import HERE, Pair
from edgellm.manager.survey import besides_of, committed_of
from edgellm.plan import Plan, section_need
from edgellm.plan.around import links
from edgellm.plan.needs import Needs, offer_for, usable_bytes
from edgellm.shards.manifest import Manifest
from edgellm.wire.addresses import Address
from edgellm.wire.credentials import Credentials
from edgellm.wire.printable import printable
from edgellm.wire.section_status import SectionStatus
from edgellm.wire.signed import Trust
from edgellm.wire.status import BoardStatus

_REACH_TIMEOUT_S = 4.0  # to connect, and again to answer
_PATIENCE_S = 1.0  # before reporting which boards are slow
_MAX_STRANGERS = 64

Held = Mapping[str, tuple[Plan, SectionStatus]]  # what a board serves, by the SHA-256 of the model's manifest


@dataclass(frozen=True)
class Word:
    """A board's answer: its status, or why there is none. `lie` is a sentence on a plan that it reports and that no
    admin of the cluster made; then the status has no plan. `others` are the boards of which it tells, proven."""

    host: str
    port: int
    status: BoardStatus | None = None
    error: str | None = None
    lie: str | None = None
    others: Mapping[str, Address] = field(default_factory=dict)


async def ask_boards(
    addresses: Mapping[str, Address], tls: Credentials | None = None,
    waits: Callable[[list[str]], None] = lambda boards: None, *, connections: Connections | None = None,
) -> dict[str, Word]:  # fmt: skip
    """Ask all boards at once; then the boards that only they know, from a plan newer than ours that an admin signed.

    `waits` is told which boards are slow to answer. `connections`, made with the same credentials, stay open for the
    next time. Takes a few seconds at most, and raises nothing for a board; ClusterError if plans can't be checked here.
    """
    if connections is None:
        async with Connections(tls) as own:
            return await ask_boards(addresses, tls, waits, connections=own)
    trust = Trust(None if tls is None else tls.folder)
    words = {b: _believed(word, trust) for b, word in (await _ask_all(addresses, connections, waits)).items()}
    strangers: dict[str, Address] = {}
    for word in words.values():
        for board, address in word.others.items():
            if board not in words and len(strangers) < _MAX_STRANGERS:
                strangers[board] = address
    more = await _ask_all(strangers, connections, waits) if strangers else {}
    return {**words, **{b: _believed(word, trust) for b, word in more.items()}}


def _believed(word: Word, trust: Trust) -> Word:
    """Return what of a board's answer is to be believed: what it measures, and plans that an admin signed."""
    if word.status is None:
        return word
    try:
        _, others = committed_of(word.status, trust)
        for _, addresses in besides_of(word.status, trust).values():
            others = {**addresses, **others}
        return replace(word, others=others)
    except TagError as e:
        status = replace(word.status, plan=None, addresses={}, epoch=None, committed=None, section=None, beside=())
        return replace(word, status=status, lie=str(e))


async def _ask_all(
    addresses: Mapping[str, Address], connections: Connections, waits: Callable[[list[str]], None]
) -> dict[str, Word]:
    tasks = {name: asyncio.create_task(_ask(name, address, connections)) for name, address in addresses.items()}
    try:
        if tasks:
            await asyncio.wait(tasks.values(), timeout=_PATIENCE_S)
        if late := [name for name, task in tasks.items() if not task.done()]:
            waits(late)
        return {name: await task for name, task in tasks.items()}
    finally:
        for task in tasks.values():
            task.cancel()


async def _ask(name: str, address: Address, connections: Connections) -> Word:
    host, port = address
    try:
        board = await connections.to(name, address, _REACH_TIMEOUT_S)
        return Word(host, port, await board.status(_REACH_TIMEOUT_S))
    except EdgellmError as e:
        reason = str(e).removeprefix(f"board {name} ({host}:{port}): ")
        return Word(host, port, error=printable(reason, 300))


def describe(
    cluster: ClusterFile, words: dict[str, Word], manifest: Manifest | None = None, pairs: Sequence[Pair] = (), *,
    weigh: bool = True, model: str | None = None,
) -> dict:  # fmt: skip
    """Return the state of a cluster as one JSON object (`edgellm status --json`), from what its boards said.

    Of several models, the one named `model` counts, or the first that stands, or else the default one; `standing` has
    the names of all whose plan all its boards serve. The plan that counts is the cluster file's, or the newest one that
    all its boards serve, if that is newer or no board serves the cluster file's. `serving` is whether every board of it
    does, and `ready` whether the next question needs no other plan. Neither is so if, as the tried `pairs` tell, a
    board can't reach the one that it sends to. Without the `manifest` it isn't known what is left of a board's offer,
    nor who is ready. With `weigh`, a board that isn't as fast as the plan was made for has another plan searched for,
    which takes a while.
    """
    held = {name: word.status.sections if word.status else {} for name, word in words.items()}
    standing = _standing(cluster, held)
    known = next((p for p in cluster.plans().values() if p.model in standing[:1]), cluster.plan)
    known = known if model is None else cluster.choose(model).plan
    plan = _counting(known, held)
    words = {
        name: word if word.status is None else replace(word, status=word.status.of_model(plan.manifest_sha256))
        for name, word in words.items()
    }
    rows = [_row(name, word, plan, word.status.plan if word.status else None, manifest) for name, word in words.items()]
    rows += [_row(name, Word("?", 0, error="no address"), plan, None, manifest) for name in plan.boards
             if name not in words]  # fmt: skip
    order = {name: i for i, name in enumerate(plan.boards)}
    rows.sort(key=lambda row: order.get(row["board"], len(order)))
    _mark_ready(rows, plan, words, manifest, changes_over=model is not None)
    notes = [word.lie for word in words.values() if word.lie]
    notes += [*_notes(cluster, known, plan, words, rows), *_pair_notes(pairs), *_remembered(words, pairs)]
    notes += predicted.notes(plan, [word.status for word in words.values() if word.status], manifest if weigh else None)
    stages = [row for row in rows if row["in_plan"]]
    _break_links(plan, rows, pairs)
    return {
        "model": plan.model,
        "models": cluster.models,
        "standing": standing,
        "objective": plan.objective,
        "num_layers": plan.num_layers,
        "context": plan.context,
        "slots": plan.slots,
        "epoch": plan.epoch,
        "cluster_file_epoch": known.epoch,
        "serving": all(row["serving"] for row in rows if row["in_plan"]),
        "ready": all(row["serving"] or row["ready"] for row in rows if row["in_plan"]),
        "tokens_per_s": predicted.tokens_per_s(stages, "measured_ms_per_token", "decode_ms_per_token"),
        "predicted_tokens_per_s": predicted.tokens_per_s(stages, "predicted_ms_per_token"),
        "notes": notes,
        "pairs": [
            {"from": p.dialler, "to": p.board, "address": f"{p.address[0]}:{p.address[1]}",
             "ok": None if p.code is None else p.code == "ok", "reason": p.reason}
            for p in pairs if p.dialler != HERE
        ],
        "boards": rows,
    }


def _pair_notes(pairs: Sequence[Pair]) -> list[str]:
    """Return which boards can't reach each other, or be reached from here though others reach them."""
    notes = [t.sentence for t in troubles(pairs)]
    notes += [t.sentence for board, t in from_here(pairs).items() if reached_by(pairs, board)]
    return notes + [f"whether {board} reaches the others is not known: {why}" for board, why in untried(pairs).items()]


def _remembered(words: Mapping[str, Word], pairs: Sequence[Pair]) -> list[str]:
    """Return what boards say has failed lately."""
    return [
        f"{name}: {what}. {todo}"
        for name, word in words.items() if word.status is not None
        for _, what, todo in failures(word.status, tried_by(pairs, name))
    ]  # fmt: skip


def _break_links(plan: Plan, rows: list[dict], pairs: Sequence[Pair]) -> None:
    """Mark boards that serve or will, but can't reach the board that they must send to: no answer comes."""
    broken = {p.dialler: p.board for p in pairs if p.broken and (p.dialler, p.board) in links(plan)}
    for row in rows:
        if (row["serving"] or row["ready"]) and row["board"] in broken:
            row["serving"], row["ready"], row["state"] = False, False, f"can't reach {broken[row['board']]}"


def _standing(cluster: ClusterFile, held: Mapping[str, Held]) -> list[str]:
    """Return the names of the models of which boards serve a whole plan, the default one first."""
    return [plan.model for sha256, plan in cluster.plans().items() if _whole(sha256, held)]


def _whole(manifest_sha256: str, held: Mapping[str, Held]) -> list[Plan]:
    """Return the plans of a model that all their boards serve."""
    plans = {name: plans[manifest_sha256][0] for name, plans in held.items() if manifest_sha256 in plans}
    return [plan for plan in plans.values() if all(plans.get(b) == plan for b in plan.boards)]


def _counting(ours: Plan, held: Mapping[str, Held]) -> Plan:
    newest = max(_whole(ours.manifest_sha256, held), key=lambda plan: plan.epoch, default=ours)
    return newest if newest.epoch >= ours.epoch else ours


def _row(name: str, word: Word, plan: Plan, held: Plan | None, manifest: Manifest | None) -> dict[str, Any]:
    said = word.status or BoardStatus(name)
    section, health, compute, capacity = said.section or SectionStatus(), said.health, said.compute, said.capacity
    offered = capacity.ram_bytes if capacity else None
    layers = held.section_of(name) if held else None
    taken = sum(other.ram_bytes or 0 for _, other in said.sections.values())
    if not section.ram_bytes and held and layers and manifest and manifest.sha256 == held.manifest_sha256:
        taken += section_need(manifest, held.settings, layers.start, layers.end).total
    known = offered is not None and (layers is None or taken > 0)
    steps, decode_s = section.decode_steps, section.decode_s
    serving = bool(held and held.digest == plan.digest and name in plan.boards and not said.draining)
    return {
        "board": name,
        "address": f"{word.host}:{word.port}",
        "state": "serving" if serving else _state(name, word, plan, offered, manifest),
        "serving": serving,
        "ready": False,
        "in_plan": name in plan.boards,
        "section": {"start": layers.start, "end": layers.end} if layers else None,
        "others": [
            {"model": other.model, "start": own.start, "end": own.end, "ram_bytes": its.ram_bytes}
            for other, its in said.sections.values() if other is not held for own in [other.section_of(name)]
        ],
        "loading": None if said.loading is None else {
            "model": said.loading.model, "read_bytes": said.loading.read_bytes, "total_bytes": said.loading.total_bytes,
        },
        "path": section.path,
        "ram_total_bytes": health.ram_total_bytes,
        "ram_offered_bytes": offered,
        "ram_free_bytes": max(0, offered - taken) if offered is not None and known else None,
        "disk_free_bytes": said.disk_free_bytes,
        "slots": section.slots,
        "free_slots": section.free_slots,
        "temperature_c": health.temperature_c,
        "throttled": health.throttled,
        "undervoltage": health.undervoltage,
        "link_mbit": health.link_mbit,
        "uptime_s": health.uptime_s,
        "decode_ms_per_token": round(decode_s / steps * 1e3, 3) if steps and decode_s is not None else None,
        **predicted.columns(section),
        "degraded": None if section.degraded is None else asdict(section.degraded),
        "draft_model": section.draft_model,
        "drafts": {name: list(counts) for name, counts in section.drafts.items()},
        "cache": None if said.cache is None else asdict(said.cache),
        "hop_s": capacity.hop_s if capacity else None,
        "kernels": compute.kernels,
        "cores": None if compute.cores is None else list(compute.cores),
        "version": said.version,
        "epoch": said.epoch,
    }


def _mark_ready(
    rows: list[dict[str, Any]], plan: Plan, words: dict[str, Word], manifest: Manifest | None, changes_over: bool
) -> None:
    """Mark the boards that load their section at the next question, as after a restart, if every other board of the
    plan serves or does so too; else the next question makes another plan."""
    idle = [row for row in rows if row["in_plan"] and not row["serving"]]
    could = (_could_load(words.get(row["board"]), plan, manifest, changes_over) for row in idle if manifest)
    if manifest is None or not all(could):
        return
    for row in idle:
        row["ready"], row["state"] = True, f"ready: loads {plan.section_of(row['board'])} at the next question"


def _could_load(word: Word | None, plan: Plan, manifest: Manifest, changes_over: bool) -> bool:
    """Return whether a board holds no section, or if it `changes_over` none of this model, and could hold that of the
    plan: it has the shards and the RAM."""
    said = word.status if word else None
    if word is None or said is None or word.lie or said.capacity is None:
        return False
    if said.draining or said.claimed or plan.manifest_sha256 in said.sections or (said.plan and not changes_over):
        return False
    if not said.manifest_sha256 == plan.manifest_sha256 == manifest.sha256:
        return False
    own = plan.section_of(said.name)
    manifest = manifest.as_generic() if said.compute.path == "generic" else manifest
    need = section_need(manifest, plan.settings, own.start, own.end).least(plan.swap_experts)
    return need <= usable_bytes(said.capacity.ram_bytes) and said.shards.has(own.start, own.end, plan.num_layers)


def _state(name: str, word: Word, plan: Plan, offered: int | None, manifest: Manifest | None) -> str:
    """Return why a board doesn't serve the plan, in a few words."""
    said = word.status
    if said is None:
        return f"unreachable: {word.error}"
    if word.lie:
        return "not believed"
    if said.draining:
        return "stopping"
    if said.plan is not None and said.plan.manifest_sha256 != plan.manifest_sha256:
        return f"serves {said.plan.model}"
    if said.manifest_sha256 != plan.manifest_sha256:
        return f"has another model: {said.model or '?'}"
    if said.plan is not None:
        another = said.plan.epoch != plan.epoch
        return f"serves epoch {said.plan.epoch}" if another else "serves another plan of this epoch"
    if name in plan.boards:
        return "no section, a plan is under way" if said.claimed else "no section"
    least = min(_layer_needs(plan, manifest), default=0)
    if offered is not None and usable_bytes(offered) < least:
        return f"spare: offers {offered / 1e9:.2f} GB, a layer needs {offer_for(least) / 1e9:.2f} GB"
    if plan.objective == "latency":
        return "spare: fewer boards answer sooner"
    return f"spare: not in the plan of epoch {plan.epoch}"


def _layer_needs(plan: Plan, manifest: Manifest | None) -> list[int]:
    """Return what each layer alone would need; nothing if the manifest is not that of the plan."""
    if manifest is None or manifest.sha256 != plan.manifest_sha256:
        return []
    needs = Needs(manifest, plan.settings)
    return [needs.total(i, i + 1) for i in range(plan.num_layers)]


def _notes(cluster: ClusterFile, ours: Plan, plan: Plan, words: dict[str, Word], rows: list[dict]) -> list[str]:
    """Return notes about the cluster as a whole; `ours` is the cluster file's plan of the model."""
    notes = []
    if plan.digest != ours.digest:
        what = f"epoch {plan.epoch}" if plan.epoch != ours.epoch else "another plan of that epoch"
        notes.append(
            f"the cluster file has epoch {ours.epoch}, the boards serve {what}: another manager made that plan, and "
            "the next question or deploy follows it"
        )
    others = {n for n, w in words.items() if w.status and w.status.plan and w.status.plan.model != plan.model}
    others |= {row["board"] for row in rows if row["serving"]}  # their last plan may be another model's
    epochs = {row["board"]: row["epoch"] for row in rows if row["epoch"] is not None and row["board"] not in others}
    newest = max(epochs.values(), default=None)
    if newest is not None and newest > plan.epoch:
        names = ", ".join(board for board, epoch in epochs.items() if epoch == newest)
        notes.append(
            f"{names} has moved on to epoch {newest}, which not all of its boards serve: the next question or deploy "
            "finishes that change of plan"
        )
    missing = [row["board"] for row in rows if row["in_plan"] and not (row["serving"] or row["ready"])]
    if missing:
        notes.append(
            f"{', '.join(missing)} ({len(missing)} of the plan's {len(plan.boards)} boards) can't serve now: the next "
            "question makes a plan over the boards that answer, if the model fits; 'edgellm doctor' says more"
        )
    if strangers := sorted(words.keys() - {b.name for b in cluster.boards}):
        notes.append(f"{', '.join(strangers)}: in a plan of these boards, but not in this cluster file")
    versions = {row["version"] for row in rows if row["version"]}
    if len(versions) > 1:
        notes.append(f"the boards run different versions ({', '.join(sorted(versions))}): upgrade them all")
    return notes
