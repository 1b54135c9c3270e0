"""`edgellm ask`: one question, to a cluster or to this machine."""

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import click

from edgellm import config
from edgellm.cli.group import make_settings, utf8_text, verbose_option
from edgellm.cli.models import builtin_model
from edgellm.console import Progress, for_terminal, note
from edgellm.errors import ClusterError, UsageError
from edgellm.sampling import Sampling

_AUTHORS = "[default: the model authors']"


@click.command()
@click.argument("prompt", required=False)
@click.option("-c", "--continue", "go_on", is_flag=True, help="Go on with the last conversation.")
@click.option("--system", metavar="TEXT", help="A system prompt.")
@click.option("--raw", is_flag=True, help="Use no chat template, and recognize control tokens in the prompt.")
@click.option("--max-tokens", type=int, default=config.DEFAULT_MAX_TOKENS, show_default=True, metavar="TOKENS",
              help="Maximum number of tokens to generate.")  # fmt: skip
@click.option("--temperature", type=float, help=f"0 is greedy: always the likeliest token.  {_AUTHORS}")
@click.option("--top-p", type=float, help=f"Choose among the likeliest tokens with this total probability.  {_AUTHORS}")
@click.option("--top-k", type=int, help=f"Choose among this many of the likeliest tokens; 0 is off.  {_AUTHORS}")
@click.option("--min-p", type=float, help=f"Minimum probability, relative to the likeliest token's.  {_AUTHORS}")
@click.option("--repeat-penalty", type=float, help=f"Above 1 makes repeated tokens less likely.  {_AUTHORS}")
@click.option("--seed", type=int, help="The same seed gives the same answer.  [default: random]")
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text or control token (repeatable).")
@click.option("--no-history", is_flag=True, help="Keep neither question nor answer for -c.")
@click.option("--json", "as_json", is_flag=True,
              help="Print text, tokens, sampling, timings and finish reason as JSON.")  # fmt: skip
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Cluster file.  [default: $EDGELLM_CLUSTER, ./cluster.json, the user's config folder]")  # fmt: skip
@click.option("--model", metavar="NAME",
              help="Which of the cluster's models answers; without a cluster, which built-in one.  "
                   "[default: its first]")  # fmt: skip
@click.option("--wait", type=click.FloatRange(0), default=config.PATIENCE_S, show_default=True, metavar="SECONDS",
              help="After losing boards, give up once no token has arrived for this long.")  # fmt: skip
@click.option("--speculate/--no-speculate", default=True, show_default=True,
              help="Draft tokens from the text so far and verify them together: the same answer, faster.")  # fmt: skip
@verbose_option
def ask(prompt, go_on, system, raw, no_history, as_json, cluster, model, wait, verbose, max_tokens, stop, seed,
        speculate, **sampling):  # fmt: skip
    """Ask the cluster a question, and stream the answer to stdout.

    PROMPT is read from stdin if it is - or missing. Question and answer are kept in the user's state folder, so that -c
    can go on. Without a cluster file, no board is asked: ask starts two agents on this machine with the built-in model,
    and stops them after the answer. Ctrl-C also stops the boards' work.

    \b
    Examples:
      edgellm ask "Why is the sky blue?"
      git diff | edgellm ask - --system "Summarise this change in one sentence."
      edgellm ask -c "And at night?"
      edgellm ask "Name three birds." --temperature 0 --max-tokens 100 --json
      edgellm ask "Name three birds." --temperature 0.7 --seed 42
    """
    import secrets

    from edgellm.manager.answer import Question
    from edgellm.manager.cluster_file import find

    seed = secrets.randbits(31) if seed is None else seed
    options = {name: value for name, value in sampling.items() if value is not None}
    system = None if system is None else utf8_text(system, "--system")
    talk = None
    if go_on:
        if raw:
            raise UsageError("-c needs the chat template, and --raw leaves it out. Use one of them.")
        from edgellm.cli.talk import as_chat, last_conversation

        talk = last_conversation()
    text = _prompt(prompt)
    question = Question(
        text,
        system,
        raw,
        max_tokens,
        Sampling(**options, seed=seed),  # refuses bad numbers before anything is read
        tuple(utf8_text(s, "--stop") for s in stop),
        speculate,
    )
    if talk is not None:
        question = replace(question, messages=(*as_chat(talk, system), {"role": "user", "content": text}))
    path = find(str(cluster) if cluster else None)
    if path is None and model is not None:
        from edgellm.checkpoint.builtin import BUILTIN

        if model not in BUILTIN:
            raise UsageError("--model names a model of a cluster, and there is no cluster file. Leave it out, deploy, "
                             f"or name a built-in model: {', '.join(BUILTIN)}.")  # fmt: skip
    kept = (talk, text, system) if not (raw or no_history) else None
    if path is None:
        sys.exit(_ask_embedded(question, options, wait, as_json, verbose, kept, model or config.DEFAULT_MODEL))
    sys.exit(_ask_cluster(path, question, options, wait, as_json, verbose, kept, model=model))


def _ask_cluster(
    path: Path, question, options, wait, as_json, verbose, kept, *, model: str | None = None, embedded: bool = False
) -> int:
    import asyncio

    from edgellm.client import AsyncClient

    loading = Progress()
    client = AsyncClient(
        path, patience_s=wait, survey_every_s=None, tell=note, model=model, on_loading=tell_loading(loading)
    )
    if not embedded:
        _tell_who_answers(path)
    question = client.asker.with_options(question, options, question.sampling.seed)
    stream = client.answer(question, {"on_queue": lambda position: note(place_in_line(position))})
    answer, ended = stream.answer, False

    def show(text):
        loading.end()
        if text and not as_json:
            sys.stdout.write(for_terminal(text))
            sys.stdout.flush()

    def end():
        """Print all that is printed, before boards that are changing their plan are waited for."""
        nonlocal ended
        ended = True
        if answer.text:
            show("\n")
        if as_json:
            click.echo(json.dumps(answer.to_dict()))
        if verbose:
            note(f"sampling: {_spoken(question.sampling, client.asker.sampling)}")
            note(summary(answer))
            for line in degraded(answer):
                note(line)
        if sys.stdout is not None:
            sys.stdout.flush()
        if kept is not None and answer.text.strip():
            from edgellm.cli.talk import keep_answer  # now, because it takes a while

            keep_answer(client.asker, *kept, answer, aloud=verbose)

    async def run():
        async with client:
            async with stream:
                async for delta in stream:
                    show(delta.text)
            end()

    try:
        asyncio.run(run())  # Ctrl-C cancels it: the boards stop, and the answer is as it is at that point
    except KeyboardInterrupt:
        if not ended:
            end()
    except BaseException:
        loading.end()
        if answer.text and not ended:
            show("\n")
        raise
    return 130 if answer.finish == "cancelled" else 0


def _tell_who_answers(path: Path) -> None:
    """Say that this machine answers, if the cluster is one of its own agents while the user has boards too."""
    from edgellm.manager.cluster_file import ClusterFile, default_path

    other = default_path()
    if not ClusterFile.read(path).is_local() or not other.exists() or other.resolve() == path.resolve():
        return
    try:
        if ClusterFile.read(other).is_local():
            return
    except ClusterError:
        return
    note(f"this machine's own agents answer, by {path}; the boards of {other} stand idle (ask them with --cluster)")


def _prompt(text: str | None) -> str:
    if text is None or text == "-":
        if sys.stdin is None or (text is None and sys.stdin.isatty()):
            raise UsageError('no prompt. Ask something: edgellm ask "Why is the sky blue?"')
        raw = sys.stdin.buffer.read()
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise UsageError(f"stdin is not UTF-8 text (byte {e.start})") from None
    return utf8_text(text, "the prompt")


def place_in_line(position: int) -> str:
    """Return how a place in the line for a slot is told."""
    return f"all slots are taken; this question is {'next' if position == 1 else f'number {position} in line'}"


def tell_loading(progress: Progress):
    """Return what shows as progress how far boards are with loading a model."""
    return lambda p: progress(f"the boards are loading {p.model}", p.read_bytes, p.total_bytes)


def _spoken(sampling: Sampling, authors: Sampling) -> str:
    """Return how an answer was sampled, and whether the model's authors or the user chose that."""
    if sampling.temperature == 0:
        values = ["greedy"]
    else:
        values = [f"temperature {sampling.temperature:g}"]
        values += [f"top-k {sampling.top_k}"] if sampling.top_k else []
        values += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
        values += [f"min-p {sampling.min_p:g}"] if sampling.min_p else []
    values += [f"repeat penalty {sampling.repeat_penalty:g}"] if sampling.repeat_penalty != 1 else []
    whose = "as the model's authors recommend" if sampling == replace(authors, seed=sampling.seed) else "as asked"
    seed = "" if sampling.temperature == 0 else f"; seed {sampling.seed}"
    return f"{', '.join(values)} ({whose}){seed}"


def summary(answer) -> str:
    """Return how an answer was computed, in a line."""
    def rate(value):
        return f"{value:.1f} tok/s" if value else "–"

    stages = ", ".join(
        f"{s['board']} [{s['start']}-{s['end']}) {s['decode_ms_per_token']:.1f} ms"
        for s in answer.stages if s["decode_ms_per_token"] is not None
    )  # fmt: skip
    reused = f" ({answer.reused_tokens} already held)" if answer.reused_tokens else ""
    drafts = f", {answer.accepted_tokens} of {answer.draft_tokens} drafts" if answer.draft_tokens else ""
    return (
        f"prompt {answer.prompt_tokens} tokens{reused}, {rate(answer.prefill_tokens_per_s)}; "
        f"answer {len(answer.tokens)} tokens{drafts}, {rate(answer.decode_tokens_per_s)}; "
        f"per token: {stages or '–'}; ended by {answer.finish}"
    )


def degraded(answer) -> list[str]:
    """Return a line for each board that read experts from its disk, because they don't fit into its RAM."""
    from edgellm.plan import Swapping

    told = [(s["board"], Swapping(**s["degraded"]), s["decode_ms_per_token"]) for s in answer.stages if s["degraded"]]
    return [
        f"degraded: {board}: {waits.words()}" + ("" if measured is None else f", {measured:.0f} ms measured in all")
        for board, waits, measured in told
    ]


def _ask_embedded(question, options, wait, as_json, verbose, kept, model: str) -> int:
    import asyncio
    import tempfile

    from edgellm.manager import local
    from edgellm.manager.answer import Asker
    from edgellm.manager.cluster_file import FILE_NAME, ClusterFile

    note(f"no cluster file: this machine ({socket.gethostname()}) answers, with the built-in {model} "
         "on two agents ('edgellm local up' keeps them running)")  # fmt: skip
    note("no board is asked: ask on the machine that deployed them, or copy its cluster file, with the folders that it "
         "names, and give --cluster FILE")  # fmt: skip
    model_dir = builtin_model(model)
    asker = Asker(model_dir)
    settings = make_settings(asker.manifest, None, 1, config.DEFAULT_CHUNK, "float16", "throughput")
    asker.encode(question, settings.context)  # refuses what can be refused before agents start
    with (
        local.LocalAgents(model_dir, 2, local.state_dir() / "embedded") as agents,
        tempfile.TemporaryDirectory() as folder,
    ):
        with Progress() as progress:
            progress("starting two agents")
            addresses = agents.start()
            made = asyncio.run(local.form_cluster(asker.manifest, addresses, settings, remembered=agents.plan_file))
        file = Path(folder) / FILE_NAME
        ClusterFile.make(model_dir, addresses, made).write(file)
        return _ask_cluster(file, question, options, wait, as_json, verbose, kept, embedded=True)
