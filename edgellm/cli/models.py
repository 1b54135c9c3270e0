"""`edgellm split`, `plan` and `verify`: a model, and how it is split over boards."""

import json
import sys
from pathlib import Path

import click

from edgellm import config
from edgellm.cli.group import make_settings, utf8_text, verbose_option, with_plan_options
from edgellm.console import Progress, note
from edgellm.errors import UsageError


@click.command()
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the shards to.")
@click.option("--quantize", type=click.Choice(["none", "int8", "int4"]), default="none", show_default=True,
              help="How to pack weights; none keeps the source's own format.")  # fmt: skip
@click.option("--force", is_flag=True, help="Split again even if the folder already holds a split.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@verbose_option
def split(source, out, quantize, force, as_json, verbose):
    """Split a model into one shard file per layer, and a manifest.

    SOURCE is a Hugging Face folder, a .gguf file, a hub id (org/name) or a built-in model's name: smollm2-135m or
    gemma3-270m. If split is interrupted, the same command continues. If only the tokenizer, the chat template or the
    generation config has changed since, split updates only these files.

    \b
    Examples:
      edgellm split smollm2-135m --out smol
      edgellm split ./Phi-3-mini-4k-instruct --out phi3 --quantize int8
      edgellm split model.Q4_1.gguf --out model
    """
    manifest = split_source_to(source, out, quantize, force)
    from edgellm.checkpoint.split import bits_per_weight

    total, bits = sum(s.bytes for s in manifest.shards), bits_per_weight(out, manifest)
    if as_json:
        click.echo(json.dumps({"model": manifest.model, "manifest": str(out / "manifest.json"), "bytes": total,
                               "shards": len(manifest.shards), "bits_per_weight": round(bits, 3)}))  # fmt: skip
    else:
        click.echo(f"{out}: {manifest.model}, {manifest.num_layers} layers, {total / 1e9:.2f} GB in "
                   f"{len(manifest.shards)} shards, {bits:.2f} bits a weight")  # fmt: skip


def split_source_to(source, out, quantize, force=False, replace=False):
    """Split what SOURCE names into `out`, with progress and notes on stderr; return the Manifest."""
    from edgellm.checkpoint.sources import open_source
    from edgellm.checkpoint.split import split as split_source

    with Progress() as progress:
        opened = open_source(str(source), progress, note)
        at_first = opened.notes
        for text in at_first:
            note(text)

        def wrote(shard, done, total):
            progress(f"split {opened.name}", done, total)

        manifest = split_source(opened, out, quantize, wrote, force=force, replace=replace, note=note)
        for text in opened.notes[len(at_first) :]:
            note(text)
        return manifest


def builtin_model(name: str = config.DEFAULT_MODEL) -> Path:
    """Return a built-in model's split; make it now if it is missing or if an older edgellm made it differently."""
    from edgellm.checkpoint.builtin import BUILTIN
    from edgellm.errors import CheckpointError
    from edgellm.manager.local import models_dir
    from edgellm.shards.manifest import SHARD_FORMAT
    from edgellm.shards.safetensors_file import SafetensorsFile
    from edgellm.text.json_file import read_json

    out = models_dir() / name
    try:
        found = SafetensorsFile.open(out / "embedding.safetensors").metadata.get("format")
        generation = read_json(out / "generation_config.json")
    except CheckpointError:
        found, generation = None, {}
    advised = BUILTIN[name].sampling.items() <= generation.items()
    if found != SHARD_FORMAT or not advised or not (out / "manifest.json").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        split_source_to(name, out, "none", replace=True)
    return out


@click.command()
@click.argument("source", required=False)
@click.option("--manifest", type=click.Path(path_type=Path, exists=True),
              help="A split model's folder, or its manifest.json.")  # fmt: skip
@click.option("--quantize", type=click.Choice(["none", "int8", "int4"]), default="none", show_default=True,
              help="How a split of SOURCE would pack weights.")  # fmt: skip
@click.option("--board", "boards", multiple=True, required=True, metavar="NAME=SIZE[@TIME|@RATE],…",
              help="A board's free RAM, and if known its decode time per layer, or how fast it reads weights: "
                   "pi1=7GB@25ms, pi1=7GB@9GB/s (repeatable).")  # fmt: skip
@click.option("--objective", type=click.Choice(["latency", "throughput"]), default="latency", show_default=True,
              help="latency: few, fast boards; throughput: the least time on the slowest board.")  # fmt: skip
@with_plan_options
@click.option("--explain", is_flag=True, help="Say what each board gets, why, and what would not fit.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@verbose_option
def plan(
    source, manifest, quantize, boards, objective, context, slots, chunk, kv_dtype, swap_experts, explain, as_json,
    verbose,
):  # fmt: skip
    """Show which board would hold which layers, without asking any board.

    The model is a split one (--manifest) or a SOURCE as for split, of which only headers are read. For a model that
    runs natively its config.json is enough.

    \b
    Examples:
      edgellm plan Qwen3-30B-A3B/config.json --quantize int4 --board pi1=16GB@9GB/s,pi2=8GB@6GB/s
      edgellm plan --manifest phi3 --board pi1=3.1GB,pi2=3.1GB --explain
      edgellm plan --manifest qwen3-30b-a3b --board pi1=7GB,pi2=7GB --swap-experts
      edgellm plan --manifest phi3 --board pi1=3.1GB@25ms --board pc=6GB@40ms --objective throughput
    """
    from edgellm.plan import degraded_lines, explain_dict, explain_text, make_plan, parse_boards
    from edgellm.shards.manifest import Manifest

    if (source is None) == (manifest is None):
        raise UsageError("give either a SOURCE, such as a config.json, or --manifest with a split model's folder")
    if manifest is not None:
        model = Manifest.read(manifest)
    else:
        from edgellm.checkpoint.imagined import imagine

        with Progress() as progress:
            model = imagine(source, quantize, progress)
    capacities = parse_boards(boards, model)
    settings = make_settings(model, context, slots, chunk, kv_dtype, objective, swap_experts)
    made = make_plan(model, capacities, settings, epoch=1)
    if as_json:
        content = {"plan": made.to_dict()}
        if explain:
            content["explain"] = explain_dict(made, model, capacities)
        click.echo(json.dumps(content, indent=1))
    elif explain:
        click.echo(explain_text(made, model, capacities))
    else:
        for section in made.sections:
            click.echo(f"{section.board}: {section}")
        for line in degraded_lines(made, model, capacities):
            note(line)


@click.command()
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Cluster file.  [default: as for ask]")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1, 4096), default=32, show_default=True,
              help="Number of tokens to compare.")  # fmt: skip
@click.option("--prompt", default="The quick brown fox", show_default=True, help="Text to continue.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@verbose_option
def verify(cluster, tokens, prompt, as_json, verbose):
    """Compare the split's greedy tokens and logits with one transformers process over the same weights.

    If a layer differs, verify names the first one. It holds one layer in memory at a time. verify exits with 1 if
    anything differs.

    \b
    Examples:
      edgellm verify
      edgellm verify --cluster cluster.json --tokens 64 --json
    """
    from edgellm.check.compare import verify as run
    from edgellm.manager.cluster_file import ClusterFile, find

    prompt = utf8_text(prompt, "--prompt")
    path = find(str(cluster) if cluster else None)
    if path is None:
        raise UsageError("no cluster file. Start one with 'edgellm local up', or give it with --cluster FILE.")
    file = ClusterFile.read(path)
    with Progress() as progress:
        result = run(
            file.model_dir_path(path), file.plan, file.addresses(), prompt, tokens, progress, tls=file.client_tls(path)
        )
    click.echo(json.dumps(result.to_dict()) if as_json else result.to_text())
    sys.exit(0 if result.equal else 1)
