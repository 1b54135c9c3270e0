"""`edgellm controller wheelhouse`: every wheel that a kind of board needs."""

import json
from pathlib import Path

import click

from edgellm.cli.group import verbose_option
from edgellm.console import Progress


@click.command()
@click.option("--machine", required=True, metavar="x86_64|aarch64", help="The output of 'uname -m' on the board.")
@click.option("--python", required=True, metavar="3.11", help="The board's Python version.")
@click.option("--source", type=click.Path(path_type=Path), metavar="REPO",
              help="Repository of the edgellm to install, or installed playbooks.  [default: this one's]")  # fmt: skip
@click.option("--generic", is_flag=True, help="Include torch and transformers, for models without native sections.")
@click.option("--serving", is_flag=True, help="Include what 'edgellm serve' needs.")
@verbose_option
def wheelhouse(machine, python, source, generic, serving, verbose):
    """Make a folder with every wheel that a kind of board needs, so that boards need no compiler and no internet.

    Prints a JSON object: changed, folder, id, libraries, pip (the name of pip's wheel), wheels (their number), bytes,
    and installed_bytes. The folder is made again only when edgellm has changed.

    \b
    Examples:
      edgellm controller wheelhouse --machine aarch64 --python 3.11
      edgellm controller wheelhouse --machine aarch64 --python 3.11 --generic
    """
    from edgellm.controller.installed import project
    from edgellm.controller.wheelhouse import make

    with Progress() as progress:
        made = make(source or project(), machine, python, generic=generic, serving=serving, progress=progress)
    click.echo(json.dumps(made.to_dict()))
