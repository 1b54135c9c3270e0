"""`edgellm manager`, `join`, `revoke` and `key`: who may ask the cluster, and who may not any more."""

import json
import os
from pathlib import Path

import click

from edgellm.cli.deploy import CHECK, play, with_options
from edgellm.cli.group import verbose_option


@click.command()
@click.argument("name")
@click.option("--admin", is_flag=True, help="An identity that may also plan, which asking alone doesn't need.")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The file to write.  [default: NAME.edgellm]")  # fmt: skip
@with_options()
def manager(name, admin, to, **options):
    """Make an identity for another machine, as one file to copy.

    NAME appears in boards' logs. Whoever has the file may ask the cluster: copy it over a safe way, run 'edgellm join'
    there, and remove it. Each call makes another key; 'edgellm revoke NAME' revokes all of them.

    \b
    Examples:
      edgellm manager anna
      edgellm manager ben --admin --to /media/stick/ben.edgellm
    """
    file = Path(os.path.abspath(to or f"{name}.edgellm"))
    play("manager", "playbooks/manager.yml", {"manager": name, "admin": admin, "to": str(file)}, **options)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Where to put cluster file, certificates and tokenizer.  [default: the user's config folder]")
@click.option("--force", is_flag=True, help="Replace another cluster that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@verbose_option
def join(file, to, force, as_json, verbose):
    """Use a cluster from this machine, with a file that 'edgellm manager' made.

    \b
    Examples:
      edgellm join anna.edgellm
      edgellm join anna.edgellm --to ~/attic && edgellm ask --cluster ~/attic/cluster.json "Why is the sky blue?"
    """
    import platformdirs

    from edgellm.manager.identity_file import join as join_cluster

    done = join_cluster(file, Path(os.path.abspath(to or platformdirs.user_config_dir("edgellm"))), force=force)
    identity = done.identity
    if as_json:
        answer = {"name": identity.name, "admin": identity.admin, "cluster_file": str(done.cluster_file),
                  "boards": list(done.boards)}  # fmt: skip
        click.echo(json.dumps(answer))
        return
    may = "ask and plan" if identity.admin else "ask"
    named = f" --cluster {done.cluster_file}" if to else ""
    click.echo(f"{identity.name} may {may} the cluster of {', '.join(done.boards)}. Remove {file}: it holds a key.")
    click.echo(f'ready: edgellm ask{named} "Why is the sky blue?"')


@click.command()
@click.argument("name")
@with_options(CHECK)
def revoke(name, **options):
    """Revoke the certificates of a board or of a manager, on every board.

    Boards end its connections within seconds. A board that can't be reached now is named, and is told at its next
    deploy. If NAME is a board and a manager, say board:NAME or manager:NAME.

    \b
    Examples:
      edgellm revoke pi2
      edgellm revoke anna
    """
    play("revoke", "playbooks/revoke.yml", {"revoke": name}, **options)


@click.command()
@click.argument("name")
@click.option("--remove", "gone", is_flag=True, help="Remove the key: the server refuses it within seconds.")
@with_options()
def key(name, gone, **options):
    """Make an API key for the server that deploy runs, in place of the one of this name.

    The key is in the config folder, readable for you alone; its path is printed. The server knows only its SHA-256.

    \b
    Examples:
      edgellm key kitchen
      edgellm key kitchen --remove
    """
    play("key", "playbooks/keys.yml", {"key": name, "remove": gone}, **options)
