"""`edgellm ask`: one question, to a cluster or to this machine."""

import json
import sys
from pathlib import Path

import click

from edgellm import config
from edgellm.cli.group import make_settings, verbose_option
from edgellm.cli.models import default_model
from edgellm.console import Progress, note
from edgellm.errors import ClusterError, UsageError
from edgellm.sampling import Sampling


@click.command()
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
@click.option("--wait", type=click.FloatRange(0), default=config.PATIENCE_S, show_default=True, metavar="SECONDS",
              help="How long to go on trying without a token when boards are lost.")  # fmt: skip
@click.option("--speculate/--no-speculate", default=True, show_default=True,
              help="Draft tokens from the text so far and verify them together: the same answer, sooner.")  # fmt: skip
@verbose_option
def ask(prompt, system, raw, as_json, cluster, wait, verbose, max_tokens, stop, seed, speculate, **sampling):
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

    from edgellm.manager.answer import Asker, Question
    from edgellm.manager.cluster_file import ClusterFile, find
    from edgellm.manager.session import Session

    chosen = secrets.randbits(31) if seed is None else seed
    question = Question(
        _prompt(prompt), system, raw, max_tokens, Sampling(seed=chosen, **sampling), tuple(stop), speculate
    )
    path = find(str(cluster) if cluster else None)
    if path is not None:
        file = ClusterFile.read(path)
        asker = Asker(file.model_dir_path(path))
        asker.check(file.plan)
        ids = asker.encode(question, file.plan.context)

        def adopted(plan, addresses):
            try:
                file.with_plan(plan, addresses).write_if_newer(path)
            except ClusterError as e:  # the answer goes on without
                note(str(e))

        session = Session(
            asker.manifest, file.plan, file.addresses(), tls=file.client_tls(path), patience_s=wait, tell=note,
            adopted=adopted,
        )  # fmt: skip
        code = _ask(asker, question, ids, session, as_json, verbose)
    else:
        code = _ask_embedded(question, wait, as_json, verbose)
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


def _ask(asker, question, ids, session, as_json, verbose) -> int:
    from edgellm.manager.answer import Answer, run_to_answer

    answer = Answer(len(ids), question.sampling.seed)

    def show(text):
        if not as_json:
            sys.stdout.write(text)
            sys.stdout.flush()

    try:
        run_to_answer(asker.ask(question, ids, session, answer, show), answer)
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
    reused = f" ({answer.reused_tokens} held already)" if answer.reused_tokens else ""
    drafts = f", {answer.accepted_tokens} of {answer.draft_tokens} drafts" if answer.draft_tokens else ""
    return (
        f"prompt {answer.prompt_tokens} tokens{reused}, {rate(answer.prefill_tokens_per_s)}; "
        f"answer {len(answer.tokens)} tokens{drafts}, {rate(answer.decode_tokens_per_s)}; "
        f"a token: {stages or '–'}; ended by {answer.finish}"
    )


def _ask_embedded(question, wait, as_json, verbose) -> int:
    import asyncio

    from edgellm.manager import local
    from edgellm.manager.answer import Asker
    from edgellm.manager.session import Session

    note(f"no cluster file: answering from this machine with {config.DEFAULT_MODEL} on two agents "
         "('edgellm local up' keeps them running)")  # fmt: skip
    model_dir = default_model()
    asker = Asker(model_dir)
    settings = make_settings(asker.manifest, None, 1, config.DEFAULT_CHUNK, "float16", "throughput")
    ids = asker.encode(question, settings.context)
    with local.LocalAgents(model_dir, 2, local.state_dir() / "embedded") as agents:
        with Progress() as progress:
            progress("starting two agents")
            addresses = agents.start()
            made = asyncio.run(local.form_cluster(asker.manifest, addresses, settings))
        session = Session(asker.manifest, made, addresses, patience_s=wait, tell=note)
        return _ask(asker, question, ids, session, as_json, verbose)
