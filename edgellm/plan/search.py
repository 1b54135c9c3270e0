"""The exact search for sections: any subset of the boards, in any order, cut at any layer.

Everything is counted in integers (bytes, nanoseconds), so that ties are ties. Boards of one kind (same numbers) are
interchangeable; a state of the search is how many boards of each kind are in use, at most `MAX_STATES` of them
(12 boards that all differ, or any number in a few kinds).

Beyond that the search is a heuristic: boards whose RAM and speed differ by less than some per cent are planned as if
they all were the weakest of them, with as few per cent as it takes. Such a plan always fits, yet may not be the best.
"""

from collections import deque
from collections.abc import Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from edgellm.plan.needs import Needs

MAX_STATES = 4096

_SHARDS_PERCENT = 100  # from here on boards with different shards on their disks count as alike
_INFINITE = 1 << 200
_STAGE = 1  # in a cost, below the nanoseconds: of two equally fast plans the one with fewer stages wins
_NS = 1 << 12


class Kind(NamedTuple):
    """A board in integers: bytes it may use, and its times for a layer, for the head, for a hop.

    `stored` has for every start the furthest end of a section whose shards lie on the board's disk; None: any shard can
    be brought to it.
    """

    usable_bytes: int
    layer_ns: int
    head_ns: int
    hop_ns: int
    stored: tuple[int, ...] | None = None

    def stage_ns(self, num_layers: int, has_head: bool, alone: bool = False) -> int:
        """A token's time at this board, the hop out of it included unless it is the only stage."""
        return num_layers * self.layer_ns + has_head * self.head_ns + (not alone) * self.hop_ns


class Cut(NamedTuple):
    """Layers [start, end) for the board at `index` in the list of boards."""

    index: int
    start: int
    end: int


def search(needs: Needs, boards: Sequence[Kind], objective: str) -> list[Cut] | None:
    """The best sections in pipeline order, or None if none fit.

    "latency" minimises the time of one token through all stages, then the number of boards. "throughput" minimises the
    slowest stage, then the time of one token, then the number of boards. Then boards listed earlier come first, and
    layers are spread as evenly as all this allows.
    """
    n = needs.num_layers
    fleet = Fleet.of(needs, boards)
    alone = [
        (board.stage_ns(n, True, alone=True), index)
        for index, board in enumerate(boards)
        if _reach(needs, board, None)[0] == n
    ]
    limit = None
    if objective == "throughput":
        limit = _slowest_stage(needs, fleet)
        if alone and (limit is None or min(alone)[0] <= limit):
            return [Cut(min(alone)[1], 0, n)]
    order, cost = _cheapest_order(needs, fleet, limit)
    if alone and objective == "latency" and (order is None or min(alone)[0] * _NS + _STAGE <= cost):
        return [Cut(min(alone)[1], 0, n)]
    if order is None and fleet.is_coarse:
        order = _largest_first(needs, boards)
    if order is None:
        return None
    return _even_cuts(needs, boards, order, limit)


def fits(needs: Needs, boards: Sequence[Kind]) -> bool:
    """Whether any sections fit on these boards (beyond MAX_STATES: whether this search would find them)."""
    fleet = Fleet.of(needs, boards)
    return _covers_all(needs, fleet, None) or (fleet.is_coarse and _largest_first(needs, boards) is not None)


def is_exact(needs: Needs, boards: Sequence[Kind]) -> bool:
    """Whether a search over these boards is exact."""
    return not Fleet.of(needs, boards).is_coarse


def token_ns_using_all(needs: Needs, boards: Sequence[Kind]) -> int | None:
    """The fastest token when every board holds at least one layer; None if that doesn't fit. For two boards or more."""
    fleet = Fleet.of(needs, boards)
    if sum(fleet.counts) < len(boards) or len(boards) > needs.num_layers:
        return None
    cost = _cheapest(needs, fleet, None)[-1][0]
    return cost // _NS if cost < _INFINITE else None


class Fleet(NamedTuple):
    """The boards that hold at least one layer, by kind."""

    kinds: list[Kind]
    members: list[list[int]]  # indices of the boards of each kind, ascending
    counts: list[int]
    strides: list[int]  # a state is sum(used[k] * strides[k])
    is_coarse: bool

    @classmethod
    def of(cls, needs: Needs, boards: Sequence[Kind]) -> "Fleet":
        useful = [i for i, board in enumerate(boards) if _holds_a_layer(needs, board)]
        groups = _alike(boards, useful, 0)
        is_coarse = False
        percent = 1
        while len(groups) > 1 and prod(len(g) + 1 for g in groups) > MAX_STATES:
            groups = _alike(boards, useful, percent)
            is_coarse = True
            percent *= 2
        counts = [len(g) for g in groups]
        return cls(
            kinds=[_weakest([boards[i] for i in g]) for g in groups],
            members=groups,
            counts=counts,
            strides=[prod(c + 1 for c in counts[k + 1 :]) for k in range(len(counts))],
            is_coarse=is_coarse,
        )

    def states(self):
        """All (state, boards in use of each kind), each after those it contains; (0, none) comes first."""
        return enumerate(product(*(range(c + 1) for c in self.counts)))


def _alike(boards: Sequence[Kind], indices: list[int], percent: int) -> list[list[int]]:
    """Group boards: equal ones for 0 per cent, else those near the first of their group in RAM and layer time."""
    groups: list[list[int]] = []
    for i in indices:
        for group in groups:
            a, b = boards[group[0]], boards[i]
            near = percent and _near(a[0], b[0], percent) and _near(a[1], b[1], percent)
            if a == b or (near and (a.stored == b.stored or percent > _SHARDS_PERCENT)):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _near(a: int, b: int, percent: int) -> bool:
    return 100 * abs(a - b) <= percent * min(a, b) or percent > 1_000_000


def _weakest(boards: list[Kind]) -> Kind:
    stored = [b.stored for b in boards if b.stored is not None]
    return Kind(
        min(b.usable_bytes for b in boards),
        *(max(b[i] for b in boards) for i in (1, 2, 3)),
        stored=tuple(map(min, *stored)) if len(stored) > 1 else stored[0] if stored else None,
    )


def _holds_a_layer(needs: Needs, board: Kind) -> bool:
    return any(end > start for start, end in enumerate(_reach(needs, board, None)))


def _reach(needs: Needs, board: Kind, limit: int | None) -> list[int]:
    """For every start the furthest end that the board holds (within `limit` ns a stage); the start itself if none.

    Every end in between fits too, and a later start never reaches less far.
    """
    n = needs.num_layers
    reach = []
    end = 0
    for start in range(n):
        end = max(end, start)
        stored = n if board.stored is None else board.stored[start]
        while end < stored and needs.total(start, end + 1) <= board.usable_bytes:
            if limit is not None and board.stage_ns(end + 1 - start, end + 1 == n) > limit:
                break
            end += 1
        reach.append(end)
    return reach


def _covers_all(needs: Needs, fleet: Fleet, limit: int | None) -> bool:
    """Whether sections fit. Getting further with the same boards is never worse, so one number a state is enough."""
    n = needs.num_layers
    reaches = [[*_reach(needs, kind, limit), n] for kind in fleet.kinds]
    furthest = []
    for state, used in fleet.states():
        furthest.append(
            max((reaches[k][furthest[state - fleet.strides[k]]] for k, count in enumerate(used) if count), default=0)
        )
        if furthest[-1] == n:
            return True
    return False


def _slowest_stage(needs: Needs, fleet: Fleet) -> int | None:
    """The smallest possible time of the slowest of several stages in ns; None if nothing fits."""
    times = {
        kind.stage_ns(layers, has_head)
        for kind in fleet.kinds
        for layers in range(1, needs.num_layers + 1)
        for has_head in (False, True)
    }
    times = sorted(times)
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
    """cost[state][start]: the cheapest way for exactly these boards to hold [start, num_layers), hops included.

    The board put in front takes [start, end) for any end in (start, reach[start]]. Its cost is linear in the number of
    layers, so the best end is the minimum over a sliding window: one pass over the layers a state and kind.
    """
    n = needs.num_layers
    reaches = [_reach(needs, kind, limit) for kind in fleet.kinds]
    costs = [[_INFINITE] * n + [0]]
    for state, used in fleet.states():
        if state == 0:
            continue
        row = [_INFINITE] * (n + 1)
        for k, count in enumerate(used):
            if not count:
                continue
            rest, reach, kind = costs[state - fleet.strides[k]], reaches[k], fleet.kinds[k]
            layer, fixed = kind.layer_ns * _NS, kind.hop_ns * _NS + _STAGE
            window: deque[tuple[int, int]] = deque()  # (cost up to a constant, end): ends fall, costs rise
            for start in range(n - 1, -1, -1):
                end = start + 1
                if rest[end] < _INFINITE:
                    cost = rest[end] + end * layer + (kind.head_ns * _NS if end == n else 0)
                    while window and window[-1][0] >= cost:
                        window.pop()
                    window.append((cost, end))
                while window and window[0][1] > reach[start]:
                    window.popleft()
                if window:
                    row[start] = min(row[start], window[0][0] - start * layer + fixed)
        costs.append(row)
    return costs


def _cheapest_order(needs: Needs, fleet: Fleet, limit: int | None) -> tuple[list[int] | None, int]:
    """The cheapest plan of several stages: indices of its boards in pipeline order, and its cost.

    Of equally cheap ones that whose first board is listed first, then whose second is, and so on.
    """
    costs = _cheapest(needs, fleet, limit)
    best = min((costs[state][0] for state, used in fleet.states() if sum(used) > 1), default=_INFINITE)
    if best >= _INFINITE:
        return None, best
    n = needs.num_layers
    reaches = [_reach(needs, kind, limit) for kind in fleet.kinds]
    digits = dict(fleet.states())
    frontier = {(state, 0) for state, used in digits.items() if sum(used) > 1 and costs[state][0] == best}
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
                    stage = kind.stage_ns(end - start, end == n) * _NS + _STAGE
                    if costs[state][start] == stage + costs[before][end]:
                        following.setdefault(k, set()).add((before, end))
        k = min(following, key=lambda k: fleet.members[k][taken[k]])
        order.append(fleet.members[k][taken[k]])
        taken[k] += 1
        frontier = following[k]
    return order, best


def _even_cuts(needs: Needs, boards: Sequence[Kind], order: list[int], limit: int | None) -> list[Cut]:
    """Where to cut for boards in this order: least total time, then least sum of the stages' squares (most even)."""
    n = needs.num_layers
    if len(order) == 1:
        return [Cut(order[0], 0, n)]
    best: list[tuple[int, int, int] | None] = [None] * n + [(0, 0, n)]  # by start: total, squares, end
    stages = []
    for index in reversed(order):
        reach = _reach(needs, boards[index], limit)
        row: list[tuple[int, int, int] | None] = [None] * (n + 1)
        for start in range(n):
            options = []
            for end in range(start + 1, reach[start] + 1):
                if (rest := best[end]) is not None:
                    stage = boards[index].stage_ns(end - start, end == n)
                    options.append((rest[0] + stage, rest[1] + stage * stage, -end))
            if options:
                total, squares, end = min(options)
                row[start] = (total, squares, -end)
        stages.append(row)
        best = row
    cuts = []
    start = 0
    for index, row in zip(order, reversed(stages), strict=True):
        assert row[start] is not None, "the search found an order that has no cuts"
        end = row[start][2]
        cuts.append(Cut(index, start, end))
        start = end
    return cuts


def _largest_first(needs: Needs, boards: Sequence[Kind]) -> list[int] | None:
    """An order that fits, filling the largest boards first; None if this finds none."""
    n = needs.num_layers
    order = []
    reached = 0
    for index in sorted(range(len(boards)), key=lambda i: -boards[i].usable_bytes):
        end = _reach(needs, boards[index], None)[reached]
        if end > reached:
            order.append(index)
            reached = end
        if reached == n:
            return order
    return None
