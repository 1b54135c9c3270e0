"""`edgellm controller certificates`, `revoke` and `manager`: what the cluster's CA signs and revokes."""

import json
from pathlib import Path

import click

_FOLDERS = [
    click.option("--ca", type=click.Path(path_type=Path, file_okay=False),
                 help="Folder of the CA.  [default: ca in the user's config folder]"),
    click.option("--manager", type=click.Path(path_type=Path, file_okay=False),
                 help="Folder of this machine's identity.  [default: tls/manager in the user's config folder]"),
]  # fmt: skip


def with_folders(command):
    """Add the options that say where the CA and this machine's identity are."""
    for option in reversed(_FOLDERS):
        command = option(command)
    return command


def folders(ca: Path | None, manager: Path | None) -> tuple[Path, Path]:
    """Return the folders of the CA and of this machine's identity, where nothing else is said."""
    import platformdirs

    config = Path(platformdirs.user_config_dir("edgellm"))
    return ca or config / "ca", manager or config / "tls" / "manager"


@click.command()
@click.option("--board", "boards", multiple=True, metavar="NAME", help="A board that needs a certificate (repeatable).")
@click.option("--name", metavar="NAME",
              help="This machine's name as a manager.  [default: as before, or USER-HOST]")  # fmt: skip
@with_folders
def certificates(boards, name, ca, manager):
    """Make or renew the cluster's CA, this machine's certificate and the boards'.

    Certificates that stay valid for 30 more days are left alone. Prints a JSON object: changed, ca, manager (the
    folders), boards (the folder to push to each), made and renewed.

    \b
    Examples:
      edgellm controller certificates --board pi1 --board pi2
    """
    from edgellm.controller.certificates import ensure

    done = ensure(*folders(ca, manager), list(boards), name=name)
    answer = {
        "changed": done.changed, "ca": str(done.ca), "manager": str(done.manager),
        "boards": {n: str(f) for n, f in done.boards.items()}, "made": list(done.made), "renewed": list(done.renewed),
    }  # fmt: skip
    click.echo(json.dumps(answer))


@click.command("manager")
@click.argument("name")
@click.option("--admin", is_flag=True, help="An identity that may also plan.")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), required=True, metavar="FILE",
              help="The file to write.")  # fmt: skip
@click.option("--cluster", type=click.Path(path_type=Path), metavar="FILE",
              help="Cluster file.  [default: the user's config folder]")  # fmt: skip
@with_folders
def manager(name, admin, to, cluster, ca, manager):
    """Make an identity for another machine, as one file.

    Prints a JSON object: changed, name, admin, and file.

    \b
    Examples:
      edgellm controller manager anna --to anna.edgellm
    """
    import tempfile

    from edgellm.controller.certificates import issue
    from edgellm.errors import UsageError
    from edgellm.files import write_atomically
    from edgellm.manager.cluster_file import default_path
    from edgellm.manager.identity_file import pack
    from edgellm.wire.credentials import Identity

    cluster = cluster or default_path()
    if to.exists():
        raise UsageError(f"{to} is there already. Remove it, or name another file with --to.")
    if not cluster.exists():
        raise UsageError(f"there is no cluster file at {cluster}. Deploy first.")
    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
        issue(*folders(ca, manager), Identity("manager", name, admin), Path(folder) / "identity")
        write_atomically(to, pack(Path(folder) / "identity", cluster), 0o600)
    click.echo(json.dumps({"changed": True, "name": name, "admin": admin, "file": str(to)}))


@click.command()
@click.argument("name")
@click.option("--missing-ok", is_flag=True, help="Succeed if nobody of this name has a certificate.")
@with_folders
def revoke(name, missing_ok, ca, manager):
    """Revoke every certificate of a board or of a manager.

    With a board goes the server there. Prints a JSON object: changed, who (for example ["board pi2"]), boards and
    managers (the names of those among them), and admin: whether one of them could plan.

    \b
    Examples:
      edgellm controller revoke pi2
      edgellm controller revoke manager:anna
    """
    from edgellm.controller.certificates import revoke as revoke_certificates

    done = revoke_certificates(*folders(ca, manager), name, missing_ok=missing_ok)
    answer = {
        "changed": done.changed, "who": [str(one) for one in done.identities],
        "boards": [one.name for one in done.identities if one.role == "board"],
        "managers": [one.name for one in done.identities if one.role == "manager"],
        "admin": any(one.admin for one in done.identities),
    }  # fmt: skip
    click.echo(json.dumps(answer))
