"""Chooses the next plan, from what boards offer now and hold already, and from whether a move is worth its bytes.

A plan stays as long as it can, unless another is a tenth faster (GAIN): weights take minutes to move, and measurements
vary. If it must go or another is worth it, the next plan is the one that loads the fewest bytes of all those nearly as
fast as the fastest (SLACK). SLACK is half of GAIN, so that a plan chosen for its few bytes isn't given up after a small
change of a measurement. With the same numbers, `next_plan` always keeps what it chose.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from edgellm.errors import PlanError
from edgellm.plan.fewest import Cost, Fewest
from edgellm.plan.fleet import Kind, kinds
from edgellm.plan.make import check_request, manifest_sha256, plan_of
from edgellm.plan.needs import Needs
from edgellm.plan.search import Cut, fastest, fits, search, usable_kinds
from edgellm.plan.short import too_large
from edgellm.plan.types import Capacity, Plan, Section, Settings
from edgellm.plan.words import ms, size
from edgellm.shards.manifest import Manifest, Shard

GAIN = 0.10  # the least share of the objective's time that a move must save
SLACK = GAIN / 2  # how much slower than the fastest a plan may be that loads fewer bytes

_MOST_NS = 1 << 80
_WHAT = {"latency": "a token", "throughput": "the slowest stage"}

Held = Mapping[str, tuple[int, int] | None]


@dataclass(frozen=True)
class Move:
    """What `next_plan` decided.

    `plan` is the plan to run; if not `changed` it is the current one itself, which may still have something to load
    (an agent that restarted). `moved` has, by board, the names of the shards it must load again (boards with none
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
    """Return the plan to run from now on: `current` itself unless something forces another or a move is worth it.

    `shards` has the names of the shard files on each board's disk, and a board gets only sections whose shards it has
    (None: any shard can be brought to any board). `held` has the section [start, end) of this manifest that each board
    has loaded (a board that isn't in it holds nothing; None: what `current` says). `epoch` is the new plan's number.
    PlanError, with what is missing, if no plan fits.
    """
    check_request(manifest, capacities, settings)
    objective = settings.objective
    same = current if current is not None and current.manifest_sha256 == manifest_sha256(manifest) else None
    if held is None:
        held = {s.board: (s.start, s.end) for s in same.sections} if same else {}
    held = {board: there for board, there in held.items() if there and 0 <= there[0] < there[1] <= manifest.num_layers}
    needs = Needs(manifest, settings)
    boards = usable_kinds(capacities, needs, shards)
    fewest = Fewest(
        manifest,
        needs,
        [k._replace(holds=held.get(c.board)) for k, c in zip(boards, capacities, strict=True)],
        objective,
    )
    now = _cuts(same, capacities) if same else None
    before = fewest.cost(now) if now else None
    best = fastest(needs, boards, objective)
    best_ns = fewest.cost(best).figure_ns if best else None
    force = _forced(current, manifest, capacities, settings, needs, boards, held)

    limit_ns = _MOST_NS if best_ns is None else int(best_ns * (1 + SLACK))
    if force is None:
        assert current is not None and before is not None, "only a plan that stands isn't forced to go"
        if best_ns is None or not _is_worth(before.figure_ns, best_ns):
            reason = _kept(objective, before.figure_ns, best_ns)
            return _move(current, False, reason, manifest, held, before, before, best_ns)
        limit_ns = min(limit_ns, _most_worth(before.figure_ns))
    if held:
        cuts = min(filter(None, (best, fewest.cuts(limit_ns, best_ns or 0))), key=fewest.cost, default=None)
    else:  # every plan loads the whole model once: one of the fastest, by room
        roomiest = search(needs, boards, objective)
        cuts = roomiest if roomiest and fewest.cost(roomiest).figure_ns <= limit_ns else best
    if cuts is None:
        raise _nothing_fits(manifest, capacities, settings, shards)
    plan, after = plan_of(cuts, manifest, capacities, settings, epoch), fewest.cost(cuts)
    reason = _moved(objective, force, before.figure_ns if before else None, after)
    return _move(plan, True, reason, manifest, held, before, after, after.figure_ns)


def to_load(manifest: Manifest, section: Section, held: tuple[int, int] | None) -> tuple[Shard, ...]:
    """Return the shards of a section that a board which holds section `held` has to load."""
    there = manifest.section_shards(*held) if held else ()
    return tuple(s for s in manifest.section_shards(section.start, section.end) if s not in there)


def _move(
    plan: Plan, changed: bool, reason: str, manifest: Manifest, held: Held, before: Cost | None, after: Cost,
    best_ns: int | None,
) -> Move:  # fmt: skip
    moved = {s.board: to_load(manifest, s, held.get(s.board)) for s in plan.sections}
    moved_bytes = sum(s.bytes for loads in moved.values() for s in loads)
    if moved_bytes and not changed:
        boards = [board for board, loads in moved.items() if loads]
        reason += f"; {' and '.join(boards)} load{'s' * (len(boards) == 1)} {size(moved_bytes)} again"
    return Move(
        plan=plan,
        changed=changed,
        reason=reason,
        gain=None if before is None or best_ns is None else _gain(before.figure_ns, best_ns),
        moved={board: tuple(s.name for s in loads) for board, loads in moved.items() if loads},
        moved_bytes=moved_bytes,
        token_s_before=before.token_ns / 1e9 if before else None,
        token_s=after.token_ns / 1e9,
    )


def _cuts(plan: Plan, capacities: Sequence[Capacity]) -> list[Cut] | None:
    """Return a plan as the searches count it; None if one of its boards is not there."""
    index = {c.board: i for i, c in enumerate(capacities)}
    if not all(board in index for board in plan.boards):
        return None
    return [Cut(index[s.board], s.start, s.end) for s in plan.sections]


def _gain(before_ns: int, after_ns: int) -> float:
    return (before_ns - after_ns) / before_ns if before_ns else 0.0


def _most_worth(before_ns: int) -> int:
    """Return the longest time that is a gain of GAIN."""
    return int(before_ns * (1 - GAIN))


def _is_worth(before_ns: int, after_ns: int) -> bool:
    return after_ns < before_ns and after_ns <= _most_worth(before_ns)


def _forced(
    current: Plan | None,
    manifest: Manifest,
    capacities: Sequence[Capacity],
    settings: Settings,
    needs: Needs,
    boards: Sequence[Kind],
    held: Held,
) -> str | None:
    """Return why the current plan can't stay, in words; None if it can."""
    if current is None:
        return "there was no plan"
    if current.manifest_sha256 != (sha256 := manifest_sha256(manifest)):
        return f"the shards are those of {manifest.model} ({sha256[:12]}), the plan was for {current.model} " + (
            f"({current.manifest_sha256[:12]})"
        )
    if current.settings != settings:
        old, new = vars(current.settings), vars(settings)
        changed = [f"{n} is {new[n]} instead of {old[n]}" for n in new if n != "draft" and new[n] != old[n]]
        if settings.draft != current.draft:
            names = [draft.model if draft else "none" for draft in (settings.draft, current.draft)]
            other = "another split of " if names[0] == names[1] else ""
            changed.append(f"the draft model is {names[0]} instead of {other}{names[1]}")
        return ", ".join(changed)
    by_name = {c.board: (c, kind) for c, kind in zip(capacities, boards, strict=True)}
    if gone := [s for s in current.sections if s.board not in by_name]:
        return "; ".join(f"board {s.board} is gone, which held {s}" for s in gone)
    for section in current.sections:
        capacity, kind = by_name[section.board]
        # What runs may use its headroom up: free RAM wavers, and that is what the headroom is for.
        runs = held.get(section.board) == (section.start, section.end)
        need = needs.least(section.start, section.end, kind.swaps)
        if need > (capacity.ram_bytes if runs else kind.usable_bytes):
            return (
                f"board {section.board} offers {size(capacity.ram_bytes)}, {size(kind.usable_bytes)} of it usable, "
                f"and its {section} need {size(need)}"
            )
        if kind.stored is not None and kind.stored[section.start] < section.end:
            return f"the disk of board {section.board} lacks some of the shards of its {section}"
    return None


def _kept(objective: str, before_ns: int, best_ns: int | None) -> str:
    what = _WHAT[objective]
    if best_ns is None or best_ns >= before_ns:
        return f"no faster plan was found: {what} takes {ms(before_ns / 1e9)}"
    return (
        f"{what} takes {ms(before_ns / 1e9)} and would take {ms(best_ns / 1e9)} with the fastest plan, "
        f"{_gain(before_ns, best_ns):.1%} less; a move is worth it from {GAIN:.0%} on"
    )


def _moved(objective: str, force: str | None, before_ns: int | None, after: Cost) -> str:
    load = f"{size(after.load_bytes)} to load" if after.load_bytes else "nothing to load"
    time = f"{_WHAT[objective]} takes {ms(after.figure_ns / 1e9)}"
    if before_ns is not None:
        time += f" instead of {ms(before_ns / 1e9)}"
    if force is None and before_ns is not None:
        return f"{time}, {_gain(before_ns, after.figure_ns):.1%} less; {load}"
    return f"{force}; {load}, {time}"


def _nothing_fits(
    manifest: Manifest, capacities: Sequence[Capacity], settings: Settings, shards: Mapping[str, Set[str]] | None
) -> PlanError:
    """Return why nothing fits: too little RAM, or only shards that aren't where they are needed."""
    needs = Needs(manifest, settings)
    if shards is None or not fits(needs, kinds(capacities, needs)):
        return too_large(manifest, capacities, settings)
    lacks = []
    for capacity in capacities:
        there = shards.get(capacity.board, frozenset())
        missing = [s for s in manifest.shards if s.name not in there]
        if missing:
            lacks.append(f"{capacity.board} lacks {_words(missing)}")
    nowhere = [s for s in manifest.shards if not any(s.name in shards.get(c.board, ()) for c in capacities)]
    text = (
        f"{manifest.model} would fit into the RAM of these boards, but the shards on their disks don't make up the "
        "model: "
    )
    if nowhere:
        text += f"no board has {_words(nowhere)}; "
    brief = f"no board has {_words(nowhere)}" if nowhere else "the shards on their disks don't make up the model"
    return PlanError(f"{text}{'; '.join(lacks)}. Bring back the board that has them, or deploy to push them.", brief)


def _words(shards: Sequence[Shard]) -> str:
    """Return shards for people: "the embedding, layers 0-4 and 7-8, the head"."""
    runs: list[list[int]] = []
    for layer in (s.layer for s in shards if s.layer is not None):
        if runs and runs[-1][1] == layer:
            runs[-1][1] = layer + 1
        else:
            runs.append([layer, layer + 1])
    words = ["layers " + " and ".join(f"{a}-{b}" for a, b in runs)] if runs else []
    kinds_there = {s.kind for s in shards}
    return ", ".join(
        [*(["the embedding"] * ("embedding" in kinds_there)), *words, *(["the head"] * ("head" in kinds_there))]
    )
