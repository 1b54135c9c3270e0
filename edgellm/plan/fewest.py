"""The search for the plan that loads the fewest bytes, of all those that are fast enough.

For latency the time of a whole plan is bounded, so the fewest bytes of a part don't tell the fewest of the whole. The
search goes from the first layer to the last, always on from where the bytes so far and the least that the rest can take
are fewest, and drops what can't be fast enough any more, or is met again with no fewer bytes and no less time.

It is exact for up to MAX_STATES states (9 boards that differ or hold different sections; more if some are alike and
hold nothing), unless it gives up after MAX_STEPS, a hundred times as many as it has been seen to take. Beyond, boards
that hold something keep the order of what they hold, each used or not, and the others may come in between.
"""

import heapq
from collections.abc import Iterator, Sequence
from itertools import accumulate, count
from typing import NamedTuple

from edgellm.plan.fleet import (
    INFINITE,
    NS,
    Choices,
    Fleet,
    Kind,
    Price,
    cheapest,
    plain_offer,
    reach,
    time_price,
    turns_of,
)
from edgellm.plan.needs import Needs
from edgellm.plan.search import Cut
from edgellm.shards.manifest import Manifest

MAX_STATES = 512
MAX_STEPS = 50_000

_RATES = 16  # tried at most; mostly 3 to 6 are
_Step = tuple[int, int]  # kind, end
_Trail = tuple["_Trail | None", _Step]  # what led here, and the last step
_BYTE = 1 << 96  # bytes count above all time: 4096 stages of an hour a layer are less


class Cost(NamedTuple):
    """What plans are compared by: bytes to load, the objective's figure (the longest turn, or a token's time), a
    token's time, both in ns, and stages."""

    load_bytes: int
    figure_ns: int
    token_ns: int
    stages: int


class _Path(NamedTuple):
    """The cheapest path at some prices: the table it comes from, its cost there, its bytes and its time."""

    table: list[list[int]]
    table_cost: int
    load_bytes: int
    time: int
    steps: tuple[_Step, ...]


class Fewest:
    """The search over boards that may hold a section already (`Kind.holds`); see `cuts`."""

    def __init__(self, manifest: Manifest, needs: Needs, boards: Sequence[Kind], objective: str):
        self._needs, self._boards, self._objective = needs, boards, objective
        self._n = needs.num_layers
        self._loads = [load_price(manifest, board.holds) for board in boards]
        self._reaches = [reach(needs, board, None) for board in boards]
        self._manifest = manifest

    def cost(self, cuts: Sequence[Cut]) -> Cost:
        """Return what a plan costs."""
        alone = len(cuts) == 1
        token = sum(self._boards[c.board].token.of(c.start, c.end, alone) for c in cuts)
        longest = max(self._boards[c.board].turn.of(c.start, c.end, alone) for c in cuts)
        figure = longest if self._objective == "throughput" else token
        return Cost(sum(self._loads[c.board].of(c.start, c.end) for c in cuts), figure, token, len(cuts))

    def cuts(self, limit_ns: int, best_ns: int = 0) -> list[Cut] | None:
        """Return the plan of the least cost whose figure is at most `limit_ns`, as evenly cut as that allows; None if
        it finds none, and where experts don't fit into RAM. `best_ns`: no plan's figure is less."""
        if any(board.swaps for board in self._boards):
            return None
        self._kinds, self._members, self._choices = _choices(self._needs, self._boards)
        self._prices = [_price(load_price(self._manifest, k.holds), time_price(k)) for k in self._kinds]
        found = [
            [Cut(index, 0, self._n)]
            for index, board in enumerate(self._boards)
            if self._reaches[index][0] == self._n and board.turn.of(0, self._n, alone=True) <= limit_ns
        ]
        latency = self._objective == "latency"
        cuts = self._several(limit_ns) if latency else self._several_least_slow(limit_ns, best_ns)
        if cuts is not None:
            found.append(cuts)
        return self._even(min(found, key=self.cost), limit_ns) if found else None

    def _several_least_slow(self, limit_ns: int, best_ns: int) -> list[Cut] | None:
        """Return, for throughput, of those that load the fewest bytes the one whose slowest stage is fastest."""
        if (best := self._several(limit_ns)) is None:
            return None
        fewest, slowest, _, _ = self.cost(best)
        times = sorted(time for time in turns_of(self._kinds) if best_ns <= time < slowest)
        low, high = 0, len(times)  # times[high:] are slow enough
        while low < high:
            middle = (low + high) // 2
            cuts = self._several(times[middle])
            if cuts is not None and self.cost(cuts).load_bytes == fewest:
                best, high = cuts, middle
            else:
                low = middle + 1
        return best

    def _several(self, limit_ns: int) -> list[Cut] | None:
        """Return the cheapest plan of several stages: of all of them together (latency) or of each, `limit_ns` at most.
        """
        reaches = [reach(self._needs, kind, limit_ns) for kind in self._kinds]
        fewest = self._least(reaches, self._prices)
        if fewest is None:
            return None
        limit = (limit_ns + 1) * NS - 1
        if self._objective == "throughput" or fewest.time <= limit:
            return self._named(fewest.steps)
        fastest = self._least(reaches, [_mixed(price, 0, 1) for price in self._prices])
        if fastest is None or fastest.time > limit:
            return None
        return self._named(self._bounded(reaches, fewest, fastest, limit))

    def _bounded(
        self, reaches: Sequence[Sequence[int]], fewest: "_Path", fastest: "_Path", limit: int
    ) -> tuple[_Step, ...]:
        """Return the cheapest path whose time is at most `limit`, where that of the fewest bytes takes longer.

        Bytes and time in one price bound both. The bound is tightest at the rate of exchange at which the cheapest path
        over the limit and the one within it cost the same; of these the latter is also what to beat.
        """
        over, within, tightest = fewest, fastest, fastest
        for _ in range(_RATES):
            byte, time = over.time - within.time, within.load_bytes - over.load_bytes
            mixed = self._least(reaches, [_mixed(price, byte, time) for price in self._prices])
            assert mixed is not None, "there is a path at any prices, or at none"
            tightest = mixed
            if mixed.table_cost >= over.load_bytes * byte + over.time * time:
                break
            over, within = (over, mixed) if mixed.time <= limit else (mixed, within)

        def least(state: int, start: int, cost: int) -> int:
            """Return what a path that came here at `cost` costs at least in the end; INFINITE if it takes too long."""
            bytes_so_far, time_so_far = divmod(cost, _BYTE)
            time_at_least = time_so_far + fastest.table[state][start]
            if fewest.table[state][start] >= INFINITE or time_at_least > limit:
                return INFINITE
            bytes_at_least = bytes_so_far - ((limit - time_so_far) * time - tightest.table[state][start]) // byte
            return max(cost + fewest.table[state][start], bytes_at_least * _BYTE + time_at_least)

        best, n, order = within.load_bytes * _BYTE + within.time, self._n, count()
        # (cost in the end at least, -start, order, state, cost so far, (what led here, step))
        heap: list[tuple[int, int, int, int, int, _Trail | None]] = [
            (at_least, 0, next(order), s, 0, None)
            for s in range(len(self._choices))
            if (at_least := least(s, 0, 0)) < best
        ]
        heapq.heapify(heap)
        seen: dict[tuple[int, int], list[tuple[int, int]]] = {}  # bytes and times of those that went on from there
        for _ in range(MAX_STEPS):
            if not heap:
                break
            _, start, _, state, cost, path = heapq.heappop(heap)
            start = -start
            if start == n:
                steps: list[_Step] = []
                while path is not None:
                    path, step = path
                    steps.append(step)
                return tuple(reversed(steps))
            bytes_so_far, time_so_far = divmod(cost, _BYTE)
            others = seen.setdefault((state, start), [])
            if any(b <= bytes_so_far and t <= time_so_far for b, t in others):
                continue
            others.append((bytes_so_far, time_so_far))
            for k, before in self._choices[state]:
                for end in range(start + 1, reaches[k][start] + 1):
                    if start == 0 and end == n:
                        continue
                    so_far = cost + self._prices[k].of(start, end)
                    if (at_least := least(before, end, so_far)) < best:
                        heapq.heappush(heap, (at_least, -end, next(order), before, so_far, (path, (k, end))))
        return within.steps

    def _least(self, reaches: Sequence[Sequence[int]], prices: Sequence[Price]) -> "_Path | None":
        """Return the cheapest path of several stages at these prices; None if there is none."""
        table = cheapest(
            self._n, self._choices, [[plain_offer(*of)] for of in zip(reaches, prices, strict=True)]
        )
        state, start = min(range(len(table)), key=lambda state: table[state][0]), 0
        if table[state][0] >= INFINITE:
            return None
        steps: list[_Step] = []
        cost, path_cost = 0, table[state][0]
        while start < self._n:
            here = table[state][start]
            k, before, end = next(
                (k, before, end)
                for k, before in self._choices[state]
                for end in range(start + 1, reaches[k][start] + 1)
                if prices[k].of(start, end) + table[before][end] == here and (start or end < self._n)
            )
            cost += self._prices[k].of(start, end)
            steps.append((k, end))
            state, start = before, end
        return _Path(table, path_cost, *divmod(cost, _BYTE), tuple(steps))

    def _named(self, steps: Sequence[_Step]) -> list[Cut]:
        """Return a path of kinds as cuts: of boards of one kind those listed first come first."""
        unused = [iter(members) for members in self._members]
        cuts, start = [], 0
        for k, end in steps:
            cuts.append(Cut(next(unused[k]), start, end))
            start = end
        return cuts

    def _even(self, cuts: list[Cut], limit_ns: int) -> list[Cut]:
        """Return the same boards in the same order at the same cost, neighbours as even as can be."""
        changed = True
        while changed:
            changed = False
            for i in range(len(cuts) - 1):
                others = [[*cuts[:i], *pair, *cuts[i + 2 :]] for pair in self._pairs(cuts[i], cuts[i + 1])]
                others = [cuts for cuts in others if self.cost(cuts).figure_ns <= limit_ns]
                best = min([cuts, *others], key=lambda cuts: (self.cost(cuts), self._squares(cuts)))
                changed |= best != cuts
                cuts = best
        return cuts

    def _pairs(self, a: Cut, b: Cut) -> Iterator[tuple[Cut, Cut]]:
        """Yield every other way for two neighbours to share their layers."""
        first, second = (self._reaches[c.board] for c in (a, b))
        for cut in range(a.start + 1, min(first[a.start], b.end - 1) + 1):
            if second[cut] >= b.end and cut != a.end:
                yield Cut(a.board, a.start, cut), Cut(b.board, cut, b.end)

    def _squares(self, cuts: Sequence[Cut]) -> int:
        return sum(self._boards[c.board].token.of(c.start, c.end) ** 2 for c in cuts)


def load_price(manifest: Manifest, holds: tuple[int, int] | None) -> Price:
    """Return the price of sections in bytes that a board which holds one has to load."""
    start, end = holds or (0, 0)
    layers = [0 if start <= i < end else s.bytes for i, s in enumerate(manifest.shards[1:-1])]
    embedding = 0 if holds and start == 0 else manifest.embedding.bytes
    head = 0 if holds and end == manifest.num_layers else manifest.head.bytes
    return Price([0, *accumulate(layers)], 0, embedding, head)


def _price(load: Price, time: Price) -> Price:
    """Return a price that counts bytes first, then time."""
    layers = [a * _BYTE + b for a, b in zip(load.layers, time.layers, strict=True)]
    return Price(layers, *(a * _BYTE + b for a, b in zip(load[1:], time[1:], strict=True)))


def _mixed(price: Price, byte: int, time: int) -> Price:
    """Return the price if a byte costs `byte` and a unit of time `time`."""
    mixed = [a * byte + b * time for a, b in (divmod(cost, _BYTE) for cost in (*price.layers, *price[1:]))]
    return Price(mixed[:-3], *mixed[-3:])


def _choices(needs: Needs, boards: Sequence[Kind]) -> tuple[list[Kind], list[list[int]], Choices]:
    """Return kinds, the boards of each, and what can be put in front of what: anything, or (beyond MAX_STATES) what
    keeps the order."""
    fleet = Fleet.of(needs, boards, MAX_STATES)
    if not fleet.is_coarse:
        return fleet.kinds, fleet.members, fleet.choices()
    chain = [i for _, i in sorted((board.holds, i) for i, board in enumerate(boards) if board.holds)]
    others = [i for i, board in enumerate(boards) if not board.holds]
    new = Fleet.of(needs, [boards[i] for i in others], max(2, MAX_STATES // (len(chain) + 1)))
    new_choices = new.choices()
    choices: Choices = []
    for last in range(len(chain) + 1):  # of the chain's last `last` boards some are in use, the first of those surely
        for state, fronts in enumerate(new_choices):
            here = [(len(chain) + k, last * len(new_choices) + before) for k, before in fronts]
            here += [(len(chain) - last, before * len(new_choices) + state) for before in range(last)]
            choices.append(here)
    members = [[i] for i in chain] + [[others[i] for i in group] for group in new.members]
    return [*(boards[i] for i in chain), *new.kinds], members, choices
