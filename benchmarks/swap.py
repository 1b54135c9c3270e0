"""Experts that don't fit into RAM: which advice to the system makes them come from the disk soonest.

    python -m benchmarks.swap                              # root, control groups with a memory controller
    python -m benchmarks.swap --limit-mb 350 --tokens 40

A model with experts and random weights (about 600 MB) is split once. Then a section with all of its layers computes an
answer in a process that may have less RAM than that, page cache included, for each kind of advice:

- none: pages come one fault at a time, each with its neighbours, as the system guesses them;
- random: the same without neighbours (MADV_RANDOM);
- at once: those experts that the router has chosen are asked for before they are multiplied with (MADV_WILLNEED);
- both, which is what sections do whose experts don't fit.

Tokens must be those of a process without a limit. The last line is what the planner predicts for this.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import report
from benchmarks.processes import BenchmarkError, MemoryGroup, drop_cached
from benchmarks.report import Row

ADVICE = ("none", "random", "at once", "both")
CONFIG = dict(
    hidden_size=512, intermediate_size=512, moe_intermediate_size=384, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=2, head_dim=64, num_experts=64, num_experts_per_tok=4, vocab_size=4096,
    max_position_embeddings=1024, tie_word_embeddings=True,
)  # fmt: skip
_PROMPT = 24
_TIMEOUT_S = 900.0


def make_split(folder: Path) -> Path:
    """Return the folder of the split, which is made unless it is there."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from edgellm.checkpoint.sources import open_source
    from edgellm.checkpoint.split import split

    out = folder / "split"
    if not (out / "manifest.json").is_file():
        import torch

        torch.manual_seed(0)
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**CONFIG)).to(torch.bfloat16)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # what a layer adds is little, so that each token has its own experts in all of them
                parameter.data.normal_(0, 1 if "embed" in name else 0.01)
        model.save_pretrained(folder / "source")
        split(open_source(str(folder / "source"), lambda *told: None, print), out, "none")
    return out


def answer(folder: Path, advice: str, tokens: int) -> dict:
    """Compute the likeliest tokens after random ones here, because an answer of random weights soon repeats itself, and
    with that its experts. Return them, the seconds of one, and the bytes that it read from the disk."""
    from edgellm.model.native.section import NativeSection, read_spec
    from edgellm.shards.manifest import Manifest
    from edgellm.shards.mapped import MappedShard

    class Shard(MappedShard):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for tensor in self.tensors.values():
                if len(tensor.shape) == 3 and advice in ("random", "both"):
                    super().read_alone(tensor)

        def read_alone(self, tensor):
            """What a section asks for isn't what is measured."""

    import edgellm.model.native.load as load

    load.MappedShard = Shard
    manifest = Manifest.read(folder)
    spec, reason = read_spec(manifest, folder)
    if spec is None:
        raise BenchmarkError(reason)
    swaps = advice in ("at once", "both")
    section = NativeSection(spec, manifest, folder, 0, manifest.num_layers, swaps=swaps, verify_sha256=False)
    slot, ids = section.new_slot(_PROMPT + tokens), np.random.default_rng(0).integers(0, spec.vocab_size, tokens)
    chosen, times, read = [], [], []
    x = np.arange(1, _PROMPT + 1)
    for _ in range(tokens):
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_inblock
        logits = section.forward(x, slot.filled, slot, slot.filled + len(x), 1)
        times.append(time.perf_counter() - began)
        read.append(512 * (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before))
        chosen.append(int(np.argmax(logits[0])))
        x = ids[len(chosen) :][:1]
    half = slice(tokens // 2, None)  # the cache has what it will have
    return {"tokens": chosen, "token_s": float(np.median(times[half])), "read_bytes": float(np.mean(read[half]))}


def _run(folder: Path, advice: str, tokens: int, group: MemoryGroup | None) -> dict:
    command = [sys.executable, "-m", "benchmarks.swap", "--folder", str(folder), "--advice", advice]
    command += ["--tokens", str(tokens)]
    drop_cached(folder)
    found = subprocess.run(
        [*(group.prefix() if group else []), *command], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if found.returncode:
        raise BenchmarkError(f"advice {advice!r}: {found.stderr.strip().splitlines()[-1:] or found.returncode}")
    return json.loads(found.stdout)


def predicted(folder: Path, limit_bytes: int, rate: float, alone_s: float) -> tuple[float, float]:
    """Return the bytes that a token should read, and its seconds, in a process that has `limit_bytes`."""
    from edgellm.shards.manifest import Manifest

    manifest = Manifest.read(folder)
    held, whole = limit_bytes, sum(s.ram_bytes for s in manifest.shards)
    share = manifest.touched_expert_bytes / sum(manifest.expert_bytes)
    read = max(0, whole - held) * share
    return read, alone_s + read / rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/edgellm-benchmark-swap"))
    parser.add_argument("--limit-mb", type=int, default=350, help="RAM of the process")
    parser.add_argument("--tokens", type=int, default=60, help="tokens of the answer")
    parser.add_argument("--advice", choices=ADVICE, help="compute an answer in this process, and print it as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.advice:
        print(json.dumps(answer(options.folder, options.advice, options.tokens)))
        return
    from edgellm.agent.measure import disk_bytes_per_s
    from edgellm.shards.manifest import Manifest

    split = make_split(options.folder)
    rate = disk_bytes_per_s(Manifest.read(split), split) or 0.0
    free = _run(split, "none", options.tokens, None)
    rows = [
        Row("the disk, in pieces of 1 MB", rate / 1e6, "MB/s"),
        Row("without a limit", 1e3 * free["token_s"], "ms a token"),
    ]
    for advice in ADVICE:
        with MemoryGroup("swap", options.limit_mb << 20) as group:
            found = _run(split, advice, options.tokens, group)
        same = found["tokens"] == free["tokens"]
        rows += [
            Row(f"advice: {advice}", 1e3 * found["token_s"], "ms a token"),
            Row("  read from the disk", found["read_bytes"] / 1e6, "MB a token"),
            Row("  tokens", "the same" if same else "others", "", "the same", same),
        ]
    read, token_s = predicted(split, options.limit_mb << 20, rate, free["token_s"])
    rows += [Row("predicted", 1e3 * token_s, "ms a token"), Row("  read from the disk", read / 1e6, "MB a token")]
    print(report.text("swap", report.machine(), rows, options.json))


if __name__ == "__main__":
    main()
