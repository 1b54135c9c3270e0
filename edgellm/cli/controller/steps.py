"""`edgellm controller steps`: several of the other steps in one process, because each start takes half a second."""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from edgellm.errors import EdgellmError, UsageError


@click.command()
@click.pass_context
def steps(ctx):
    """Run steps, a JSON list on stdin: [{name, command, request, optional, must}, …].

    A command is the words after 'edgellm controller'. A request is given to it as a JSON file. The steps end with the
    first that fails, unless it is optional, and with the first whose answer isn't true for what it must have. Prints a
    JSON object: answers and problems by name, and problem, which ended the steps, or "".

    \b
    Examples:
      echo '[{"name": "ca", "command": ["certificates", "--board", "pi1"]}]' | edgellm controller steps
    """
    group = ctx.parent.command
    try:
        asked = json.load(sys.stdin)
        wanted = [(str(step["name"]), [str(word) for word in step["command"]], step) for step in asked]
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(f"the steps on stdin are no list of steps: {e!r}") from None
    answers: dict[str, Any] = {}
    problems: dict[str, str] = {}
    ended = ""
    for name, words, step in wanted:
        answer, problem = _run(group, words, step.get("request"))
        answers |= {} if answer is None else {name: answer}
        if answer is not None and step.get("must") and not answer.get(step["must"]):
            problem = str(answer.get("message") or f"{name}: {step['must']} is not true")
        if problem:
            problems[name] = problem
            if not step.get("optional"):
                ended = problem
                break
    click.echo(json.dumps({"answers": answers, "problems": problems, "problem": ended}))


def _run(group: click.Group, words: list[str], request: object) -> tuple[dict | None, str]:
    """Run a command; return its answer, or None and why it failed in one sentence."""
    said = io.StringIO()
    try:
        with tempfile.TemporaryDirectory(prefix="edgellm-") as folder, contextlib.redirect_stdout(said):
            if request is not None:
                file = Path(folder) / "request.json"
                file.write_text(json.dumps(request))
                words = [*words, str(file)]
            group.main(words, prog_name="edgellm controller", standalone_mode=False)
        return json.loads(said.getvalue()), ""
    except EdgellmError as e:
        problem = str(e)
    except click.ClickException as e:
        problem = e.format_message()
    except OSError as e:
        problem = f"{e.filename}: {e.strerror}" if e.filename else str(e)
    try:  # some commands print their answer first, and then fail
        return json.loads(said.getvalue()), " ".join(problem.split())
    except ValueError:
        return None, " ".join(problem.split())
