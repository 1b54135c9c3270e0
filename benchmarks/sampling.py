"""What choosing a token takes on one core, by options and by how peaked the logits are; medians.

    python -m benchmarks.sampling
    python -m benchmarks.sampling --vocabulary 32064 --json

The logits are random: normal with a spread of 2 to 4, and one token that stands out. Each choice is timed twice: after
64 MB of other memory were read, as a decode step leaves the caches, and again at once.
"""

import argparse
import os
import time

import numpy as np

from benchmarks import report
from benchmarks.processes import worker_cores
from benchmarks.report import Row, at_most, median
from edgellm.kernels import library
from edgellm.model.sampler import Sampler
from edgellm.sampling import Sampling

LIMIT_MS = 0.3
SPREADS = (2.0, 3.0, 4.0)
OPTIONS = {
    "greedy": {},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 1, top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "temperature 0.7, top-p 0.8, top-k 20": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "temperature 1, min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
    "temperature 0.8, penalties, biases": {
        "temperature": 0.8, "presence_penalty": 0.5, "frequency_penalty": 0.5,
        "logit_bias": {token: 1.0 for token in range(300)},
    },
}
TEXTS = (100, 30000)  # tokens, for the repeat penalty
_ROUNDS, _COLD_BYTES = 60, 64 << 20


def random_logits(rng: np.random.Generator, vocabulary: int, spread: float) -> np.ndarray:
    """Return float32 [vocabulary]."""
    logits = rng.normal(0.0, spread, vocabulary).astype(np.float32)
    logits[rng.integers(0, vocabulary)] = logits.max() + spread / 2
    return logits


def measure(rows: list[np.ndarray], options: dict, text: list[int], cold: np.ndarray) -> tuple[float, float]:
    """Return the medians of milliseconds a token, with cold and with warm caches, of an answer that follows `text`."""
    sampler, text = Sampler(Sampling(seed=1, **options), len(rows[0])), list(text)
    taken: list[list[float]] = [[], []]
    sampler.follow(text, len(text))
    for i in range(_ROUNDS):
        logits, position = rows[i % len(rows)].copy(), len(text)
        library.read(cold)
        for times in taken:
            began = time.perf_counter()
            sampler.follow(text, position)
            token = sampler.choose(logits, position)
            times.append((time.perf_counter() - began) * 1e3)
        text.append(token)
    return median(taken[0][5:]), median(taken[1][5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151936, help="logits (default: 151936, Qwen's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    machine, core = report.machine(), worker_cores(2)[-1]
    os.sched_setaffinity(0, {core})
    library.set_threads(1, [core])
    rng, cold, rows = np.random.default_rng(0), np.ones(_COLD_BYTES, np.uint8), []
    for spread in SPREADS:
        logits = [random_logits(rng, options.vocabulary, spread) for _ in range(4)]
        for name, given in OPTIONS.items():
            after_a_step, at_once = measure(logits, given, [], cold)
            rows.append(at_most(f"spread {spread:g}, {name}", at_once, "ms", LIMIT_MS))
            rows.append(Row("  after a decode step", after_a_step, "ms"))
    for length in TEXTS:
        text = rng.integers(0, options.vocabulary, length).tolist()
        _, at_once = measure(logits, {"temperature": 0.8, "repeat_penalty": 1.1}, text, cold)
        rows.append(Row(f"spread {spread:g}, temperature 0.8, repeat penalty after {length} tokens", at_once, "ms"))
    print(report.text("sampling", machine, rows, options.json))


if __name__ == "__main__":
    main()
