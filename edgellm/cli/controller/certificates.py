"""`edgellm controller certificates`: the CA, and the certificates that it signs."""

import json
from pathlib import Path

import click


@click.command()
@click.option("--board", "boards", multiple=True, metavar="NAME", help="A board that needs a certificate (repeatable).")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False),
              help="Folder for the certificates.  [default: tls in the user's config folder]")  # fmt: skip
def certificates(boards, folder):
    """Make or renew the cluster's CA, the manager's certificate and the boards'.

    Certificates that stay valid for 30 more days are left alone. Prints a JSON object: changed, folder, boards (the
    folder to push to each), made and renewed.

    \b
    Examples:
      edgellm controller certificates --board pi1 --board pi2
    """
    import platformdirs

    from edgellm.controller.certificates import ensure

    done = ensure(folder or Path(platformdirs.user_config_dir("edgellm")) / "tls", list(boards))
    answer = {
        "changed": done.changed, "folder": str(done.folder), "boards": {n: str(f) for n, f in done.boards.items()},
        "made": list(done.made), "renewed": list(done.renewed),
    }  # fmt: skip
    click.echo(json.dumps(answer))
