"""How much sooner the first token comes when a prompt was asked before, and all agents were restarted since.

    python -m benchmarks.cache SPLIT
    python -m benchmarks.cache SPLIT --agents 2 --tokens 1500 --runs 5 --json

Each run asks a prompt that nobody asked before, restarts all agents, and asks it again; then once more, from a slot
that still holds it.
"""

import argparse
import asyncio
import random
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

from benchmarks import report
from benchmarks.report import Row, at_most, holds, median
from edgellm.config import DEFAULT_CHUNK
from edgellm.manager import local
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


async def ask(cluster: ClusterClient, ids: list[int]) -> tuple[float, list[int], int]:
    """Return seconds to the first token, the answer's tokens, and how many of the prompt's all boards reused."""
    began, first_s, tokens = time.perf_counter(), 0.0, []
    stats: dict[str, SequenceStats] = {}
    stream = cluster.generate(ids, sampling=Sampling(), max_tokens=_ANSWER, eos=(), stats=stats, cache="benchmark")
    async with aclosing(stream) as answer:
        async for chosen in answer:
            first_s = first_s or time.perf_counter() - began
            tokens.append(chosen.token)
    return first_s, tokens, min(stat.reused_tokens for stat in stats.values())


def plan_for(manifest: Manifest, boards: list[str], settings: Settings) -> Plan:
    """Return a plan that divides the layers evenly, whatever the boards measure."""
    ends = [i * manifest.num_layers // len(boards) for i in range(len(boards) + 1)]
    sections = tuple(Section(board, ends[i], ends[i + 1]) for i, board in enumerate(boards))
    return Plan(
        1, manifest.model, manifest.sha256, manifest.num_layers, settings.objective, settings.context, settings.slots,
        settings.chunk, settings.kv_dtype, sections,
    )  # fmt: skip


def serve(split: Path, agents: int, work: Path, settings: Settings, prompts: list[list[int]]) -> list:
    """Start agents, ask these prompts one after another, end the agents; return what `ask` does for each."""
    manifest = Manifest.read(split)

    async def go() -> list:
        plan = plan_for(manifest, list(addresses), settings)
        async with Connections() as connections:
            boards = await connections.to_all(addresses)
            await give(plan, sign(plan, addresses, None), boards, dict.fromkeys(addresses))
        async with ClusterClient.dial(plan, addresses) as cluster:
            await ask(cluster, prompts[0][:20][::-1])  # weights are read, and caches warm
            return [await ask(cluster, prompt) for prompt in prompts]

    with local.LocalAgents(split, agents, work) as running:
        addresses = running.start()
        return asyncio.run(go())


def measure(split: Path, agents: int, tokens: int, runs: int) -> list[Row]:
    """Return what the runs showed."""
    manifest = Manifest.read(split)
    settings = Settings(min(tokens + 64, manifest.max_seq_len), 2, DEFAULT_CHUNK, "float16", "throughput")
    draw = random.Random(tokens)
    first, again, held, reused, same = [], [], [], [], True
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs):
            ids = [draw.randrange(manifest.vocab_size) for _ in range(tokens)]
            ((new_s, answer, _),) = serve(split, agents, Path(folder), settings, [ids])
            twice = serve(split, agents, Path(folder), settings, [ids, ids])
            (kept_s, answer_2, from_pages), (slot_s, answer_3, _) = twice
            first.append(new_s)
            again.append(kept_s)
            held.append(slot_s)
            reused.append(from_pages)
            same = same and answer == answer_2 == answer_3
        kept = sum(path.stat().st_size for path in Path(folder).rglob("*.page"))
    shares = [100 * b / a for a, b in zip(first, again, strict=True)]
    return [
        Row(f"first token of {tokens} tokens, new", median(first), "s"),
        Row("the same after restarting all agents", median(again), "s"),
        at_most("share of the first time", median(shares), "%", SHARE_PERCENT),
        Row("the same again, from a slot", median(held), "s"),
        Row("tokens reused after the restart", min(reused), "tokens"),
        Row("on disk, a token and model", kept / (runs * tokens) / 1e3, "kB"),
        holds("answers", "the same" if same else "differ", "the same", same),
    ]


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
