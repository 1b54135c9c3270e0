"""What attention takes of a decode step: one section on one core, at the begin of a sequence and far into it, in turns.

    python -m benchmarks.attention
    python -m benchmarks.attention --model phi3-int8 --context 2000

A step far into a sequence also reads the keys and values of all tokens before it. The models are those of `make bench`,
made if they aren't there.
"""

import argparse
import os
import time

from benchmarks import models, report
from benchmarks.processes import worker_cores
from benchmarks.report import Row, at_most, median
from edgellm.console import note
from edgellm.kernels import library
from edgellm.model.native.section import NativeSection, read_spec

MODELS = ("phi3-int4", "phi3-int8")
LIMIT = 10.0  # per cent
_LAYERS, _ROUNDS, _NEAR = 8, 21, 1


def measure(model: models.Model, context: int) -> list[Row]:
    """Rows of one model: milliseconds a layer, attention's share, and its share of the bytes that are read."""
    manifest = model.manifest
    spec, reason = read_spec(manifest, model.split)
    if spec is None:
        raise SystemExit(f"{model.name} has no native sections: {reason}")
    section = NativeSection(spec, manifest, model.split, 0, _LAYERS, without_ends=True, verify_sha256=False)
    slot, x = section.new_slot(context + 1), section.example()
    slot.filled = context  # with zeros: what is in it takes no more or less time
    times = {_NEAR: [], context: []}
    for _ in range(_ROUNDS + 1):
        for position, taken in times.items():
            began = time.perf_counter()
            section.forward(x, position, slot, position + 1, 0)
            taken.append(time.perf_counter() - began)
    near, far = (taken[1:] for taken in times.values())  # the first brought weights into memory
    kv_bytes = 2 * manifest.kv_elements_per_token[0] * context  # in float16
    weight_bytes = median(s.bytes for s in manifest.shards if s.kind == "layer")
    share = median(1 - n / f for n, f in zip(near, far, strict=True))
    return [
        Row(f"{model.name}: a layer, token {_NEAR}", median(near) * 1e3 / _LAYERS, "ms"),
        Row(f"  a layer, token {context}", median(far) * 1e3 / _LAYERS, "ms"),
        at_most("  attention's share of it", 100 * share, "%", LIMIT),
        Row("  its keys' and values' share of the bytes", 100 * kv_bytes / (kv_bytes + weight_bytes), "%"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(models.RECIPES), help="repeatable; default: two")
    parser.add_argument("--context", type=int, default=2000, help="tokens before the step (default: 2000)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    machine, core = report.machine(), worker_cores(2)[-1]
    os.sched_setaffinity(0, {core})
    library.set_threads(1, [core])
    rows = []
    for model in models.prepare(options.model or list(MODELS)).values():
        note(f"{model.name}: {_ROUNDS} steps each")
        rows += measure(model, options.context)
    print(report.text("attention", machine, rows, options.json))


if __name__ == "__main__":
    main()
