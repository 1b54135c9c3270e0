"""Measures the native kernels with cold weights, in GB/s of weights and GFLOP/s, beside what a core reads from memory.

    python -m benchmarks.kernels
    python -m benchmarks.kernels --target avx2 --tokens 1 --json
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np

from edgellm.kernels import library


def seconds(call, repeats: int) -> float:
    """The median time of a call; the first one, which warms up, isn't counted."""
    call(0)
    times = []
    for i in range(1, repeats + 1):
        start = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_speed() -> float:
    """What one core reads from memory, in GB/s."""
    data = np.ones(512 << 20, np.uint8)
    return data.nbytes / seconds(lambda i: library.read(data), 5) / 1e9


def measure(encoding: str, shape: tuple[int, int], tokens: list[int], integer: bool, cold_bytes: int, repeats: int):
    """Times products with copies of a random weight that together are larger than any cache; yields a row each."""
    count = library.weight_bytes(encoding, shape)
    copies = max(2, -(-cold_bytes // count))
    rng = np.random.default_rng(0)
    one = rng.integers(0, 0x3C, count, dtype=np.uint8)  # halves and floats of these bytes are small
    weights = [one.copy() for _ in range(copies)]
    for n in tokens:
        x, y = rng.standard_normal((n, shape[1]), np.float32), np.empty((n, shape[0]), np.float32)
        most = max(3, min(max(repeats, copies), 2000 // n))
        taken = seconds(lambda i, x=x, y=y: library.linear(x, weights[i % copies], encoding, shape, y, integer), most)
        yield {
            "encoding": encoding, "integer": integer, "tokens": n, "ms": taken * 1e3, "gb_per_s": count / taken / 1e9,
            "gflop_per_s": 2 * n * shape[0] * shape[1] / taken / 1e9,
        }  # fmt: skip


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(3072, 8192), metavar=("OUT", "IN"))
    parser.add_argument("--encoding", nargs="+", default=list(library.ENCODINGS), choices=list(library.ENCODINGS))
    parser.add_argument("--tokens", type=int, nargs="+", default=(1, 4, 16, 64, 512))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", nargs="+", help="avx512vnni, avx2, dotprod, neon or scalar instead of the best")
    parser.add_argument("--exact", action="store_true", help="float activations for int4 and int8, as the generic path")
    parser.add_argument("--cold-mb", type=int, default=512, help="MB of weights to read before one is used again")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()

    library.set_threads(options.threads)
    core = read_speed()
    report = {"threads": options.threads, "shape": list(options.shape), "core_reads_gb_per_s": core, "results": []}
    for target in options.target or [None]:
        library.use_target(target)
        name = library.target()
        if not options.json:
            print(f"{name}, threads: {options.threads}, weight {options.shape[0]} x {options.shape[1]}; "
                  f"one core reads {core:.1f} GB/s")
            print(f"{'encoding':9}{'tokens':>7}{'ms':>9}{'GB/s':>7}{'of read':>9}{'GFLOP/s':>9}")
        for encoding in options.encoding:
            integer, shape = not options.exact and encoding in library.GROUP_BYTES, tuple(options.shape)
            rows = measure(encoding, shape, options.tokens, integer, options.cold_mb << 20, options.repeats)
            for row in rows:
                report["results"].append({"target": name, **row})
                if not options.json:
                    print(f"{row['encoding']:9}{row['tokens']:7}{row['ms']:9.2f}{row['gb_per_s']:7.1f}"
                          f"{row['gb_per_s'] / core:8.0%} {row['gflop_per_s']:9.0f}", flush=True)
    if options.json:
        json.dump(report, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
