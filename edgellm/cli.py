"""The command line: one function a command, heavy imports inside. Answers on stdout, everything else on stderr."""

import json
import logging
import sys
from pathlib import Path

import click

from edgellm import __version__, config
from edgellm.console import Progress, note
from edgellm.errors import EdgellmError, UsageError

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Group(click.Group):
    """Keeps the paragraphs of examples as they are written, and turns errors into one line."""

    def main(self, *args, **kwargs):
        kwargs["standalone_mode"] = False
        arguments = (args[0] if args else kwargs.get("args")) or sys.argv[1:]
        verbose = "-v" in arguments or "--verbose" in arguments
        try:
            code = super().main(*args, **kwargs)
        except EdgellmError as e:
            _fail(str(e), e.exit_code, verbose)
        except click.exceptions.Abort:
            sys.exit(130)
        except KeyboardInterrupt:
            sys.exit(130)
        except click.exceptions.NoArgsIsHelpError as e:
            e.show()
            sys.exit(2)
        except click.ClickException as e:
            hint = f" Try '{e.ctx.command_path} --help'." if getattr(e, "ctx", None) else ""
            _fail(e.format_message() + hint, 2, False)
        except OSError as e:
            where = f"{e.filename}: " if e.filename else ""
            _fail(f"{where}{e.strerror or e}", 1, verbose)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int, verbose: bool) -> None:
    if verbose:
        import traceback

        traceback.print_exc()
    note(f"edgellm: {' '.join(text.split())}")
    sys.exit(code)


@click.group(cls=_Group, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="edgellm")
def main():
    """A handful of small boards that answer as one machine.

    \b
    Examples:
      edgellm ask "Why is the sky blue?"
      edgellm local up && edgellm ask "And at night?"
      edgellm split ./Phi-3-mini-4k-instruct --out phi3 --quantize int8
      edgellm plan --manifest phi3 --board pi1=3.1GB,pi2=3.1GB --explain
    """


_verbose = click.option("-v", "--verbose", is_flag=True, help="More on stderr; errors come with a traceback.")
_plan_options = [
    click.option("--context", type=click.IntRange(1), metavar="TOKENS",
                 help=f"Tokens a slot holds, prompt and answer.  [default: {config.DEFAULT_CONTEXT}, or the model's]"),
    click.option("--slots", type=click.IntRange(1, 1024), default=config.DEFAULT_SLOTS, show_default=True,
                 help="Sequences at once."),
    click.option("--chunk", type=click.IntRange(1, 8192), default=config.DEFAULT_CHUNK, show_default=True,
                 metavar="TOKENS", help="Prompt tokens a prefill chunk."),
    click.option("--kv-dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
                 help="Numbers in the KV cache; float16 takes half the RAM."),
]  # fmt: skip


def _with_plan_options(command):
    for option in reversed(_plan_options):
        command = option(command)
    return command


def _settings(manifest, context, slots, chunk, kv_dtype, objective):
    from edgellm.plan import Settings

    most = manifest.max_seq_len
    if context is not None and context > most:
        raise UsageError(f"--context is {context}, {manifest.model} was made for at most {most}")
    return Settings(context or min(config.DEFAULT_CONTEXT, most), slots, chunk, kv_dtype, objective)


@main.command()
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the shards.")
@click.option("--quantize", type=click.Choice(["none", "int8", "int4"]), default="none", show_default=True,
              help="Pack weights; none adds no quantization to what the source has.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace another split in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_verbose
def split(source, out, quantize, force, as_json, verbose):
    """Split a model into one shard file a layer, and a manifest.

    SOURCE is a Hugging Face folder, a .gguf file, a hub id (org/name) or the built-in name smollm2-135m.
    Interrupted, the same command goes on where it was.

    \b
    Examples:
      edgellm split smollm2-135m --out smol
      edgellm split ./Phi-3-mini-4k-instruct --out phi3 --quantize int8
      edgellm split model.Q4_1.gguf --out model
    """
    manifest = _split(source, out, quantize, force)
    total = sum(s.bytes for s in manifest.shards)
    if as_json:
        click.echo(json.dumps({"model": manifest.model, "manifest": str(out / "manifest.json"),
                               "shards": len(manifest.shards), "bytes": total}))  # fmt: skip
    else:
        click.echo(f"{out}: {manifest.model}, {manifest.num_layers} layers, {total / 1e9:.2f} GB in "
                   f"{len(manifest.shards)} shards")  # fmt: skip


def _split(source, out, quantize, force=False):
    from edgellm.checkpoint.sources import open_source
    from edgellm.checkpoint.split import split as split_source

    with Progress() as progress:
        opened = open_source(str(source), progress)

        def wrote(shard, done, total):
            progress(f"split {opened.name}", done, total)

        return split_source(opened, out, quantize, wrote, force=force)


@main.command()
@click.option("--shards", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="Folder with a manifest and shard files.")  # fmt: skip
@click.option("--listen", default=f"127.0.0.1:{config.DEFAULT_PORT}", show_default=True, metavar="HOST:PORT",
              help="Address to serve on; port 0 takes a free one.")  # fmt: skip
@click.option("--name", help="The board's name in plans.  [default: the host's name]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Computing threads.  [default: all cores]")
@click.option("--ram", metavar="SIZE", help="Offer at most this much RAM, as in 3GB.")
@click.option("--drain-seconds", type=click.FloatRange(0), default=60.0, show_default=True,
              help="How long running answers may go on after SIGTERM.")  # fmt: skip
@click.option("--announce", is_flag=True, hidden=True, help="Print the address as JSON when it listens.")
@click.option("--until-eof", is_flag=True, hidden=True, help="End when stdin does.")
@_verbose
def agent(shards, listen, name, threads, ram, drain_seconds, announce, until_eof, verbose):
    """Serve a section of a model from this machine.

    The agent measures free RAM and speed, waits to be given a section, and serves it. SIGTERM lets running answers
    end, takes no new ones, and exits.

    \b
    Examples:
      edgellm agent --shards phi3 --listen 0.0.0.0:7710
      edgellm agent --shards phi3 --listen 127.0.0.1:7711 --ram 2GB --threads 1
    """
    import asyncio
    import socket

    from edgellm.agent import measure
    from edgellm.agent.serve import AgentOptions, serve
    from edgellm.plan import BOARD_NAME, parse_size

    logging.basicConfig(
        stream=sys.stderr, level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )  # fmt: skip
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    host, port = _address(listen)
    name = name or socket.gethostname().split(".")[0]
    if not BOARD_NAME.match(name):
        raise UsageError(f"{name!r} is no board name, expected letters, digits, '.', '_' or '-'. Give one with --name.")
    options = AgentOptions(
        shards, host, port, name, threads or measure.cores(), parse_size(ram, "--ram") if ram else None, drain_seconds
    )

    def ready(running):
        if announce:
            print(json.dumps({"name": name, "host": host, "port": running.port}), flush=True)

    asyncio.run(serve(options, ready, sys.stdin if until_eof else None))


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is no address, expected HOST:PORT like 0.0.0.0:{config.DEFAULT_PORT}")
    return host.strip("[]"), int(port)


@main.command()
@click.option("--manifest", type=click.Path(path_type=Path, exists=True), required=True,
              help="A split model's folder, or its manifest.json.")  # fmt: skip
@click.option("--board", "boards", multiple=True, required=True, metavar="NAME=SIZE[@TIME],…",
              help="A board's free RAM, and its decode time a layer if you know it.")  # fmt: skip
@click.option("--objective", type=click.Choice(["latency", "throughput"]), default="latency", show_default=True,
              help="Fewest, fastest boards for one answer; or the smallest slowest stage.")  # fmt: skip
@_with_plan_options
@click.option("--explain", is_flag=True, help="Say who gets what, why, and what would not fit.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@_verbose
def plan(manifest, boards, objective, context, slots, chunk, kv_dtype, explain, as_json, verbose):
    """Show which board would hold which layers, without any board.

    \b
    Examples:
      edgellm plan --manifest phi3 --board pi1=3.1GB,pi2=3.1GB --explain
      edgellm plan --manifest phi3 --board pi1=3.1GB@25ms --board pc=6GB@40ms --objective throughput
    """
    from edgellm.checkpoint.manifest import Manifest
    from edgellm.plan import explain_dict, explain_text, make_plan, parse_boards

    model = Manifest.read(manifest)
    capacities = parse_boards(boards, model)
    settings = _settings(model, context, slots, chunk, kv_dtype, objective)
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


@main.command()
@click.argument("prompt", required=False)
@click.option("--system", help="A system prompt.")
@click.option("--raw", is_flag=True, help="Send the prompt as it is, without the chat template.")
@click.option("--max-tokens", type=int, default=config.DEFAULT_MAX_TOKENS, show_default=True,
              help="Longest answer.")  # fmt: skip
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=int, default=0, show_default=True, help="0 is off.")
@click.option("--min-p", type=float, default=0.0, show_default=True)
@click.option("--repeat-penalty", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, help="The same seed gives the same answer.  [default: random]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text (repeatable).")
@click.option("--json", "as_json", is_flag=True, help="Print text, tokens, timings and finish reason as JSON.")
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Cluster file.  [default: $EDGELLM_CLUSTER, ./cluster.json, the user's config folder]")  # fmt: skip
@_verbose
def ask(prompt, system, raw, as_json, cluster, verbose, max_tokens, stop, seed, **sampling):
    """Ask the cluster; the answer streams to stdout as it is made.

    PROMPT may be - or a pipe for stdin. Without a cluster file, two agents are started on this machine with the
    built-in model, and ended after the answer. Ctrl-C stops the boards' work too.

    \b
    Examples:
      edgellm ask "Why is the sky blue?"
      git diff | edgellm ask - --system "Summarise this change in one sentence."
      edgellm ask "Name three birds." --temperature 0.7 --seed 42 --json
    """
    import secrets

    from edgellm.manager.answer import Question

    chosen = secrets.randbits(31) if seed is None else seed
    question = Question(
        _prompt(prompt), system, raw, max_tokens, config.Sampling(seed=chosen, **sampling), tuple(stop)
    )
    from edgellm.manager.cluster import ClusterFile, find

    path = find(str(cluster) if cluster else None)
    if path is not None:
        file = ClusterFile.read(path)
        code = _ask(question, file.model_dir_path(path), file.plan, file.addresses(), as_json, verbose)
    else:
        code = _ask_embedded(question, as_json, verbose)
    sys.exit(code)


def _prompt(text: str | None) -> str:
    if text is None and sys.stdin.isatty():
        raise UsageError('no prompt. Ask something: edgellm ask "Why is the sky blue?"')
    if text is None or text == "-":
        raw = sys.stdin.buffer.read()
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise UsageError(f"stdin is no UTF-8 text (byte {e.start})") from None
    return text


def _ask(question, model_dir, plan, addresses, as_json, verbose) -> int:
    from edgellm.manager.answer import Answer, Asker, run_to_answer

    asker = Asker(model_dir, plan)
    ids = asker.encode(question)
    answer = Answer(len(ids), question.sampling.seed)

    def show(text):
        if not as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    try:
        run_to_answer(asker.ask(question, ids, addresses, answer, show), answer)
    finally:
        if answer.text and not as_json:
            show("\n")
    if as_json:
        click.echo(json.dumps(answer.to_dict()))
    if verbose:
        note(_summary(answer))
    return 130 if answer.finish == "cancelled" else 0


def _summary(answer) -> str:
    def rate(value):
        return f"{value:.1f} tok/s" if value else "–"

    stages = ", ".join(
        f"{s['board']} [{s['start']}-{s['end']}) {s['decode_ms_per_token']:.1f} ms"
        for s in answer.stages if s["decode_ms_per_token"] is not None
    )  # fmt: skip
    return (
        f"prompt {answer.prompt_tokens} tokens, {rate(answer.prefill_tokens_per_s)}; answer {len(answer.tokens)} "
        f"tokens, {rate(answer.decode_tokens_per_s)}; a token: {stages or '–'}; ended by {answer.finish}"
    )


def _ask_embedded(question, as_json, verbose) -> int:
    import asyncio

    from edgellm.checkpoint.manifest import Manifest
    from edgellm.manager import local

    note(f"no cluster file: answering from this machine with {config.DEFAULT_MODEL} on two agents "
         "('edgellm local up' keeps them running)")  # fmt: skip
    model_dir = _default_model()
    manifest = Manifest.read(model_dir)
    settings = _settings(manifest, None, 1, config.DEFAULT_CHUNK, "float32", "throughput")
    with local.LocalAgents(model_dir, 2, local.state_dir() / "embedded") as agents:
        with Progress() as progress:
            progress("starting two agents")
            addresses = agents.start()
            made = asyncio.run(local.form_cluster(manifest, addresses, settings))
        return _ask(question, model_dir, made, addresses, as_json, verbose)


def _default_model() -> Path:
    """The built-in model's split, made now if it isn't there."""
    from edgellm.manager.local import models_dir

    out = models_dir() / config.DEFAULT_MODEL
    if not (out / "manifest.json").is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        _split(config.DEFAULT_MODEL, out, "none")
    return out


@main.group("local")
def local_group():
    """A cluster on this machine, without any board.

    \b
    Examples:
      edgellm local up --agents 3
      edgellm ask "Why is the sky blue?"
      edgellm local down
    """


@local_group.command("up")
@click.option("--agents", "count", type=click.IntRange(1, 8), default=2, show_default=True)
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help=f"A split model's folder.  [default: {config.DEFAULT_MODEL}]")  # fmt: skip
@click.option("--objective", type=click.Choice(["latency", "throughput"]), default="throughput", show_default=True)
@_with_plan_options
@click.option("--ram", metavar="SIZE", help="Let each agent offer at most this much RAM.")
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write the cluster file.  [default: the user's config folder]")  # fmt: skip
@_verbose
def local_up(count, model, objective, context, slots, chunk, kv_dtype, ram, cluster, verbose):
    """Start agents on loopback and keep them, so that a question starts at once.

    \b
    Examples:
      edgellm local up
      edgellm local up --agents 3 --model phi3 --context 1024
    """
    import asyncio

    from edgellm.checkpoint.manifest import Manifest
    from edgellm.manager import local
    from edgellm.manager.cluster import ClusterFile, default_path
    from edgellm.plan import parse_size

    path = cluster or default_path()
    record = local.state_dir() / "agents.json"
    if local.recall(record):
        raise UsageError("a local cluster is up already. End it with 'edgellm local down' first.")
    if path.exists() and not ClusterFile.read(path).is_local():
        raise UsageError(f"{path} describes a cluster of boards. Give another place with --cluster FILE.")
    model_dir = (model or _default_model()).resolve()
    manifest = Manifest.read(model_dir)
    settings = _settings(manifest, context, slots, chunk, kv_dtype, objective)
    ram_bytes = parse_size(ram, "--ram") if ram else None
    with local.LocalAgents(model_dir, count, local.state_dir(), detached=True, ram_bytes=ram_bytes) as agents:
        with Progress() as progress:
            progress(f"starting {count} agents")
            addresses = agents.start()
            made = asyncio.run(local.form_cluster(manifest, addresses, settings))
        path.parent.mkdir(parents=True, exist_ok=True)
        ClusterFile.make(model_dir, addresses, made).write(path)
        local.remember(record, agents.agents)
        agents.leave_running()
    for section in made.sections:
        host, port = addresses[section.board]
        click.echo(f"{section.board} {host}:{port} {section}")
    note(f"cluster file {path}; end it with 'edgellm local down'")


@local_group.command("down")
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE", help="The cluster file to remove.")
@_verbose
def local_down(cluster, verbose):
    """End what `local up` started, and remove its cluster file.

    \b
    Examples:
      edgellm local down
    """
    from edgellm.manager import local
    from edgellm.manager.cluster import ClusterFile, default_path

    record, path = local.state_dir() / "agents.json", cluster or default_path()
    agents = local.recall(record)
    local.end(agents, note)
    record.unlink(missing_ok=True)
    if path.exists() and ClusterFile.read(path).is_local():
        path.unlink()
    click.echo(f"{len(agents)} agents ended" if agents else "no local cluster was up")


@main.command()
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Cluster file.  [default: as for ask]")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1, 4096), default=32, show_default=True, help="Tokens to compare.")
@click.option("--prompt", default="The quick brown fox", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_verbose
def verify(cluster, tokens, prompt, as_json, verbose):
    """Compare the split's greedy tokens and logits with one transformers process over the same weights.

    Names the first layer that differs, if any does. Works layer by layer where the whole model doesn't fit in memory.

    \b
    Examples:
      edgellm verify
      edgellm verify --cluster cluster.json --tokens 64 --json
    """
    from edgellm.manager.cluster import ClusterFile, find
    from edgellm.verify import verify as run

    path = find(str(cluster) if cluster else None)
    if path is None:
        raise UsageError("no cluster file. Start one with 'edgellm local up', or give it with --cluster FILE.")
    file = ClusterFile.read(path)
    with Progress() as progress:
        result = run(file.model_dir_path(path), file.plan, file.addresses(), prompt, tokens, progress)
    click.echo(json.dumps(result.to_dict()) if as_json else result.to_text())
    sys.exit(0 if result.equal else 1)
