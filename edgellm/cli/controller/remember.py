"""`edgellm controller remember`: how the playbooks reach each board, for the next run."""

import json
from pathlib import Path

import click

from edgellm.errors import UsageError
from edgellm.files import write_atomically


@click.command()
@click.argument("request", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE")
def remember(request):
    """Write how to reach boards into boards.json: FILE has its path and the boards' variables by name.

    Prints a JSON object: changed.

    \b
    Examples:
      edgellm controller remember request.json
    """
    try:
        asked = json.loads(request.read_text())
        path, boards = Path(asked["path"]), dict(asked["boards"])
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{request}: {e!r}, expected path and boards") from None
    content = (json.dumps(boards, indent=1, sort_keys=True) + "\n").encode()
    changed = not path.is_file() or path.read_bytes() != content
    if changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, 0o600)
    click.echo(json.dumps({"changed": changed}))
