"""Measures the native kernels with cold weights, in GB/s of weights, beside what one core reads from memory.

    python benchmarks/kernels.py
    python benchmarks/kernels.py --tokens 1 --threads 2 --json
"""

import argparse
import json
import statistics
import sys
import time

import torch

from edgellm.kernels import native
from edgellm.model.packed import PackedLinear, set_threads


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
    data = torch.ones(512 << 20, dtype=torch.uint8)
    return data.nbytes / seconds(lambda i: native.read(data), 5) / 1e9


def measure(encoding: str, shape: tuple[int, int], tokens: list[int], cold_bytes: int, repeats: int) -> list[dict]:
    """Times PackedLinear over copies of a random weight that together are larger than any cache."""
    weight_shape = native.packed_shape(encoding, shape)
    if encoding in native.BLOCK_BYTES:
        data = torch.randint(0, 255, weight_shape, dtype=torch.uint8)
        data.view(shape[0], -1, native.BLOCK_BYTES[encoding])[:, :, 1::2][:, :, : 2 if encoding == "int4" else 1] = 32
    else:
        dtypes = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
        data = torch.randn(weight_shape).to(dtypes[encoding])
    copies = max(2, -(-cold_bytes // data.nbytes))
    layers = [PackedLinear(data.clone(), encoding, shape) for _ in range(copies)]
    results = []
    for count in tokens:
        x = torch.randn(count, shape[1])
        taken = seconds(lambda i, x=x: layers[i % copies](x), max(repeats, copies))
        results.append({
            "encoding": encoding, "tokens": count, "ms": taken * 1e3, "gb_per_s": data.nbytes / taken / 1e9,
            "gflop_per_s": 2 * count * shape[0] * shape[1] / taken / 1e9,
        })
    return results


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(3072, 8192), metavar=("OUT", "IN"))
    parser.add_argument("--encoding", nargs="+", default=["int4", "int8", "bf16", "f16", "f32"])
    parser.add_argument("--tokens", type=int, nargs="+", default=(1, 4, 16))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--target", help="avx512, avx2, neon or portable instead of the best")
    parser.add_argument("--cold-mb", type=int, default=1024, help="MB of weights to read before one is used again")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()

    native.use_target(options.target)
    set_threads(options.threads)
    core = read_speed()
    report = {"target": native.target(), "threads": options.threads, "shape": list(options.shape),
              "core_reads_gb_per_s": core, "results": []}
    if not options.json:
        print(f"{native.target()}, threads: {options.threads}, weight {options.shape[0]} x {options.shape[1]}; "
              f"one core reads {core:.1f} GB/s")
        print(f"{'encoding':9}{'tokens':>7}{'ms':>9}{'GB/s':>7}{'of read':>9}{'GFLOP/s':>9}")
    with torch.inference_mode():
        for encoding in options.encoding:
            shape, cold_bytes = tuple(options.shape), options.cold_mb << 20
            for row in measure(encoding, shape, options.tokens, cold_bytes, options.repeats):
                report["results"].append(row)
                if not options.json:
                    print(f"{row['encoding']:9}{row['tokens']:7}{row['ms']:9.2f}{row['gb_per_s']:7.1f}"
                          f"{row['gb_per_s'] / core:8.0%} {row['gflop_per_s']:9.0f}", flush=True)
    if options.json:
        json.dump(report, sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    main()
