"""The next plan: what boards offer now, what they hold already, and whether a move is worth its bytes.

A plan stays while it can, and while no other is a tenth faster (GAIN): weights take minutes to move and measurements
waver. If it must go or another is worth it, the next plan is the one that loads the fewest bytes of all those nearly as
fast as the fastest (SLACK). SLACK is half of GAIN, so that what was chosen for its few bytes isn't given up again at
the next small change of a measurement; asked again with the same numbers, `next_plan` always keeps what it chose.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from edgellm.checkpoint.manifest import Manifest, Shard
from edgellm.errors import PlanError
from edgellm.plan.fleet import Kind
from edgellm.plan.make import check_request, kinds, manifest_sha256, ms, plan_of, size, too_large
from edgellm.plan.needs import Needs, usable_bytes
from edgellm.plan.search import fits, search
from edgellm.plan.types import Capacity, Plan, Section, Settings

GAIN = 0.10  # the least share of the objective's time that a move must save
SLACK = GAIN / 2  # how much slower than the fastest a plan may be that loads fewer bytes

Held = Mapping[str, tuple[int, int] | None]


@dataclass(frozen=True)
class Move:
    """What `next_plan` decided.

    `plan` is the plan to run; if not `changed` it is the current one itself, which may still have something to load
    (an agent that restarted). `moved` has, by board, the names of the shards it must load anew (boards with none
    aren't in it), `moved_bytes` the size of their files. `gain` is the share of the objective's time that the move
    saves (negative if it had to be slower) or, if kept, that the fastest plan would save; None if there is nothing to
    compare with. `token_s_before` (None if not computable) and `token_s` are seconds of one token through all stages.
    """

    plan: Plan
    changed: bool
    reason: str
    gain: float | None
    moved: dict[str, tuple[str, ...]]
    moved_bytes: int
    token_s_before: float | None
    token_s: float


def next_plan(
    manifest: Manifest,
    current: Plan | None,
    capacities: Sequence[Capacity],
    settings: Settings,
    epoch: int,
    *,
    shards: Mapping[str, Set[str]] | None = None,
    held: Held | None = None,
) -> Move:
    """The plan to run from now on: `current` itself unless something forces another or a move is worth it.

    `shards` has the names of the shard files on each board's disk, and a board gets only sections whose shards it has
    (None: any shard can be brought to any board). `held` has the section [start, end) of this manifest that each board
    has loaded (a board that isn't in it holds nothing; None: what `current` says). `epoch` is the new plan's number.
    PlanError, with what is missing, if no plan fits.
    """
    check_request(manifest, capacities, settings)
    if held is None:
        same = current is not None and current.manifest_sha256 == manifest_sha256(manifest)
        held = {s.board: (s.start, s.end) for s in current.sections} if same else {}
    needs = Needs(manifest, settings)
    boards = kinds(capacities, manifest, shards)
    cuts = search(needs, boards, settings.objective)
    if cuts is None:
        raise PlanError(_nothing_fits(manifest, capacities, settings, shards))
    best = plan_of(cuts, manifest, capacities, settings, epoch)
    by_name = dict(zip((c.board for c in capacities), boards, strict=True))
    before = _time(current, by_name) if current is not None else None
    best_ns = figure_ns(best, by_name, settings.objective)
    before_ns = None
    if before is not None and current.manifest_sha256 == best.manifest_sha256:
        before_ns = figure_ns(current, by_name, settings.objective)
    else:
        before = None
    gain = None if before_ns is None else 1 - best_ns / before_ns if before_ns else 0.0
    force = _forced(current, manifest, capacities, settings, needs, boards)
    if force is None and not gain >= GAIN:
        plan, changed, reason = current, False, _kept(settings.objective, before_ns, best_ns)
    else:
        plan, changed = best, True
        reason = force or _worth(settings.objective, before_ns, best_ns)
    moved = {s.board: to_load(manifest, s, held.get(s.board)) for s in plan.sections}
    return Move(
        plan,
        changed,
        reason,
        gain,
        {board: tuple(s.name for s in loads) for board, loads in moved.items() if loads},
        sum(s.bytes for loads in moved.values() for s in loads),
        None if before is None else before / 1e9,
        _time(plan, by_name) / 1e9,
    )


def to_load(manifest: Manifest, section: Section, held: tuple[int, int] | None) -> tuple[Shard, ...]:
    """The shards of a section that a board which holds section `held` has to load anew."""
    there = manifest.section_shards(*held) if held else ()
    return tuple(s for s in manifest.section_shards(section.start, section.end) if s not in there)


def stage_times(plan: Plan, by_name: Mapping[str, Kind]) -> list[int] | None:
    """Nanoseconds of a token at each stage; None if a board isn't known."""
    if not all(b in by_name for b in plan.boards):
        return None
    alone = len(plan.sections) == 1
    return [by_name[s.board].stage_ns(s.num_layers, s.end == plan.num_layers, alone) for s in plan.sections]


def figure_ns(plan: Plan, by_name: Mapping[str, Kind], objective: str) -> int | None:
    """What the objective compares: a token's time through all stages, or the slowest stage's."""
    times = stage_times(plan, by_name)
    return None if times is None else max(times) if objective == "throughput" else sum(times)


def _time(plan: Plan, by_name: Mapping[str, Kind]) -> int | None:
    return figure_ns(plan, by_name, "latency")


def _forced(
    current: Plan | None,
    manifest: Manifest,
    capacities: Sequence[Capacity],
    settings: Settings,
    needs: Needs,
    boards: Sequence[Kind],
) -> str | None:
    """Why the current plan can't stay, in words; None if it can."""
    if current is None:
        return "there was no plan"
    if current.manifest_sha256 != manifest_sha256(manifest):
        return f"the model is {manifest.model} ({manifest_sha256(manifest)[:12]}), the plan was for {current.model}"
    if current.settings != settings:
        old, new = current.settings.to_dict(), settings.to_dict()
        return ", ".join(f"{name} is {new[name]} instead of {old[name]}" for name in new if new[name] != old[name])
    by_name = dict(zip((c.board for c in capacities), zip(capacities, boards, strict=True), strict=True))
    for section in current.sections:
        if section.board not in by_name:
            return f"board {section.board} is gone, which held {section}"
        capacity, kind = by_name[section.board]
        if (need := needs.total(section.start, section.end)) > kind.usable_bytes:
            return (
                f"board {section.board} offers {size(capacity.ram_bytes)}, "
                f"{size(usable_bytes(capacity.ram_bytes))} of it usable; its {section} need {size(need)}"
            )
        if kind.stored is not None and kind.stored[section.start] < section.end:
            return f"board {section.board}'s disk lacks shards of its {section}"
    return None


def _kept(objective: str, before_ns: int, best_ns: int) -> str:
    what = "the slowest stage takes" if objective == "throughput" else "a token takes"
    if best_ns >= before_ns:
        return f"no plan is faster than the current one: {what} {ms(before_ns / 1e9)}"
    return (
        f"{what} {ms(before_ns / 1e9)} and would take {ms(best_ns / 1e9)} with the fastest plan: "
        f"{1 - best_ns / before_ns:.1%} less, a move is worth it from {GAIN:.0%} on"
    )


def _worth(objective: str, before_ns: int, after_ns: int) -> str:
    what = "the slowest stage takes" if objective == "throughput" else "a token takes"
    return (
        f"{what} {ms(after_ns / 1e9)} instead of {ms(before_ns / 1e9)}: {1 - after_ns / before_ns:.1%} less, "
        f"a move is worth it from {GAIN:.0%} on"
    )


def _nothing_fits(
    manifest: Manifest, capacities: Sequence[Capacity], settings: Settings, shards: Mapping[str, Set[str]] | None
) -> str:
    """Why nothing fits: too little RAM, or only shards that aren't where they are needed."""
    if shards is None or not fits(Needs(manifest, settings), kinds(capacities)):
        return too_large(manifest, capacities, settings)
    lacks = []
    for capacity in capacities:
        there = shards.get(capacity.board, frozenset())
        missing = [s for s in manifest.shards if s.name not in there]
        if missing:
            lacks.append(f"{capacity.board} lacks {_words(missing)}")
    nowhere = [s for s in manifest.shards if not any(s.name in names for names in shards.values())]
    text = f"{manifest.model} would fit into these boards' RAM, but the shards on their disks don't make a whole: "
    if nowhere:
        text += f"none has {_words(nowhere)}; "
    return f"{text}{'; '.join(lacks)}. Bring back the board that has them, or deploy to push them."


def _words(shards: Sequence[Shard]) -> str:
    """Shards for people: "the embedding, layers 0-4 and 7-8, the head"."""
    runs: list[list[int]] = []
    for layer in (s.layer for s in shards if s.kind == "layer"):
        if runs and runs[-1][1] == layer:
            runs[-1][1] = layer + 1
        else:
            runs.append([layer, layer + 1])
    words = ["layers " + " and ".join(f"{a}-{b}" for a, b in runs)] if runs else []
    kinds_there = {s.kind for s in shards}
    return ", ".join(
        [*(["the embedding"] * ("embedding" in kinds_there)), *words, *(["the head"] * ("head" in kinds_there))]
    )
