"""What a plan predicted beside what its boards measure, and whether another plan would now be better."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgellm.errors import EdgellmError
from edgellm.manager.survey import shard_names
from edgellm.plan import Plan, next_plan
from edgellm.shards.manifest import Manifest
from edgellm.wire.section_status import SectionStatus
from edgellm.wire.status import BoardStatus


def columns(section: SectionStatus) -> dict[str, float | None]:
    """Return a board's milliseconds a token, as its plan predicted them and as its last steps tell."""
    return {
        "predicted_ms_per_token": _ms(section.predicted_s),
        "measured_ms_per_token": _ms(section.token_s),
    }


def tokens_per_s(rows: Sequence[Mapping[str, Any]], *names: str) -> float | None:
    """Return the rate of one answer at a time over these boards, by the first of these columns that each has; None if
    one has none."""
    times_ms = [next((row[name] for name in names if row[name] is not None), None) for row in rows]
    if not rows or None in times_ms:
        return None
    hops_s = sum(row["hop_s"] or 0.0 for row in rows) if len(rows) > 1 else 0.0
    token_s = sum(ms for ms in times_ms if ms is not None) / 1e3 + hops_s
    return round(1 / token_s, 2) if token_s > 0 else None


def notes(plan: Plan, statuses: Iterable[BoardStatus], manifest: Manifest | None) -> list[str]:
    """Return which boards of the plan swap experts, which are not as fast as it was made for, and what follows from
    that."""
    statuses = list(statuses)
    found: list[str] = []
    degraded: list[str] = []
    for said in statuses:
        section = said.section
        if section is not None and section.degraded is not None and said.plan and said.plan.digest == plan.digest:
            measured = "" if section.token_s is None else f", {section.token_s * 1e3:.3g} ms measured in all"
            degraded.append(f"degraded: {said.name}: {section.degraded.words()}{measured}")
        if section is None or not section.is_off or said.plan is None or said.plan.digest != plan.digest:
            continue
        assert section.token_s is not None and section.predicted_s is not None, "else it would not be off"
        why = (
            "it was probably busy when it was measured"
            if section.token_s < section.predicted_s
            else "heat or other work slows it"
        )
        found.append(
            f"{said.name} takes {section.token_s * 1e3:.3g} ms a token, and the plan was made for "
            f"{section.predicted_s * 1e3:.3g} ms: {why}"
        )
    if found and manifest is not None:
        found[-1] += f"; {_consequence(plan, statuses, manifest)}"
    return degraded + found


def _consequence(plan: Plan, statuses: Sequence[BoardStatus], manifest: Manifest) -> str:
    there = [s for s in statuses if s.manifest_sha256 == manifest.sha256 and not s.draining and not s.faults]
    capacities = sorted((s.capacity for s in there if s.capacity is not None), key=lambda c: c.board)
    sections = {s.name: s.plan.section_of(s.name) for s in there if s.plan is not None}
    if any(s.compute.path == "generic" for s in there):
        manifest = manifest.as_generic()
    try:
        move = next_plan(
            manifest, plan, capacities, plan.settings, plan.epoch + 1,
            shards={s.name: shard_names(s.shards, manifest) for s in there},
            held={board: (own.start, own.end) for board, own in sections.items()},
        )  # fmt: skip
    except EdgellmError:
        return "no other plan fits"
    if not move.changed or move.gain is None:
        return "no other plan would be a tenth faster"
    better = ", ".join(f"{s.board} {s}" for s in move.plan.sections)
    return (
        f"with {better} {move.gain:.0%} would be saved. The boards get that plan when they are idle, or by "
        "'edgellm rebalance'"
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
