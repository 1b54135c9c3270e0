"""`edgellm controller python`: a CPython for boards that have none."""

import json

import click

from edgellm.cli.group import verbose_option
from edgellm.console import Progress


@click.command()
@click.option("--machine", required=True, metavar="x86_64|aarch64", help="The output of 'uname -m' on the board.")
@verbose_option
def python(machine, verbose):
    """Fetch a CPython for boards that have none, so that they need no internet for it.

    Prints a JSON object: changed, name (its folder in /opt/edgellm), version, minor, folder, archive (the file to push
    from that folder), sha256, bytes, and installed_bytes. UV_PYTHON_INSTALL_MIRROR may name a mirror.

    \b
    Examples:
      edgellm controller python --machine aarch64
    """
    from edgellm.controller.standalone import make

    with Progress() as progress:
        made = make(machine, progress=progress)
    click.echo(json.dumps(made.to_dict()))
