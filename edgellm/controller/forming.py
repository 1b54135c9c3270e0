"""Forming the cluster for deploy: which board takes what, and whether the answer is right."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from edgellm.controller import pairs as between
from edgellm.controller.request import Request
from edgellm.errors import BoardError, ClusterError, EdgellmError, PlanError
from edgellm.files import write_atomically
from edgellm.manager.beside import shared
from edgellm.manager.cluster_file import ClusterFile, FurtherModel
from edgellm.manager.local import could_hold
from edgellm.manager.pairs import HERE, Pair, try_pairs
from edgellm.manager.rebalance import NOTHING, Avoid, Outcome, propose, settle
from edgellm.manager.session import Session
from edgellm.manager.survey import Fleet, other_models
from edgellm.plan import Plan, Settings
from edgellm.plan.around import links
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from edgellm.text.tokenizer import Tokenizer
from edgellm.wire.status import SequenceStats

_T = TypeVar("_T")
_RETRY_FOR_S = 60.0  # another manager may be at it, or an agent be starting
CANARY_PROMPT = "Once upon a time, a small board"
CANARY_TOKENS = 8


def form(request: Request, path: Path, tell: Callable[[str], None], *, dry_run: bool = False) -> dict:
    """Have the boards take the plan that suits them, and write the cluster file to `path` if anything is new.

    Boards that don't answer are left out and named. Raises PlanError if the others can't hold the model, BoardError if
    one fails; then no plan is half taken. The result's `broken` says which boards can't reach each other so that no
    answer will come, "" if all of the plan's can; its `reasons` by board what else is wrong with the way to a board.
    """
    return asyncio.run(_form(request, path, tell, dry_run))


async def _form(request: Request, path: Path, tell: Callable[[str], None], dry_run: bool) -> dict:
    manifest = Manifest.read(request.model_dir)
    file = _file_at(path)
    known = file.plan if file and file.plan.manifest_sha256 == manifest.sha256 else None
    async with Fleet(manifest, request.addresses, request.client_tls(), strangers=False) as fleet:
        if dry_run:
            await fleet.survey()
            fleet.reports = {
                name: replace(r, capacity=request.on_disk(r.capacity)) for name, r in fleet.reports.items()
            }
            try:
                move = await _beside(fleet, lambda avoid: propose(
                    fleet, request.settings, known, any_shard=True, avoid=avoid
                ))  # fmt: skip
            except PlanError as e:
                raise _without(fleet, e) from None
            outcome = Outcome(move.plan, move, move.changed, {})
            pairs = []
        else:
            trying = asyncio.create_task(try_pairs(request.addresses, request.client_tls()))
            try:
                outcome = await _settled(fleet, request.settings, known, tell)
                pairs = await trying
            except (BoardError, PlanError) as e:
                _add(e, between.if_agents_run(await trying))
                raise
            finally:
                trying.cancel()
            if between.troubles(pairs):  # perhaps an agent was just starting
                pairs = await try_pairs(request.addresses, request.client_tls())
        missing = {name: fleet.missing[name] for name in sorted(fleet.missing)}
        tag = fleet.tag_of(outcome.plan)
    further, without = await _further(request, file, dry_run)
    for text in without.values():
        tell(text)
    plan = outcome.plan
    new = ClusterFile.make(request.model_dir, request.addresses, plan, tls=request.tls,
                           ssh={b.name: b.ssh for b in request.boards if b.ssh}, tag=tag)  # fmt: skip
    new = replace(new, more=further)
    same_file = file is not None and _same(file, new, path)
    if not dry_run and not same_file:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write(path)
    return {
        "changed": outcome.changed or not same_file,
        "epoch": plan.epoch,
        "sections": [{"board": s.board, "start": s.start, "end": s.end} for s in plan.sections],
        "reason": outcome.move.reason if outcome.move else "",
        "moved_bytes": outcome.move.moved_bytes if outcome.move else 0,
        "loaded_bytes": outcome.loaded_bytes,
        "unused": [b.name for b in request.boards if b.name not in plan.boards and b.name not in missing],
        "missing": missing,
        "broken": " ".join(t.sentence for t in _breaking(plan, pairs)[:3]),
        "reasons": _reasons(plan, pairs, missing),
        "cluster_file": str(path),
        "models": new.models,
        "without": without,
    }


async def _further(
    request: Request, file: ClusterFile | None, dry_run: bool
) -> tuple[tuple[FurtherModel, ...], dict[str, str]]:
    """Return the further models with a plan of each: the one that is known, or else one that the boards could take; and
    by name why the others are left out."""
    known = {} if file is None else {(m := file.choose(name)).plan.manifest_sha256: m for name in file.models}
    found: list[FurtherModel] = []
    without: dict[str, str] = {}
    for folder in request.more:
        manifest = Manifest.read(folder)
        asked = request.of_model(folder, manifest, 0)
        before = known.get(manifest.sha256)
        same = before is not None and before.plan.settings == asked.settings
        if before is not None and same and {*before.plan.boards} <= {*asked.addresses}:
            found.append(replace(before, model_dir=str(folder.absolute())))
            continue
        try:
            plan = await could_hold(
                manifest, asked.addresses, asked.settings, asked.client_tls(), any_shard=dry_run, on_disk=asked.on_disk
            )
            found.append(FurtherModel(plan.model, str(folder.absolute()), plan))
        except (BoardError, PlanError) as e:
            without[manifest.model] = f"{manifest.model} is left out: {e}"
    return tuple(found), without


def _breaking(plan: Plan, pairs: list[Pair]) -> list[between.Trouble]:
    """Return what keeps an answer by this plan from coming."""
    needed = links(plan)
    return [t for t in between.troubles(pairs) if any((p.dialler, p.board) in needed for p in t.pairs)]


def _reasons(plan: Plan, pairs: list[Pair], missing: dict[str, str]) -> dict[str, str]:
    """Return, by board, why it is missing, or why another plan than this one might not answer."""
    blocked = between.from_here(pairs)
    reasons = {board: f"board {board}: {blocked[board].sentence}" if board in blocked else why
               for board, why in missing.items()}  # fmt: skip
    breaking = _breaking(plan, pairs)
    for trouble in between.troubles(pairs):
        board = next(b for b in trouble.boards if b != HERE)
        if trouble not in breaking:
            reasons.setdefault(board, f"board {board}: {trouble.sentence}")
    return reasons


async def _settled(fleet: Fleet, settings: Settings, known: Plan | None, tell: Callable[[str], None]) -> Outcome:
    """`settle`, again and again while boards are claimed by another manager or just starting."""
    end_s = time.monotonic() + _RETRY_FOR_S
    told = ""
    while True:
        await fleet.survey()
        if not fleet.reports:
            raise BoardError("no board answers: " + "; ".join(fleet.missing.values()))
        try:
            return await _beside(fleet, lambda avoid: settle(
                fleet, settings, known, grow=True, tell=tell, avoid=avoid
            ))  # fmt: skip
        except PlanError as e:
            raise _without(fleet, e) from None
        except BoardError as e:
            if time.monotonic() > end_s:
                raise
            if str(e) != told:  # once, not at each try
                told = str(e)
                tell(f"{told}; trying again for up to {_RETRY_FOR_S:.0f} s …")
        await asyncio.sleep(1.0)


async def _beside(fleet: Fleet, plan: Callable[[Avoid], Awaitable[_T]]) -> _T:
    """Return what `plan` makes in the RAM that other models leave, which go on; if there isn't enough, in their place.
    """
    others = other_models(fleet.reports)
    if others:
        try:
            return await plan(shared(fleet.reports, NOTHING, others))
        except PlanError:
            pass
    return await plan(NOTHING)


def _without(fleet: Fleet, error: PlanError) -> PlanError:
    """Return the error that says which boards it had to do without, and why."""
    missing = "; ".join(fleet.missing.values())
    return PlanError(f"{missing}. Without: {error}", error.brief) if missing else error


def _add(error: EdgellmError, sentence: str) -> None:
    """Add a sentence to an error's message."""
    if sentence:
        error.args = (f"{str(error).removesuffix('.')}. {sentence}",)


def _file_at(path: Path) -> ClusterFile | None:
    try:
        return ClusterFile.read(path)
    except ClusterError:
        return None


def _same(old: ClusterFile, new: ClusterFile, path: Path) -> bool:
    """Whether two cluster files for `path` say the same, whenever they were made."""
    places = [
        (f.tls_path(path), f.boards, [(f.model_dir_path(path, n), (m := f.choose(n)).plan, m.tag) for n in f.models])
        for f in (old, new)
    ]
    return places[0] == places[1]


def canary(file: ClusterFile, path: Path, cache: Path, tell: Callable[[str], None]) -> list[int]:
    """Ask the cluster in `file` a fixed question; its greedy tokens, which are those of the reference.

    The reference is one process that computes as the boards do, native sections or plain transformers. It is run once
    for a model and remembered in `cache`. Raises BoardError if the tokens differ.
    """
    model_dir = file.model_dir_path(path)
    manifest = Manifest.read(model_dir)
    ids = Tokenizer(model_dir).encode(CANARY_PROMPT)[: file.plan.context]
    tokens, native = asyncio.run(_ask(file, path, manifest, ids, tell))
    kind = f"native-{file.plan.kv_dtype}" if native else "generic"
    remembered = cache / f"{manifest.sha256[:12]}-{kind}.json"
    expected = _remembered(remembered)
    if expected is None or expected[: len(tokens)] != tokens:  # what is remembered may be another version's
        tell("computing the reference answer, once for this model …")
        expected = _reference(manifest, model_dir, ids, tokens, file.plan.kv_dtype if native else None)
        if expected == tokens:
            cache.mkdir(parents=True, exist_ok=True)
            write_atomically(remembered, json.dumps(expected).encode())
    if expected[: len(tokens)] != tokens:
        at = next(i for i, (a, b) in enumerate(zip(expected, tokens, strict=False)) if a != b)
        raise BoardError(
            f"the cluster's answer to the canary question is wrong: token {at} is {tokens[at]}, expected "
            f"{expected[at]}. 'edgellm verify' names the layer and the board."
        )
    return tokens


async def _ask(file: ClusterFile, path: Path, manifest: Manifest, ids: list[int], tell) -> tuple[list[int], bool]:
    """The answer's tokens, and whether all boards computed native sections."""
    stats: dict[str, SequenceStats] = {}
    session = Session(manifest, file.plan, file.addresses(), tls=file.client_tls(path), tell=tell)
    async with session:
        count = min(CANARY_TOKENS, max(1, file.plan.context - len(ids)))
        stream = session.generate(ids, sampling=Sampling(), max_tokens=count, eos=(), stats=stats)
        tokens = [chosen.token async for chosen in stream]
    return tokens, all(s.path == "native" for s in stats.values())


def _remembered(path: Path) -> list[int] | None:
    try:
        tokens = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    ok = isinstance(tokens, list) and len(tokens) == CANARY_TOKENS and all(type(t) is int for t in tokens)
    return tokens if ok else None


def _reference(
    manifest: Manifest, model_dir: Path, ids: list[int], tokens: list[int], kv_dtype: str | None
) -> list[int]:
    """The most likely token after each prefix of prompt and answer; of native sections if there is a `kv_dtype`."""
    if kv_dtype is not None:
        from edgellm.check.one_process import run_whole

        logits = run_whole(manifest, model_dir, ids + tokens[:-1], len(tokens), kv_dtype)
    else:
        from edgellm.check.reference import Reference

        logits, _ = Reference(manifest, model_dir).run(ids + tokens[:-1], len(tokens))
    return [int(row.argmax()) for row in logits]
