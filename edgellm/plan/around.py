"""Plans around pairs of boards that can't reach each other: another order of the boards, or without one of them."""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import permutations

from edgellm.errors import PlanError
from edgellm.plan.fleet import Kind
from edgellm.plan.make import plan_of
from edgellm.plan.needs import Needs
from edgellm.plan.rebalance import GAIN, SLACK, Held, Move, next_plan, to_load
from edgellm.plan.search import Cut, usable_kinds
from edgellm.plan.types import Capacity, Plan, Settings
from edgellm.plan.words import ms, size
from edgellm.shards.manifest import Manifest

Pair = tuple[str, str]  # (who dials, whom)

_MOST_ORDERS = 5040  # tried at most: all of 7 boards
_MOST_LEFT_OUT = 24  # sets of boards to leave out that are tried at most


def links(plan: Plan) -> frozenset[Pair]:
    """Return the pairs (dialler, board) that an answer by this plan needs."""
    boards = plan.boards
    return frozenset() if len(boards) == 1 else frozenset(zip(boards, [*boards[1:], boards[0]], strict=True))


def plan_around(
    manifest: Manifest,
    current: Plan | None,
    capacities: Sequence[Capacity],
    settings: Settings,
    epoch: int,
    broken: Set[Pair],
    *,
    shards: Mapping[str, Set[str]] | None = None,
    held: Held | None = None,
) -> Move:
    """Return the next plan as `next_plan` does, but one that needs none of the `broken` pairs.

    Of the plans nearly as fast as the fastest that was found, it is the one that loads the fewest bytes. Raises
    PlanError, with the pairs, if none was found.
    """

    def planned(left_out: Set[str]) -> Move:
        there = [c for c in capacities if c.board not in left_out]
        return next_plan(manifest, current, there, settings, epoch, shards=shards, held=held)

    move = planned(frozenset())
    in_the_way = sorted(links(move.plan) & broken)
    if not in_the_way:
        return move
    judge = _Judge(manifest, capacities, settings, shards, held)
    kept = None
    if current is not None and not links(current) & broken and {c.board for c in capacities} >= set(current.boards):
        stays = planned({c.board for c in capacities} - set(current.boards))
        kept = None if stays.changed else stays
    why = "; ".join(f"board {a} can't reach board {b}" for a, b in in_the_way)
    found = [judge.move(plan, why) for plan in judge.reordered(move.plan, epoch, broken)]
    error: PlanError | None = None
    waiting: list[frozenset[str]] = [frozenset({b}) for pair in in_the_way for b in pair]
    tried: set[frozenset[str]] = set()
    while waiting and len(tried) < _MOST_LEFT_OUT:  # the fewest boards first
        left_out = waiting.pop(0)
        if left_out in tried:
            continue
        tried.add(left_out)
        try:
            less = planned(left_out)
        except PlanError as e:
            error = error or e
            continue
        if worse := sorted(links(less.plan) & broken):
            waiting += [left_out | {b} for pair in worse for b in pair]
        elif less.changed:
            found.append(judge.move(less.plan, why))
        else:
            found.append(less)
    if kept is not None:
        most = judge.figure_ns(kept.plan) * (1 - GAIN)
        found = [m for m in found if judge.figure_ns(m.plan) <= most]
        if not found:
            return kept
    if not found:
        without = f" {error}" if error else ""
        raise PlanError(f"{why}, and no plan without that way fits.{without}", f"{why}, and no other plan fits")
    limit = min(judge.figure_ns(m.plan) for m in found) * (1 + SLACK)
    return min((m for m in found if judge.figure_ns(m.plan) <= limit), key=lambda m: (m.moved_bytes, m.token_s))


class _Judge:
    """Compares plans for the same boards, and knows which of them fit."""

    def __init__(
        self, manifest: Manifest, capacities: Sequence[Capacity], settings: Settings,
        shards: Mapping[str, Set[str]] | None, held: Held | None,
    ):  # fmt: skip
        self._manifest, self._capacities, self._settings, self._held = manifest, capacities, settings, held or {}
        self._needs = Needs(manifest, settings)
        boards = usable_kinds(capacities, self._needs, shards)
        self._kinds = {c.board: k for c, k in zip(capacities, boards, strict=True)}
        self._index = {c.board: i for i, c in enumerate(capacities)}

    def figure_ns(self, plan: Plan) -> int:
        """Return what the objective compares: the slowest stage, or all together."""
        alone = len(plan.sections) == 1
        turns = [self._kinds[s.board].turn.of(s.start, s.end, alone) for s in plan.sections]
        return max(turns) if plan.objective == "throughput" else self._token_ns(plan)

    def move(self, plan: Plan, why: str) -> Move:
        """Return the move to a plan that was chosen because of `why`."""
        moved = {s.board: to_load(self._manifest, s, self._held.get(s.board)) for s in plan.sections}
        moved_bytes = sum(s.bytes for loads in moved.values() for s in loads)
        token_s = self._token_ns(plan) / 1e9
        load = f"{size(moved_bytes)} to load" if moved_bytes else "nothing to load"
        return Move(
            plan=plan, changed=True, reason=f"{why}; {load}, a token takes {ms(token_s)}", gain=None,
            moved={board: tuple(s.name for s in loads) for board, loads in moved.items() if loads},
            moved_bytes=moved_bytes, token_s_before=None, token_s=token_s,
        )  # fmt: skip

    def reordered(self, plan: Plan, epoch: int, broken: Set[Pair]) -> Iterator[Plan]:
        """Yield the plan with its boards in other orders, each with as many layers as before, where that fits."""
        layers = {s.board: s.num_layers for s in plan.sections}
        for tried, order in enumerate(permutations(plan.boards)):
            if tried >= _MOST_ORDERS:
                return
            if not broken.isdisjoint(zip(order, [*order[1:], order[0]], strict=True)):
                continue
            cuts, start = [], 0
            for board in order:
                cuts.append(Cut(self._index[board], start, start + layers[board]))
                start += layers[board]
            if all(self._fits(self._kinds[b], c) for b, c in zip(order, cuts, strict=True)):
                yield plan_of(cuts, self._manifest, self._capacities, self._settings, epoch)

    def _fits(self, kind: Kind, cut: Cut) -> bool:
        stored = kind.stored is None or kind.stored[cut.start] >= cut.end
        return stored and self._needs.least(cut.start, cut.end, kind.swaps) <= kind.usable_bytes

    def _token_ns(self, plan: Plan) -> int:
        alone = len(plan.sections) == 1
        return sum(self._kinds[s.board].token.of(s.start, s.end, alone) for s in plan.sections)
