"""Boards as integers, for the searches: by kind, how far each reaches, and the least cost of the rest.

Boards of one kind (same numbers) are interchangeable; a state of a search is how many boards of each kind are in use.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import combinations, product
from math import prod
from typing import NamedTuple

from edgellm.plan.costs import PROMPT_TOKENS, group_size, layer_sums, load_of
from edgellm.plan.needs import Needs, usable_bytes
from edgellm.plan.swap import Over, over, touched_share
from edgellm.plan.types import Capacity
from edgellm.shards.manifest import Manifest

MAX_STATES = 4096
INFINITE = 1 << 200
STAGE = 1  # in a cost of time, below the nanoseconds: of two equally fast plans the one with fewer stages wins
NS = 1 << 12

_SHARDS_PERCENT = 100  # from here on boards with different shards on their disks count as alike

Choices = list[list[tuple[int, int]]]  # by state: (kind that is put in front, state of what follows it)


class Times(NamedTuple):
    """What sections take on a board in ns, as sums of prefixes: `layers[end] - layers[start]`, and the head's time if
    it has the head, and a hop's unless it is the only section. With `over`, also the time that it waits for experts
    that don't fit into RAM."""

    layers: tuple[int, ...]
    head: int
    hop: int
    over: Over | None = None

    def of(self, start: int, end: int, alone: bool = False) -> int:
        """Return the time of section [start, end), the hop out of it included unless it is the only one."""
        layers = self.layers
        waits = 0 if self.over is None else self.over.of(start, end)
        return layers[end] - layers[start] + (end == len(layers) - 1) * self.head + (not alone) * self.hop + waits


class Kind(NamedTuple):
    """A board in integers: bytes it may use, and what sections take.

    `token` is the time of one token that is decoded alone, `turn` what "throughput" compares: how long a group of
    answers keeps the board busy (costs.py). For "latency" it is the same as `token`. `stored` has for every start the
    furthest end of a section whose shards lie on the board's disk; None: any shard can be brought to it. `holds` is the
    section that it has loaded; only the search for few bytes looks at that. With `swaps`, experts may take more than
    `usable_bytes`.
    """

    usable_bytes: int
    token: Times
    turn: Times
    stored: tuple[int, ...] | None = None
    holds: tuple[int, int] | None = None
    swaps: bool = False


class Fleet(NamedTuple):
    """The boards that hold at least one layer, by kind."""

    kinds: list[Kind]
    members: list[list[int]]  # indices of the boards of each kind, ascending
    counts: list[int]
    strides: list[int]  # a state is sum(used[k] * strides[k])
    is_coarse: bool

    @classmethod
    def of(cls, needs: Needs, boards: Sequence[Kind], most: int | None = None) -> "Fleet":
        """Return the fleet of these boards in at most `most` states (MAX_STATES), coarse if that takes it."""
        useful = [i for i, board in enumerate(boards) if _holds_a_layer(needs, board)]
        groups = _alike(boards, useful, 0)
        is_coarse = False
        percent = 1
        while len(groups) > 1 and prod(len(g) + 1 for g in groups) > (MAX_STATES if most is None else most):
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

    @property
    def num_states(self) -> int:
        """How many states there are."""
        return prod(c + 1 for c in self.counts)

    def states(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield all (state, boards in use of each kind), each after those it contains; (0, none) comes first."""
        return enumerate(product(*(range(c + 1) for c in self.counts)))

    def choices(self) -> Choices:
        """Return, by state, each kind that can be put in front, and the state without it."""
        return [
            [(k, state - self.strides[k]) for k, count in enumerate(used) if count] for state, used in self.states()
        ]


def kinds(
    capacities: Sequence[Capacity], needs: Needs, shards: Mapping[str, Set[str]] | None = None, *, swaps: bool = False
) -> list[Kind]:
    """Return the capacities as the search counts them for this model and these settings. With `shards`, the names of
    the shard files on each board's disk, a board gets only sections whose shards it has. With `swaps`, experts may take
    more RAM than there is, and tokens wait for them."""
    manifest, settings = needs.manifest, needs.settings
    loads = [load_of(c, capacities) for c in capacities]
    group = group_size(settings.slots, len(capacities), manifest.num_layers)
    found = []
    for capacity, load in zip(capacities, loads, strict=True):
        hop = round(capacity.hop_s * 1e9)

        def times(layer_s: float, head_s: float, share: float, capacity: Capacity = capacity, hop: int = hop) -> Times:
            waits = over(needs, capacity, share) if swaps else None
            return Times(tuple(layer_sums(manifest, round(layer_s * 1e9))), round(head_s * 1e9), hop, waits)

        turn = token = times(capacity.layer_s, capacity.head_s, touched_share(manifest))
        if settings.objective == "throughput":
            # A chunk's tokens wait together, and so do those of a group.
            share = PROMPT_TOKENS * group * touched_share(manifest, settings.chunk) / settings.chunk
            turn = times(
                load.turn_layer_s(group), load.turn_head_s(group), share + touched_share(manifest, group)
            )  # fmt: skip
        there = None if shards is None else stored(manifest, shards.get(capacity.board, frozenset()))
        found.append(Kind(usable_bytes(capacity.ram_bytes), token, turn, there, swaps=swaps))
    return found


def stored(manifest: Manifest, names: Set[str]) -> tuple[int, ...]:
    """Return for every start the furthest end of a section whose shards are all among `names`; the start itself if
    none."""
    n = manifest.num_layers
    ends = []
    end = n
    for start in range(n - 1, -1, -1):
        if manifest.shards[1 + start].name not in names:
            end = start
        elif start == n - 1 and manifest.head.name not in names:
            end = n - 1
        ends.append(end)
    if manifest.embedding.name not in names:
        ends[-1] = 0
    return tuple(reversed(ends))


def _alike(boards: Sequence[Kind], indices: list[int], percent: int) -> list[list[int]]:
    """Group boards: equal ones for 0 per cent, else those near the first of their group in RAM and time."""
    groups: list[list[int]] = []
    for i in indices:
        for group in groups:
            a, b = boards[group[0]], boards[i]
            if a == b or (percent and _are_near(a, b, percent) and (a.stored == b.stored or percent > _SHARDS_PERCENT)):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _are_near(a: Kind, b: Kind, percent: int) -> bool:
    pairs = zip(*((k.usable_bytes, k.token.layers[-1], k.turn.layers[-1]) for k in (a, b)), strict=True)
    return percent > 1_000_000 or all(100 * abs(x - y) <= percent * min(x, y) for x, y in pairs)


def _weakest(boards: list[Kind]) -> Kind:
    if len(set(boards)) == 1:
        return boards[0]
    stored = [b.stored for b in boards if b.stored is not None]
    return Kind(
        min(b.usable_bytes for b in boards),
        _slowest([b.token for b in boards]),
        _slowest([b.turn for b in boards]),
        stored=tuple(map(min, *stored)) if len(stored) > 1 else stored[0] if stored else None,
        swaps=all(b.swaps for b in boards),
    )


def _slowest(times: list[Times]) -> Times:
    # All are the same multiples of a layer's time, so the last sum tells which are the largest.
    waits = [t.over for t in times if t.over is not None]
    over = waits[0]._replace(spare=min(w.spare for w in waits), ns=max(w.ns for w in waits)) if waits else None
    return Times(max((t.layers for t in times), key=max), max(t.head for t in times), max(t.hop for t in times), over)


def turns_of(kinds_: Sequence[Kind]) -> set[int]:
    """Return every turn that a section among several may take on these kinds, in ns."""
    turns = set()
    for kind in kinds_:
        layers, head, hop, waits = kind.turn
        if waits is not None:
            ends = range(len(layers))
            turns |= {kind.turn.of(start, end) for start, end in combinations(ends, 2)}
            continue
        between = {b - a for a, b in combinations(layers[:-1], 2)}
        turns |= {ns + hop for ns in between} | {layers[-1] - ns + head + hop for ns in layers[:-1]}
    return turns


def _holds_a_layer(needs: Needs, board: Kind) -> bool:
    return any(end > start for start, end in enumerate(reach(needs, board, None)))


def reach(needs: Needs, board: Kind, limit: int | None) -> list[int]:
    """Return for every start the furthest end that the board holds (in a turn of `limit` ns at most); the start itself
    if none.

    Every end in between fits too, and a later start never reaches less far.
    """
    n = needs.num_layers
    ends = []
    end = 0
    for start in range(n):
        end = max(end, start)
        stored = n if board.stored is None else board.stored[start]
        while end < stored and needs.least(start, end + 1, board.swaps) <= board.usable_bytes:
            if limit is not None and board.turn.of(start, end + 1) > limit:
                break
            end += 1
        ends.append(end)
    return ends


class Price(NamedTuple):
    """What sections cost on a kind of board: [start, end) costs layers[end] - layers[start] + stage, and `first` more
    if it starts at 0, and `last` more if it has the head."""

    layers: Sequence[int]
    stage: int
    first: int
    last: int

    def of(self, start: int, end: int) -> int:
        """Return the cost of section [start, end)."""
        n = len(self.layers) - 1
        return self.layers[end] - self.layers[start] + self.stage + (not start) * self.first + (end == n) * self.last


def time_price(kind: Kind) -> Price:
    """Return a token's time as a cost: in units of a nanosecond / NS, the hop included, but no waiting for experts."""
    token = kind.token
    return Price([ns * NS for ns in token.layers], token.hop * NS + STAGE, 0, token.head * NS)


class Offer(NamedTuple):
    """Sections that a kind of board takes at one price: [start, end) for any end in (after[start], reach[start]]."""

    after: Sequence[int]
    reach: Sequence[int]
    price: Price


def time_offers(needs: Needs, kind: Kind, limit: int | None) -> list[Offer]:
    """Return what sections take on a kind of board: those that fit, and those that wait for experts."""
    ends, price = reach(needs, kind, limit), time_price(kind)
    if (waits := kind.token.over) is None:
        return [plain_offer(ends, price)]
    fits = [min(a, b) for a, b in zip(reach(needs, kind._replace(swaps=False), limit), ends, strict=True)]
    layers = [ns + waits.layers_ns(end) * NS for end, ns in enumerate(price.layers)]
    slower = Price(
        layers, price.stage + waits.fixed_ns * NS, price.first + waits.first_ns * NS, price.last + waits.last_ns * NS
    )
    return [plain_offer(fits, price), Offer(fits, ends, slower)]


def plain_offer(ends: Sequence[int], price: Price) -> Offer:
    """Return all sections up to `ends` at one price."""
    return Offer(range(len(ends)), ends, price)


def cheapest(num_layers: int, choices: Choices, offers: Sequence[Sequence[Offer]]) -> list[list[int]]:
    """Return cost[state][start]: the least cost at which exactly these boards hold [start, num_layers), at start 0 in
    several sections. `offers` are those of each kind.

    The board put in front takes a section of one of its offers. Its cost is a difference of sums, so the best end is
    the minimum over a sliding window: one pass over the layers per state and offer.
    """
    n = num_layers
    costs = [[INFINITE] * n + [0]]
    for fronts in choices[1:]:
        row = [INFINITE] * (n + 1)
        for k, before in fronts:
            rest = costs[before]
            for after, ends, (layers, stage, first, last) in offers[k]:
                window: deque[tuple[int, int]] = deque()  # (cost up to a constant, end): ends fall, costs rise
                end = n + 1
                for start in range(n - 1, -1, -1):
                    while end > after[start] + 1:
                        end -= 1
                        if rest[end] < INFINITE:
                            cost = rest[end] + layers[end] + (last if end == n else 0)
                            while window and window[-1][0] >= cost:
                                window.pop()
                            window.append((cost, end))
                    most = ends[start] if start else min(ends[0], n - 1)
                    while window and window[0][1] > most:
                        window.popleft()
                    if window:
                        cost = window[0][0] - layers[start] + stage + (0 if start else first)
                        if cost < row[start]:
                            row[start] = cost
        costs.append(row)
    return costs
