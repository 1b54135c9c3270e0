"""`edgellm controller fit`, `form` and `canary`: the cluster, as deploy makes it."""

import json
from pathlib import Path

import click

from edgellm.cli.group import verbose_option
from edgellm.console import note
from edgellm.errors import BoardError, UsageError

_request = click.argument("request", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE")


@click.command()
@_request
@verbose_option
def fit(request, verbose):
    """Check whether the model fits on the boards in FILE, before anything is changed on them.

    What counts is what their agents will offer with the inventory's limits. Prints a JSON object: changed, fits, and
    message, which says what is missing and what helps.

    \b
    Examples:
      edgellm controller fit request.json
    """
    from edgellm.controller import fit as fitting
    from edgellm.controller.request import Request

    message = fitting.fit(Request.read(request))
    click.echo(json.dumps({"changed": False, "fits": message is None, "message": message or ""}))


@click.command()
@_request
@click.option("--dry-run", is_flag=True, help="Show what would be done, as if every shard could be pushed.")
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="The cluster file to write.  [default: the user's config folder]")  # fmt: skip
@verbose_option
def form(request, dry_run, cluster, verbose):
    """Give the boards in FILE the plan that suits them, and write the cluster file.

    form fails if a board can't reach the one that it must send to.

    \b
    Examples:
      edgellm controller form request.json --dry-run
    """
    from edgellm.controller import forming
    from edgellm.controller.request import Request
    from edgellm.manager.cluster_file import default_path

    done = forming.form(Request.read(request), cluster or default_path(), note, dry_run=dry_run)
    click.echo(json.dumps(done))
    if done["broken"]:
        raise BoardError(done["broken"])


@click.command()
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Cluster file.  [default: the user's config folder]")  # fmt: skip
@verbose_option
def canary(cluster, verbose):
    """Ask the cluster a fixed question, and compare its tokens with the reference.

    \b
    Examples:
      edgellm controller canary
    """
    import platformdirs

    from edgellm.controller import forming
    from edgellm.manager.cluster_file import ClusterFile, default_path

    path = cluster or default_path()
    if not path.exists():
        raise UsageError(f"there is no cluster file at {path}. Deploy first.")
    cache = Path(platformdirs.user_cache_dir("edgellm")) / "canary"
    tokens = forming.canary(ClusterFile.read(path), path, cache, note)
    click.echo(json.dumps({"changed": False, "ok": True, "tokens": tokens}))
