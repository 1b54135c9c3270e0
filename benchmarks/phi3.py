"""Phi-3-mini at full size on two agents with 4 GB of RAM each: splits, plans, answers, verifies, and measures memory.

    python -m benchmarks.phi3
    python -m benchmarks.phi3 --keep phi3-work --json

The weights are random: no download. Needs some 13 GB of disk for a while, and root for a limit on RAM that the kernel
enforces; without, agents are only told to offer 4 GB. Everything is removed at the end, except with --keep.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks import report
from benchmarks.processes import MemoryGroup, drop_cached, major_faults, memory_of, run_measured
from benchmarks.report import Row, at_most, holds
from edgellm.check.compare import verify
from edgellm.console import Progress, note
from edgellm.errors import EdgellmError
from edgellm.manager import local
from edgellm.manager.client import ClusterClient
from edgellm.manager.connections import Connections
from edgellm.plan import Plan, Settings, section_need, usable_bytes
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest

# As Phi-3-mini-4k-instruct has it.
CONFIG = {
    "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "torch_dtype": "bfloat16",
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096, "sliding_window": 2047, "rope_theta": 10000.0, "rope_scaling": None,
    "rms_norm_eps": 1e-05, "hidden_act": "silu", "tie_word_embeddings": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000, "initializer_range": 0.02, "use_cache": True,
}  # fmt: skip
NAME = "phi-3-mini-random"
AGENTS, RAM_BYTES = 2, 4_000_000_000
SETTINGS = Settings(context=1024, slots=1, kv_dtype="float16", objective="throughput")
SPLIT_SPARE_BYTES = 500_000_000  # `edgellm split` may use three times its largest shard in float32, and this
PROMPT, DECODED, VERIFIED = 64, 32, 16
_LAYERS_A_FILE = 2
_SPLIT_TIMEOUT_S, _ANSWER_TIMEOUT_S = 3600.0, 900.0


def tensors(layer: int | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's tensors, or of those outside of all layers."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    if layer is None:
        vocabulary = (CONFIG["vocab_size"], hidden)
        return {"model.embed_tokens.weight": vocabulary, "model.norm.weight": (hidden,), "lm_head.weight": vocabulary}
    shapes = {
        "self_attn.qkv_proj": (3 * hidden, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_up_proj": (2 * inner, hidden), "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    return {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}


def elements(layer: int | None) -> int:
    """How many weights those are."""
    return sum(torch.Size(shape).numel() for shape in tensors(layer).values())


def write_model(folder: Path) -> None:
    """A Hugging Face folder of random bf16 weights, a few layers in memory at a time."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    layers = list(range(CONFIG["num_hidden_layers"]))
    groups = [[None], *(layers[i : i + _LAYERS_A_FILE] for i in range(0, len(layers), _LAYERS_A_FILE))]
    generator, where, total = torch.Generator().manual_seed(0), {}, 0
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        note(f"writes {name}")
        content = {}
        for tensor, shape in (item for layer in group for item in tensors(layer).items()):
            mean, spread = (1.0, 0.05) if len(shape) == 1 else (0.0, CONFIG["initializer_range"])
            content[tensor] = torch.empty(shape, dtype=torch.bfloat16).normal_(mean, spread, generator=generator)
            total += content[tensor].nbytes
        save_file(content, folder / name, {"format": "pt"})
        where |= dict.fromkeys(content, name)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def split_model(source: Path, out: Path) -> list[Row]:
    """`edgellm split --quantize int8` as a process, its peak memory beside the bound."""
    command = [sys.executable, "-m", "edgellm", "split", str(source), "--out", str(out), "--quantize", "int8"]
    done = run_measured(command, _SPLIT_TIMEOUT_S)
    if done.code:
        sys.exit(f"benchmark: edgellm split ended with code {done.code}")
    largest = 4 * max(elements(0), CONFIG["vocab_size"] * CONFIG["hidden_size"])
    manifest = Manifest.read(out)
    return [
        Row("split to int8", done.wall_s, "s"),
        at_most("  peak memory, mapped files included", done.peak_bytes / 1e6, "MB",
                (3 * largest + SPLIT_SPARE_BYTES) // 1_000_000),
        Row("  shards", sum(s.bytes for s in manifest.shards) / 1e9, "GB"),
    ]  # fmt: skip


def limits(stack: ExitStack) -> dict[str, MemoryGroup]:
    """A control group for each agent; none where they can't be had."""
    try:
        names = [f"local{i + 1}" for i in range(AGENTS)]
        return {name: stack.enter_context(MemoryGroup(name, RAM_BYTES)) for name in names}
    except OSError as e:
        note(f"no control groups ({e}): agents are only told to offer {RAM_BYTES / 1e9:.0f} GB")
        return {}


def measure(model: Path, logs: Path) -> list[Row]:
    """Two limited agents serve the split in `model`: memory, speed, and verify."""
    manifest = Manifest.read(model)
    with ExitStack() as stack:
        groups = limits(stack)
        drop_cached(model)  # else pages that the split left behind would be free for the agents
        agents = stack.enter_context(
            local.LocalAgents(
                model, AGENTS, logs, ram_bytes=None if groups else RAM_BYTES, cache_gb=0, cache_ram_gb=0,
                prefix=lambda name: groups[name].prefix() if name in groups else [],
            )  # fmt: skip
        )
        note(f"starts {AGENTS} agents")
        addresses = agents.start()
        pids = {a.name: a.pid for a in agents.agents}
        before = asyncio.run(offers(addresses))
        note("loads the sections")
        began = time.monotonic()
        plan = asyncio.run(local.form_cluster(manifest, addresses, SETTINGS, shared_ram=False))
        loaded_s = time.monotonic() - began
        note("asks")
        faults = {name: major_faults(pid) for name, pid in pids.items()}
        rows = [*limit_rows(groups, before, manifest), Row("sections loaded and checked", loaded_s, "s")]
        rows += asyncio.run(ask(plan, addresses, manifest))
        faults = {name: major_faults(pid) - faults[name] for name, pid in pids.items()}
        serving = asyncio.run(offers(addresses))
        rows += verify_rows(model, plan, addresses, manifest)
        for section in plan.sections:
            name = section.board
            need = section_need(manifest, SETTINGS, section.start, section.end)
            parts = f"{need.weights / 1e9:.2f} + {need.kv / 1e9:.2f} + {need.activations / 1e9:.2f}"
            rows += [
                Row(f"{name}, {section}: the plan counts", need.total / 1e9, "GB"),
                Row("  weights + KV + activations", parts, "GB"),
                Row("  offers before it serves", before[name] / 1e9, "GB"),
                Row("  offers while it serves", serving[name] / 1e9, "GB"),
                Row("  page faults that read the disk, while answering", faults[name]),
                *memory_rows(pids[name], groups.get(name)),
            ]
    return rows


def limit_rows(groups: dict[str, MemoryGroup], offered: dict[str, int], manifest: Manifest) -> list[Row]:
    """How the agents are limited, and that one of them could not hold the model."""
    how = f"{RAM_BYTES / 1e9:.0f} GB, told by --ram"
    for group in groups.values():
        how = f"{RAM_BYTES / 1e9:.0f} GB, control groups v{group.version}"
    alone = section_need(manifest, SETTINGS, 0, manifest.num_layers).total
    usable = max(usable_bytes(offer) for offer in offered.values())
    return [
        holds("RAM of each agent", how, "enforced", bool(groups)),
        holds("one agent alone", f"needs {alone / 1e9:.2f} of {usable / 1e9:.2f} GB", "too little", alone > usable),
    ]


def verify_rows(model: Path, plan: Plan, addresses: dict, manifest: Manifest) -> list[Row]:
    """`edgellm verify` on the running cluster."""
    note("verifies")
    began = time.monotonic()
    prompt = random.Random(1).choices(range(manifest.vocab_size), k=PROMPT)
    with Progress() as progress:
        result = verify(model, plan, addresses, prompt, VERIFIED, progress)
    note(result.to_text())
    said = "equal" if result.equal else "differs"
    return [
        holds(f"verify, {VERIFIED} tokens after {PROMPT}", said, "equal", result.equal),
        Row("  logits differ by, relative", f"{result.logits_difference:.1e}"),
        Row("  layers differ by at most", f"{max(x.difference for x in result.layers):.1e}"),
        Row("  took", time.monotonic() - began, "s"),
    ]


async def offers(addresses: dict[str, tuple[str, int]]) -> dict[str, int]:
    """Bytes of RAM that each agent says it offers."""
    async with Connections() as connections:
        said = [await board.status() for board in await connections.to_all(addresses)]
        return {s.name: s.capacity.ram_bytes for s in said}


async def ask(plan: Plan, addresses: dict[str, tuple[str, int]], manifest: Manifest) -> list[Row]:
    """A short answer to random ids, all of it computed: seconds to the first token, tokens a second, what each stage
    computes."""
    prompt = random.Random(0).choices(range(manifest.vocab_size), k=PROMPT)
    clock, stats = asyncio.get_running_loop().time, {}
    async with ClusterClient.dial(plan, addresses) as cluster, asyncio.timeout(_ANSWER_TIMEOUT_S):
        for tokens in (2, DECODED):  # the first one warms up
            began = clock()
            stream = cluster.generate(
                prompt, sampling=Sampling(), max_tokens=tokens, eos=(), stats=stats, speculate=False, reuse=False
            )
            at = [c.at_s async for c in stream]
    per_token_s = (at[-1] - at[0]) / (DECODED - 1)
    rows = [
        Row(f"time to first token, {PROMPT} tokens", at[0] - began, "s"),
        Row("decode, one sequence", 1 / per_token_s, "tok/s"),
        Row("  a token", per_token_s * 1e3, "ms"),
    ]
    for section in plan.sections:
        told = stats[section.board]
        read = sum(s.bytes for s in manifest.section_shards(section.start, section.end) if s.kind != "embedding")
        step_s = told["decode_s"] / told["decode_steps"]
        rows.append(Row(f"  computing on {section.board}, {section}", step_s * 1e3, "ms"))
        rows.append(Row("    reads weights at", read / step_s / 1e9, "GB/s"))
    return rows


def memory_rows(pid: int, group: MemoryGroup | None) -> list[Row]:
    """An agent's memory, and its control group's."""
    memory = memory_of(pid)
    rows = [
        Row("  peak RSS", memory.peak / 1e9, "GB"),
        Row("  RSS now: its own + mapped files", f"{memory.anonymous / 1e9:.2f} + {memory.file / 1e9:.2f}", "GB"),
    ]
    if group is not None:
        usage, peak = group.usage(), group.peak_bytes()
        parts = f"{usage['anonymous'] / 1e9:.2f} + {usage['file'] / 1e9:.2f}"
        rows += [
            at_most("  control group, peak", None if peak is None else peak / 1e9, "GB", group.limit_bytes / 1e9),
            Row("  control group now: anonymous + file", parts, "GB"),
            Row("  times at the limit", usage["at_limit"]),
            at_most("  killed for memory", usage["oom_kills"], "", 0),
        ]
    return rows


def main() -> None:
    """Parses the options, does everything, prints, cleans up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in DIR, use what is there, and leave the split")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is cleaned up
    machine = report.machine()
    with ExitStack() as stack:
        if options.keep:
            work = options.keep.resolve()
            work.mkdir(parents=True, exist_ok=True)
        else:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgellm-phi3-")))
        try:
            rows = make_split(work) + measure(work / "split", work / "logs")
        except EdgellmError as e:
            sys.exit(f"benchmark: {e}")
    machine["load_average_after"] = list(os.getloadavg())
    if options.json:
        print(report.to_json("phi3", machine, rows))
    else:
        print(report.machine_text(machine, machine["load_average_after"][0]))
        print(report.table(rows))


def make_split(work: Path) -> list[Row]:
    """Writes the model and splits it, unless that is done; the model itself is removed."""
    if (work / "split" / "manifest.json").is_file():
        return []
    weights = elements(None) + CONFIG["num_hidden_layers"] * elements(0)
    needed = int(weights * (2 + 34 / 32)) + 500_000_000  # bf16, int8 with its scales, and something to spare
    free = shutil.disk_usage(work).free
    if free < needed:
        sys.exit(f"benchmark: {work}: {free / 1e9:.1f} GB of disk are free, {needed / 1e9:.1f} GB are needed")
    source = work / NAME
    shutil.rmtree(source, ignore_errors=True)
    began = time.monotonic()
    try:
        write_model(source)
        rows = [Row(f"a model of {weights / 1e9:.2f} G weights, bf16", weights * 2 / 1e9, "GB"),
                Row("  written in", time.monotonic() - began, "s")]  # fmt: skip
        return rows + split_model(source, work / "split")
    finally:
        shutil.rmtree(source, ignore_errors=True)


if __name__ == "__main__":
    main()
