"""The exact search for sections: any subset of the boards, in any order, cut at any layer.

Everything is counted in integers (bytes, nanoseconds), so that ties are ties. Beyond MAX_STATES (12 boards that all
differ, or any number in a few kinds) the search is a heuristic: boards whose RAM and speed differ by less than some
per cent are planned as if they all were the weakest of them, with as few per cent as it takes. Such a plan always fits,
yet may not be the best.
"""

from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

from edgellm.plan.fleet import INFINITE, NS, STAGE, Fleet, Kind, cheapest, kinds, reach, time_offers, turns_of
from edgellm.plan.needs import Needs
from edgellm.plan.types import Capacity

ALIKE = 50  # plans are as fast as each other if they differ by a fiftieth, which is less than measurements vary
MAX_ROOM_STATES = 512  # beyond (10 boards that all differ), the fastest plan is taken however full its boards are
FULLNESS_STEPS = 16  # fullness is compared in sixteenths of what a board may use, because free RAM wavers


class Cut(NamedTuple):
    """Layers [start, end) for a board, given as its index in the list of boards."""

    board: int
    start: int
    end: int


def search(needs: Needs, boards: Sequence[Kind], objective: str) -> list[Cut] | None:
    """Return the best sections in pipeline order, or None if none fit.

    "latency" minimises the time of one token through all stages, then the number of boards. "throughput" minimises the
    longest turn of a stage (costs.py), then the time of one token, then the number of boards. Of plans that are alike
    in this (ALIKE), the one wins whose fullest board is least full: a small board isn't filled beside an idle large
    one. Then boards listed earlier come first, and layers are spread as evenly as all this allows.
    """
    best = fastest(needs, boards, objective)
    full = any(board.swaps for board in boards)  # of plans that wait for experts none has room
    if best is None or full or Fleet.of(needs, boards).num_states > MAX_ROOM_STATES:
        return best
    return _roomiest(needs, boards, objective, best)


def _roomiest(needs: Needs, boards: Sequence[Kind], objective: str, best: list[Cut]) -> list[Cut]:
    """Return, of the plans that are as fast as `best` with no more stages, one whose fullest board is least full.

    Boards of which only a share may be used bound the fullness, so each step is a search over such boards.
    """
    figures = _figures(boards, objective, best)
    limits = [figure + figure // ALIKE for figure in figures]
    stages, high = len(best), _fullness(needs, boards, best)
    low = max(0, FULLNESS_STEPS * needs.total(0, needs.num_layers) // max(1, sum(b.usable_bytes for b in boards)) - 1)
    while low + 1 < high:
        middle = (low + high) // 2
        shares = [b._replace(usable_bytes=b.usable_bytes * middle // FULLNESS_STEPS) for b in boards]
        cuts = fastest(needs, shares, objective, slowest_ns=limits[0], most_stages=stages)
        found = limits if cuts is None else _figures(boards, objective, cuts)
        if cuts is not None and all(figure <= limit for figure, limit in zip(found, limits, strict=True)):
            best, high = cuts, _fullness(needs, boards, cuts)
        else:
            low = middle
    return best


def _figures(boards: Sequence[Kind], objective: str, cuts: Sequence[Cut]) -> tuple[int, int]:
    """Return what plans are compared by first, and a token's time, in ns."""
    alone = len(cuts) == 1
    token = sum(boards[c.board].token.of(c.start, c.end, alone) for c in cuts)
    longest = max(boards[c.board].turn.of(c.start, c.end, alone) for c in cuts)
    return longest if objective == "throughput" else token, token


def _fullness(needs: Needs, boards: Sequence[Kind], cuts: Sequence[Cut]) -> int:
    """Return how full the fullest board is, in FULLNESS_STEPS, rounded up."""
    return max(-(-FULLNESS_STEPS * needs.total(c.start, c.end) // max(1, boards[c.board].usable_bytes)) for c in cuts)


def fastest(
    needs: Needs, boards: Sequence[Kind], objective: str, slowest_ns: int | None = None, most_stages: int | None = None
) -> list[Cut] | None:
    """Return the fastest sections, however full the boards get; None if none fit.

    With `slowest_ns`, the "throughput" of any turns up to that is good enough.
    """
    n = needs.num_layers
    fleet = Fleet.of(needs, boards)
    alone = [(board, index) for index, board in enumerate(boards) if reach(needs, board, None)[0] == n]
    limit = slowest_ns if objective == "throughput" else None
    if objective == "throughput" and slowest_ns is None:
        turns = [board.turn.of(0, n, alone=True) for board, _ in alone]
        several = _longest_turn(needs, fleet)
        limit = min([*turns, *([] if several is None else [several])], default=None)
    if limit is not None:
        alone = [(board, index) for board, index in alone if board.turn.of(0, n, alone=True) <= limit]
    order, cost = _cheapest_order(needs, fleet, limit, most_stages or needs.num_layers)
    if alone:
        token, index = min((board.token.of(0, n, alone=True), index) for board, index in alone)
        if order is None or token * NS + STAGE <= cost:
            return [Cut(index, 0, n)]
    if order is None and fleet.is_coarse and slowest_ns is None:
        order = _largest_first(needs, boards)
    if order is None:
        return None
    return _even_cuts(needs, boards, order, limit)


def fits(needs: Needs, boards: Sequence[Kind]) -> bool:
    """Return whether any sections fit on these boards (beyond MAX_STATES: whether this search would find them)."""
    fleet = Fleet.of(needs, boards)
    return _covers_all(needs, fleet, None) or (fleet.is_coarse and _largest_first(needs, boards) is not None)


def usable_kinds(
    capacities: Sequence[Capacity], needs: Needs, shards: Mapping[str, Set[str]] | None = None
) -> list[Kind]:
    """Return the capacities as a search counts them. Only if nothing fits on them, and the settings allow it, experts
    may take more RAM than there is."""
    boards = kinds(capacities, needs, shards)
    return boards if fits(needs, boards) else allowed_kinds(capacities, needs, shards)


def allowed_kinds(
    capacities: Sequence[Capacity], needs: Needs, shards: Mapping[str, Set[str]] | None = None
) -> list[Kind]:
    """Return the capacities as a search counts them, with experts that may take more RAM than there is if the settings
    allow it."""
    swaps = needs.settings.swap_experts and any(needs.manifest.expert_bytes)
    return kinds(capacities, needs, shards, swaps=swaps)


def is_exact(needs: Needs, boards: Sequence[Kind]) -> bool:
    """Return whether a search over these boards is exact."""
    return not Fleet.of(needs, boards).is_coarse


def token_ns_using_all(needs: Needs, boards: Sequence[Kind]) -> int | None:
    """Return the fastest token when every board holds at least one layer; None if that doesn't fit. For two boards or
    more."""
    fleet = Fleet.of(needs, boards)
    if sum(fleet.counts) < len(boards) or len(boards) > needs.num_layers:
        return None
    cost = _cheapest(needs, fleet, None)[-1][0]
    return cost // NS if cost < INFINITE else None


def _covers_all(needs: Needs, fleet: Fleet, limit: int | None) -> bool:
    """Return whether sections fit. Getting further with the same boards is never worse, so one number per state is
    enough."""
    n = needs.num_layers
    reaches = [[*reach(needs, kind, limit), n] for kind in fleet.kinds]
    furthest: list[int] = []
    for state, used in fleet.states():
        furthest.append(
            max((reaches[k][furthest[state - fleet.strides[k]]] for k, count in enumerate(used) if count), default=0)
        )
        if furthest[-1] == n:
            return True
    return False


def _longest_turn(needs: Needs, fleet: Fleet) -> int | None:
    """Return the smallest possible longest turn of several stages in ns; None if nothing fits."""
    times = sorted(turns_of(fleet.kinds))
    if not times or not _covers_all(needs, fleet, times[-1]):
        return None
    low, high = 0, len(times) - 1
    while low < high:
        middle = (low + high) // 2
        if _covers_all(needs, fleet, times[middle]):
            high = middle
        else:
            low = middle + 1
    return times[high]


def _cheapest(needs: Needs, fleet: Fleet, limit: int | None) -> list[list[int]]:
    """Return cost[state][start]: the least time in which exactly these boards can hold [start, num_layers), hops
    included."""
    offers = [time_offers(needs, kind, limit) for kind in fleet.kinds]
    return cheapest(needs.num_layers, fleet.choices(), offers)


def _cheapest_order(needs: Needs, fleet: Fleet, limit: int | None, most: int) -> tuple[list[int] | None, int]:
    """Return the cheapest plan of 2 to `most` stages: indices of its boards in pipeline order, and its cost.

    Of equally cheap ones that whose first board is listed first, then whose second is, and so on.
    """
    costs = _cheapest(needs, fleet, limit)
    states = [state for state, used in fleet.states() if 1 < sum(used) <= most]
    best = min((costs[state][0] for state in states), default=INFINITE)
    if best >= INFINITE:
        return None, best
    n = needs.num_layers
    reaches = [reach(needs, kind, limit) for kind in fleet.kinds]
    digits = dict(fleet.states())
    frontier = {(state, 0) for state in states if costs[state][0] == best}
    order: list[int] = []
    taken = [0] * len(fleet.kinds)
    while (0, n) not in frontier:
        following: dict[int, set[tuple[int, int]]] = {}
        for state, start in frontier:
            for k, kind in enumerate(fleet.kinds):
                if not digits[state][k]:
                    continue
                before = state - fleet.strides[k]
                for end in range(start + 1, reaches[k][start] + 1):
                    stage = kind.token.of(start, end) * NS + STAGE
                    if costs[state][start] == stage + costs[before][end]:
                        following.setdefault(k, set()).add((before, end))
        k = min(following, key=lambda k: fleet.members[k][taken[k]])
        order.append(fleet.members[k][taken[k]])
        taken[k] += 1
        frontier = following[k]
    return order, best


def _even_cuts(needs: Needs, boards: Sequence[Kind], order: list[int], limit: int | None) -> list[Cut]:
    """Return where to cut for boards in this order: least total time, then least sum of the stages' squares (most
    even)."""
    n = needs.num_layers
    if len(order) == 1:
        return [Cut(order[0], 0, n)]
    best: list[tuple[int, int, int] | None] = [None] * n + [(0, 0, n)]  # by start: total, squares, end
    stages = []
    for index in reversed(order):
        ends = reach(needs, boards[index], limit)
        row: list[tuple[int, int, int] | None] = [None] * (n + 1)
        for start in range(n):
            options = []
            for end in range(start + 1, ends[start] + 1):
                if (rest := best[end]) is not None:
                    stage = boards[index].token.of(start, end)
                    options.append((rest[0] + stage, rest[1] + stage * stage, -end))
            if options:
                total, squares, end = min(options)
                row[start] = (total, squares, -end)
        stages.append(row)
        best = row
    cuts = []
    start = 0
    for index, row in zip(order, reversed(stages), strict=True):
        chosen = row[start]
        assert chosen is not None, "the search found an order that has no cuts"
        end = chosen[2]
        cuts.append(Cut(index, start, end))
        start = end
    return cuts


def _largest_first(needs: Needs, boards: Sequence[Kind]) -> list[int] | None:
    """Return an order that fits, filling the largest boards first; None if this finds none."""
    n = needs.num_layers
    order = []
    reached = 0
    for index in sorted(range(len(boards)), key=lambda i: -boards[i].usable_bytes):
        end = reach(needs, boards[index], None)[reached]
        if end > reached:
            order.append(index)
            reached = end
        if reached == n:
            return order
    return None
