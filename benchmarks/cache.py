"""How much sooner the first token comes when a prompt was asked before: after all agents were restarted, when other
prompts have taken the slots since, and after a change of plan.

    python -m benchmarks.cache SPLIT
    python -m benchmarks.cache SPLIT --agents 2 --tokens 1500 --runs 5 --json

Each run asks a prompt that nobody asked before, restarts all agents, and asks it again; once more, from a slot that
still holds it; and again, behind enough other prompts to take all slots, from RAM. At last, a prompt is asked under a
plan that has moved a layer from one board to the next, twice, and again under the plan before.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import report
from benchmarks.report import Row, at_most, holds, median
from edgellm.config import DEFAULT_CHUNK
from edgellm.manager import local
from edgellm.manager.board import BoardClient
from edgellm.manager.client import ClusterClient
from edgellm.manager.connections import Connections
from edgellm.manager.take import give
from edgellm.plan import Plan, Section, Settings
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from edgellm.wire.signed import sign
from edgellm.wire.status import SequenceStats

SHARE_PERCENT = 15.0
_ANSWER = 8  # tokens


@dataclass(frozen=True)
class Asked:
    """Seconds to the first token, the answer's tokens, and how many of the prompt all boards reused; `from_ram` were
    neither in a slot nor read from a disk."""

    first_s: float
    answer: list[int]
    reused: int
    from_ram: int = 0


async def ask(cluster: ClusterClient, ids: list[int]) -> Asked:
    """Ask a prompt, as tokens."""
    began, first_s, tokens = time.perf_counter(), 0.0, []
    stats: dict[str, SequenceStats] = {}
    stream = cluster.generate(ids, sampling=Sampling(), max_tokens=_ANSWER, eos=(), stats=stats, cache="benchmark")
    async with aclosing(stream) as answer:
        async for chosen in answer:
            first_s = first_s or time.perf_counter() - began
            tokens.append(chosen.token)
    return Asked(first_s, tokens, min(stat.reused_tokens for stat in stats.values()))


def plan_for(manifest: Manifest, boards: list[str], settings: Settings, epoch: int = 1, shift: int = 0) -> Plan:
    """Return a plan that divides the layers evenly, whatever the boards measure; the first board has `shift` fewer."""
    ends = [i * manifest.num_layers // len(boards) for i in range(len(boards) + 1)]
    ends[1] -= shift
    sections = tuple(Section(board, ends[i], ends[i + 1]) for i, board in enumerate(boards))
    return Plan(
        epoch, manifest.model, manifest.sha256, manifest.num_layers, settings.objective, settings.context,
        settings.slots, settings.chunk, settings.kv_dtype, sections,
    )  # fmt: skip


class Cluster:
    """Agents that run, and keep what they keep of prompts in `work`."""

    def __init__(self, split: Path, agents: int, work: Path, settings: Settings):
        self._split, self._agents, self._work, self._settings = split, agents, work, settings
        self._manifest = Manifest.read(split)

    def run(self, *plans: tuple[int, list[list[int]]]) -> list[list[Asked]]:
        """Start agents, ask prompts under one plan after the other, each given as (shift, prompts), and end the agents.
        Return for each plan what `ask` does for each prompt."""
        with local.LocalAgents(self._split, self._agents, self._work) as running:
            return asyncio.run(self._go(running.start(), plans))

    async def _go(self, addresses: dict, plans: Sequence[tuple[int, list[list[int]]]]) -> list[list[Asked]]:
        answers = []
        async with Connections() as connections:
            boards = await connections.to_all(addresses)
            epochs: dict[str, int | None] = dict.fromkeys(addresses)
            for epoch, (shift, prompts) in enumerate(plans, 1):
                plan = plan_for(self._manifest, list(addresses), self._settings, epoch, shift)
                await give(plan, sign(plan, addresses, None), boards, epochs)
                epochs = dict.fromkeys(addresses, epoch)
                async with ClusterClient.dial(plan, addresses) as cluster:
                    await ask(cluster, prompts[0][:20][::-1])  # weights are read, and caches warm
                    answers.append([await self._ask(cluster, boards, prompt) for prompt in prompts])
        return answers

    async def _ask(self, cluster: ClusterClient, boards: Sequence[BoardClient], prompt: list[int]) -> Asked:
        before = await _from_ram(boards)
        asked = await ask(cluster, prompt)
        return replace(asked, from_ram=await _from_ram(boards) - before)


async def _from_ram(boards: Sequence[BoardClient]) -> int:
    """Return how many tokens the boards have had from RAM so far, without the disk: the least of them."""
    caches = [(await board.status()).cache for board in boards]
    return min(cache.ram_restored_tokens or 0 if cache else 0 for cache in caches)


def measure(split: Path, agents: int, tokens: int, runs: int) -> list[Row]:
    """Return what the runs showed."""
    manifest = Manifest.read(split)
    settings = Settings(min(tokens + 64, manifest.max_seq_len), 2, DEFAULT_CHUNK, "float16", "throughput")
    draw = random.Random(tokens)

    def prompt(count: int = tokens) -> list[int]:
        return [draw.randrange(manifest.vocab_size) for _ in range(count)]

    new: list[Asked] = []
    disk: list[Asked] = []
    slot: list[Asked] = []
    ram: list[Asked] = []
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(split, agents, Path(folder), settings)
        for _ in range(runs):
            ids, others = prompt(), [prompt(200) for _ in range(settings.slots)]
            new += cluster.run((0, [ids]))[0]
            kept, held, *_, again = cluster.run((0, [ids, ids, *others, ids]))[0]
            disk.append(kept), slot.append(held), ram.append(again)
        kept_bytes = _bytes_in(folder) / (runs * (tokens + settings.slots * 200))
        ids = prompt()
        cluster.run((0, [ids]))
        before = _bytes_in(folder)
        ((moved,),) = cluster.run((1, [ids]))
        more = _bytes_in(folder) - before
        (back,), (forth,) = cluster.run((0, [ids]), (1, [ids]))
    same = all(a.answer == b.answer for many in (disk, slot, ram) for a, b in zip(new, many, strict=True))
    same = same and moved.answer == back.answer == forth.answer
    shares = [100 * b.first_s / a.first_s for a, b in zip(new, disk, strict=True)]
    return [
        Row(f"first token of {tokens} tokens, new", median(a.first_s for a in new), "s"),
        Row("the same after restarting all agents", median(a.first_s for a in disk), "s"),
        at_most("share of the first time", median(shares), "%", SHARE_PERCENT),
        Row("the same again, from a slot", median(a.first_s for a in slot), "s"),
        Row("the same when no slot has it, from RAM", median(a.first_s for a in ram), "s"),
        Row("tokens reused after the restart", min(a.reused for a in disk), "tokens"),
        Row("tokens from RAM, where no slot has them", min(a.from_ram for a in ram), "tokens"),
        Row("tokens reused after a layer has moved", moved.reused, "tokens"),
        Row("the same, back in the plan before", back.reused, "tokens"),
        Row("the same, in the other plan again", forth.reused, "tokens"),
        Row("on disk, a token and model", kept_bytes / 1e3, "kB"),
        Row("written more for the layer that moved", more / tokens / 1e3, "kB a token"),
        holds("answers", "the same" if same else "differ", "the same", same),
    ]


def _bytes_in(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*.page"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path, help="folder of a split model")
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows = measure(options.split, options.agents, options.tokens, options.runs)
    print(report.text("cache", report.machine(), rows, options.json))


if __name__ == "__main__":
    main()
