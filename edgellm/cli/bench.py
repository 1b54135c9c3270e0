"""`edgellm bench`: how fast this machine's kernels are."""

import click

_WEIGHTS = (
    "int4s", "int4", "int8", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "q5_0", "q5_1",
    "bf16", "f16", "f32",
)  # fmt: skip
_SHAPES = ("smollm2-135m", "llama-3.2-1b", "phi-3-mini", "llama-3.1-8b")


@click.command()
@click.option("--shape", type=click.Choice(_SHAPES), default="phi-3-mini", show_default=True,
              help="Compute a layer of this model's shape.")  # fmt: skip
@click.option("--weights", type=click.Choice(_WEIGHTS), multiple=True, default=("int4s", "int4", "int8"),
              show_default=True, help="Encoding of the weights (repeatable).")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1, 4096), multiple=True, default=(1, 32), show_default=True,
              help="Number of tokens at once: 1 is decode, more is prefill (repeatable).")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 64), help="Number of compute threads.  [default: one per core]")
@click.option("--cores", metavar="LIST", help="Cores to compute on, such as 4-7 or 0,2.  [default: the fastest kind]")
@click.option("--seconds", type=click.FloatRange(0), default=0.5, show_default=True, help="Time to measure each row.")
@click.option("--target", help="Instruction set: avx512vnni, avx2, dotprod, neon or scalar.  [default: the best]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(shape, weights, tokens, threads, cores, seconds, target, as_json):
    """Measure this machine's kernels: memory in GB/s, products in GOP/s, milliseconds per layer.

    bench needs no model and takes about ten seconds. Stop the board's agent first, because otherwise both are slow. A
    layer of the phi-3-mini shape takes 0.4 GB of RAM in int8.

    \b
    Examples:
      edgellm bench
      edgellm bench --shape llama-3.2-1b --weights int4s --tokens 1 --tokens 16
      edgellm bench --cores 4-7 --json > bench.json
    """
    import dataclasses
    import json
    import os

    from edgellm import __version__
    from edgellm.agent import bench as measuring
    from edgellm.agent.cores import allowed_cores, fastest_kind, format_list, parse_list, read_cores
    from edgellm.errors import UsageError
    from edgellm.kernels import library

    try:
        for encoding in weights:
            for matrix in measuring.SHAPES[shape].matrices:
                library.weight_bytes(encoding, matrix)
    except ValueError as e:
        raise UsageError(f"{shape} can't be measured with --weights {encoding}: {e}.") from None
    numbers = parse_list(cores) if cores else fastest_kind(read_cores(allowed_cores()))
    count = threads or len(numbers)
    if count > len(numbers):
        there = format_list(numbers)
        raise UsageError(f"{count} threads need as many cores, not {len(numbers)} ({there}). Name more with --cores.")
    pinned = hasattr(os, "sched_setaffinity")
    try:
        if target:
            library.use_target(target)
        library.set_threads(count, numbers[:count] if pinned else ())
    except ValueError as e:
        raise UsageError(str(e)) from None
    try:
        machine, gb_per_s = measuring.describe(), measuring.read_speed(seconds=seconds)
        facts = {
            "edgellm": __version__, **dataclasses.asdict(machine), "kernels": library.target(), "threads": count,
            "cores": format_list(numbers[:count]), "core_reads_gb_per_s": gb_per_s, "shape": shape,
        }  # fmt: skip
        rows = measuring.measure(measuring.SHAPES[shape], list(weights), list(tokens), seconds)
        if as_json:
            print(json.dumps({**facts, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1))
            return
        print(f"edgellm {__version__} on {machine.board}: {machine.cpu}")
        on = f"{library.target()} kernels, threads: {count}, cores: {facts['cores']}"
        print(f"{on}; one core reads {gb_per_s:.1f} GB/s")
        print(f"\n{f'a layer of {shape}':26}{'tokens':>7}{'ms':>9}{'GB/s':>7}{'GOP/s':>8}")
        for row in rows:
            speeds = f"{row.ms_per_layer:9.2f}{row.gb_per_s:7.1f}{row.gop_per_s:8.0f}"
            print(f"{row.encoding:26}{row.tokens:7}{speeds}", flush=True)
    finally:
        library.use_target(None)
        library.set_threads(1)
