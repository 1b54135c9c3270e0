"""What a constraint costs: answers to 200 JSON schemas (benchmarks/schemas.py) on two agents, each beside an answer of
as many tokens without a constraint. Every constrained answer is checked with jsonschema.

    python -m benchmarks.constrained SPLIT
    python -m benchmarks.constrained SPLIT --count 20 --json
"""

import argparse
import asyncio
import json
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import jsonschema

from benchmarks import report
from benchmarks.report import Row, at_least, at_most, median
from benchmarks.schemas import Example, examples
from edgellm.manager.client import Chosen, ClusterClient
from edgellm.manager.local import LocalAgents
from edgellm.manager.take import give
from edgellm.plan import Plan, Section
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from edgellm.structure import Constraint
from edgellm.text.tokenizer import Tokenizer
from edgellm.wire.signed import sign

MAX_COST = 0.10  # of a token
_CONTEXT, _MAX_TOKENS = 2048, 1200


@dataclass
class Found:
    """Of some answers: how many there were, were complete and were valid; and for each, constrained and not, the
    milliseconds that a token after the first took, and with a pass for every token."""

    answers: int = 0
    complete: int = 0
    valid: int = 0
    tokens: int = 0
    passes: int = 0
    wrong: list[str] = field(default_factory=list)
    forced: list[float] = field(default_factory=list)  # constrained, against free
    each: list[float] = field(default_factory=list)  # constrained, a pass for each token, against free


def is_valid(text: str, example: Example) -> str:
    """Return what is wrong with an answer, "" if nothing is."""
    try:
        jsonschema.validate(json.loads(text), example.schema, jsonschema.Draft202012Validator)
    except (ValueError, jsonschema.ValidationError) as e:
        return f"{example.kind}: {str(e).splitlines()[0]}"
    return ""


async def measure(cluster: ClusterClient, tokenizer: Tokenizer, manifest: Manifest, asked: list[Example]) -> Found:
    """Ask, one after the other, with and without the constraint in turns."""
    found = Found()
    for number, example in enumerate(asked):
        ids = tokenizer.encode_chat([{"role": "user", "content": example.question}])
        constraint = Constraint("json_schema", json.dumps(example.schema))
        sampling = Sampling(temperature=0.7, top_p=0.95, seed=number)

        async def ask(count: int = _MAX_TOKENS, *, ids=ids, sampling=sampling, **options) -> tuple[list[Chosen], float]:
            began, said = 0.0, []
            stream = cluster.generate(list(ids), sampling=sampling, max_tokens=count, speculate=False, **options)
            async for chosen in stream:
                said.append(chosen)
                began = began or time.perf_counter()
            return said, 1e3 * (time.perf_counter() - began)

        said, forced_ms = await ask(constraint=constraint, eos=manifest.eos_token_ids)
        stream = tokenizer.stream()
        text = "".join(stream.feed(c.token) for c in said if c.token not in manifest.eos_token_ids) + stream.flush()
        found.answers += 1
        found.tokens += len(said)
        found.passes += len({c.at_s for c in said})
        if said[-1].finish == "eos":
            found.complete += 1
            wrong = is_valid(text, example)
            found.valid += not wrong
            found.wrong += [wrong] if wrong else []
        if len(said) < 8:
            continue
        count = len(said)
        _, free_ms = await ask(count, eos=(), logprobs=1)
        _, each_ms = await ask(count, constraint=constraint, eos=manifest.eos_token_ids, logprobs=1)
        _, plain_ms = await ask(count, eos=())
        found.forced.append(forced_ms / plain_ms)
        found.each.append(each_ms / free_ms)
    return found


def rows(found: Found) -> list[Row]:
    """Return what is shown."""
    return [
        Row("answers", found.answers, ""),
        Row("  of them complete", found.complete, ""),
        at_least("  complete and valid, of those complete", found.valid / max(1, found.complete), "", 1.0),
        Row("tokens an answer", found.tokens / max(1, found.answers), ""),
        Row("tokens a pass", found.tokens / max(1, found.passes), ""),
        at_most("time of a token, against a free answer", median(found.forced), "", 1.0 + MAX_COST),
        at_most("  with a pass for each token", median(found.each), "", 1.0 + MAX_COST),
    ]


async def run(split: Path, addresses: dict[str, tuple[str, int]], count: int) -> Found:
    """Form a cluster of two agents, and ask it."""
    manifest, boards = Manifest.read(split), list(addresses)
    half = manifest.num_layers // 2
    sections = (Section(boards[0], 0, half), Section(boards[1], half, manifest.num_layers))
    plan = Plan(
        1, manifest.model, manifest.sha256, manifest.num_layers, "latency", _CONTEXT, 1, 32, "float16", sections
    )
    async with ClusterClient.dial(plan, addresses) as cluster:
        await give(plan, sign(plan, addresses, None), cluster.boards, {name: None for name in boards})
        return await measure(cluster, Tokenizer(split), manifest, list(examples(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path, help="a folder that edgellm split made")
    parser.add_argument("--count", type=int, default=200, help="how many schemas")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as logs, LocalAgents(options.split, 2, Path(logs)) as agents:
        found = asyncio.run(run(options.split, agents.start(), options.count))
    for wrong in found.wrong:
        print(wrong)
    print(report.text("constrained", report.machine(), rows(found), options.json))


if __name__ == "__main__":
    main()
