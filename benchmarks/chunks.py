"""How many prompt tokens a chunk should have: prefill over two agents, a core each, chunk by chunk, in turns.

    python -m benchmarks.chunks
    python -m benchmarks.chunks --model 1b-int4 --prompt 512 --runs 3

Small chunks let the second board begin early; large ones read the weights less often. The models are those of `make
bench`, made if they aren't there.
"""

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

from benchmarks import models, report
from benchmarks.ours import Cluster
from benchmarks.processes import worker_cores
from benchmarks.report import Row, median
from edgellm.console import note
from edgellm.plan import Settings

CHUNKS = (32, 64, 96, 128, 192, 256)
MODELS = ("phi3-int4", "1b-int4", "smollm2")
_BEFORE = 64  # tokens that warm up


def measure(model: models.Model, prompt: int, runs: int, cores: list[int], work: Path) -> list[Row]:
    """Tokens a second of a prompt of so many tokens, the median over `runs`, for each of CHUNKS."""
    found = defaultdict(list)
    for run in range(runs):
        for chunk in CHUNKS if run % 2 == 0 else CHUNKS[::-1]:
            note(f"{model.name}, chunks of {chunk}: run {run + 1} of {runs}")
            settings = Settings(prompt + 64, 1, chunk, "float16", "throughput")
            with Cluster(model, settings, cores, work / "agents") as cluster:
                cluster.prefill(_BEFORE)
                found[chunk].append(cluster.prefill(prompt))
    return [Row(f"{model.name}, {prompt} tokens in chunks of {c}", median(found[c]), "tokens/s") for c in CHUNKS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(models.RECIPES), help="repeatable; default: three")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default: 512)")
    parser.add_argument("--runs", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    machine, cores = report.machine(), worker_cores(2)
    made = models.prepare(options.model or list(MODELS))
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgellm-chunks-") as work:
        for model in made.values():
            rows += measure(model, options.prompt, options.runs, cores, Path(work))
    print(report.text("chunks", machine, rows, options.json))


if __name__ == "__main__":
    main()
