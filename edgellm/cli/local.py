"""`edgellm local up` and `local down`: a cluster on this machine."""

from pathlib import Path

import click

from edgellm import config
from edgellm.cli.group import make_settings, verbose_option, with_plan_options
from edgellm.cli.models import builtin_model
from edgellm.console import Progress, note
from edgellm.errors import UsageError


@click.group("local")
def local():
    """Run a cluster on this machine, without any board.

    \b
    Examples:
      edgellm local up --agents 3
      edgellm ask "Why is the sky blue?"
      edgellm local down
    """


@local.command("up")
@click.option("--agents", "count", type=click.IntRange(1, 8), default=2, show_default=True,
              help="Number of agents.")  # fmt: skip
@click.option("--model", "models", type=click.Path(path_type=Path, exists=True, file_okay=False), multiple=True,
              help=f"A split model's folder (repeatable; the first answers by default).  "
                   f"[default: {config.DEFAULT_MODEL}]")  # fmt: skip
@click.option("--draft-model", "draft", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A small split model with the same tokens, which drafts the first model's answers.")  # fmt: skip
@click.option("--objective", type=click.Choice(["latency", "throughput"]), default="throughput", show_default=True,
              help="As for 'edgellm plan'.")  # fmt: skip
@with_plan_options
@click.option("--ram", metavar="SIZE", help="Let each agent offer at most this much RAM.")
@click.option("--path", "how", type=click.Choice(["auto", "generic"]), default="auto", show_default=True,
              help="As for 'edgellm agent'.")  # fmt: skip
@click.option("--cache-gb", type=click.FloatRange(0, 1e6), default=config.DEFAULT_CACHE_GB, show_default=True,
              metavar="GB", help="Keep prompts on disk in up to this many GB together; 0: keep none.")  # fmt: skip
@click.option("--cache-ram-gb", type=click.FloatRange(0, 1e6), default=config.DEFAULT_CACHE_RAM_GB, show_default=True,
              metavar="GB",
              help="Keep them in up to this much of the RAM that no plan needs, too; 0: don't.")  # fmt: skip
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write the cluster file.  [default: the user's config folder]")  # fmt: skip
@verbose_option
def local_up(
    count, models, draft, objective, context, slots, chunk, kv_dtype, swap_experts, ram, how, cache_gb, cache_ram_gb,
    cluster, verbose,
):  # fmt: skip
    """Start agents on loopback and keep them running, so that questions are answered without delay.

    \b
    Examples:
      edgellm local up
      edgellm local up --agents 3 --model phi3 --context 1024
      edgellm local up --model smollm2 --model phi3
      edgellm local up --model qwen3-4b --draft-model qwen3-0.6b
    """
    import asyncio
    from dataclasses import replace

    from edgellm.manager import local as processes
    from edgellm.manager.cluster_file import ClusterFile, default_path
    from edgellm.plan import draft_of, parse_size
    from edgellm.shards.manifest import Manifest
    from edgellm.text.vocabulary import check_draft

    path = cluster or default_path()
    record = processes.state_dir() / "agents.json"
    if processes.recall(record):
        raise UsageError("a local cluster is already up. Stop it with 'edgellm local down' first.")
    if path.exists() and not ClusterFile.read(path).is_local():
        raise UsageError(f"{path} describes a cluster of boards. Give another path with --cluster FILE.")
    model_dir, *more = [model.resolve() for model in models or (builtin_model(),)]
    manifests = [Manifest.read(folder) for folder in (model_dir, *more)]
    settings = [
        make_settings(manifest, context, slots, chunk, kv_dtype, objective, swap_experts) for manifest in manifests
    ]
    if draft is not None:
        check_draft(manifests[0], model_dir, drafts := Manifest.read(draft), draft)
        settings[0] = replace(settings[0], draft=draft_of(drafts, settings[0]))
    ram_bytes = parse_size(ram, "--ram") if ram else None
    cache = {"cache_gb": cache_gb, "cache_ram_gb": cache_ram_gb}
    others = [*more, *([] if draft is None else [draft.resolve()])]
    limits = {"record": record, "ram_bytes": ram_bytes, "path": how, "more": others, **cache}
    with processes.LocalAgents(model_dir, count, processes.state_dir(), **limits) as agents:
        with Progress() as progress:
            progress(f"starting {count} agents")
            addresses = agents.start()
            made = asyncio.run(
                processes.form_cluster(manifests[0], addresses, settings[0], remembered=agents.plan_file)
            )
            file = ClusterFile.make(model_dir, addresses, made)
            for folder, manifest, wanted in zip(more, manifests[1:], settings[1:], strict=True):
                file = file.adding(folder, asyncio.run(processes.could_hold(manifest, addresses, wanted)))
        path.parent.mkdir(parents=True, exist_ok=True)
        file.write(path)
        agents.leave_running()
    for section in made.sections:
        host, port = addresses[section.board]
        click.echo(f"{section.board} {host}:{port} {section}")
    note(f"cluster file {path}; stop the cluster with 'edgellm local down'")


@local.command("down")
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE", help="The cluster file to remove.")
@verbose_option
def local_down(cluster, verbose):
    """Stop the agents that `local up` started, and remove their cluster file.

    \b
    Examples:
      edgellm local down
    """
    from edgellm.manager import local as processes
    from edgellm.manager.cluster_file import ClusterFile, default_path

    record, path = processes.state_dir() / "agents.json", cluster or default_path()
    agents = processes.recall(record)
    processes.end(agents, note)
    record.unlink(missing_ok=True)
    if path.exists() and ClusterFile.read(path).is_local():
        path.unlink()
    click.echo(f"{len(agents)} agents stopped" if agents else "no local cluster was up")
