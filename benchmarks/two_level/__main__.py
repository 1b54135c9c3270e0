"""Settles whether int4 with two levels of scales (4.5 bits a weight) should replace affine groups (5 bits).

    python -m benchmarks.two_level speed
    python -m benchmarks.two_level speed --tokens 1 --threads 1 2
    python -m benchmarks.two_level quality --steps 400
    python -m benchmarks.two_level quality --gguf SmolLM2-135M-Instruct.Q4_1.gguf

`speed` needs g++ and a processor with AVX512-VNNI. `quality` trains a little model, some ten minutes of one core.
"""

import argparse
import statistics
from pathlib import Path

from benchmarks import report


def print_speed(options: argparse.Namespace) -> None:
    """A line for each number of threads and tokens."""
    from benchmarks.two_level import speed

    print(f"weight {options.shape[0]} x {options.shape[1]}, cold; medians")
    print(f"{'threads':>7}{'tokens':>7}{'affine ms':>11}{'GB/s':>6}{'two-level ms':>14}{'GB/s':>6}{'faster':>8}"
          f"{'fastest':>9}")
    for threads in options.threads:
        cold, shape = options.cold_mb << 20, tuple(options.shape)
        for row in speed.measure(shape, options.tokens, cold, options.repeats, threads):
            print(f"{threads:7}{row['tokens']:7}{row['affine_s'] * 1e3:11.3f}{row['affine_gb_per_s']:6.1f}"
                  f"{row['two_level_s'] * 1e3:14.3f}{row['two_level_gb_per_s']:6.1f}{row['faster']:8.1%}"
                  f"{row['faster_best']:9.1%}", flush=True)


def print_quality(name: str, rows: list[dict]) -> None:
    """A line for each way: error, perplexity, and what it costs against the unquantized model on the same windows."""
    base = rows[0]["perplexities"]
    print(f"\n{name}, {len(base)} sets of windows")
    print(f"{'':32}{'squared error':>14}{'perplexity':>12}{'costs':>9}{'from':>9}{'to':>8}")
    for row in rows:
        costs = [p / b - 1 for p, b in zip(row["perplexities"], base, strict=True)]
        print(f"{row['way']:32}{row['error']:14.2e}{statistics.geometric_mean(row['perplexities']):12.4f}"
              f"{statistics.mean(costs):9.2%}{min(costs):9.2%}{max(costs):8.2%}", flush=True)


def main() -> None:
    """Parses the options, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "quality"])
    parser.add_argument("--shape", type=int, nargs=2, default=(3072, 8192), metavar=("OUT", "IN"))
    parser.add_argument("--tokens", type=int, nargs="+", default=(1, 4, 64, 512))
    parser.add_argument("--threads", type=int, nargs="+", default=(1,))
    parser.add_argument("--cold-mb", type=int, default=512, help="MB of weights to read before one is used again")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--steps", type=int, default=400, help="of training, 4096 bytes of text each")
    parser.add_argument("--seeds", type=int, default=6, help="sets of windows of held-out text")
    parser.add_argument("--gguf", type=Path, help="a Q4_1 model to quantize again, instead of the little one")
    options = parser.parse_args()
    print(report.machine_text(report.machine()))
    if options.what == "speed":
        print_speed(options)
        return
    from benchmarks.two_level import quality

    if options.gguf:
        for dithered, moved in ((False, 0), (True, 0), (True, 16)):
            name = options.gguf.name + ", dithered" * dithered + f", groups moved by {moved}" * bool(moved)
            print_quality(name, quality.of_gguf(options.gguf, options.seeds, dithered, moved))
        return
    for name, rows in quality.of_little_model(options.steps, options.seeds).items():
        print_quality(f"little model, {name}", rows)


if __name__ == "__main__":
    main()
