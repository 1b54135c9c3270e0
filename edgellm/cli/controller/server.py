"""`edgellm controller server` and `key`: what the machine that runs `edgellm serve` gets, and the API keys."""

import json
from pathlib import Path

import click

from edgellm.cli.controller.certificates import folders, with_folders


@click.command()
@click.argument("name")
@click.option("--tls", default="", metavar="cluster|FOLDER",
              help="Serve HTTPS: with a certificate of the cluster's CA, or with cert.pem and key.pem of a folder.")
@click.option("--for", "names", multiple=True, metavar="HOST",
              help="An address or a host name in the certificate (repeatable).")
@with_folders
def server(name, tls, names, ca, manager):
    """Make what the server on the board NAME needs, or on the "controller": its identity, API keys, certificates.

    Prints a JSON object: changed, files (to push), stamp (tells what is in the identity but the plan; its
    first half changes only with what a server that runs can't follow),
    key_file (holds an API key), keys (their names), and ca (the CA's certificate).

    \b
    Examples:
      edgellm controller server pi1
      edgellm controller server pi1 --tls cluster --for 192.168.1.11 --for pi1.local
    """
    from edgellm.controller.serving import prepare
    from edgellm.manager.cluster_file import default_path

    cluster = default_path()
    ca, manager = folders(ca, manager)
    made = prepare(cluster.parent, ca, manager, cluster, name, tls=tls, names=names)
    answer = {
        "changed": made.changed, "files": [str(path) for path in made.files], "stamp": made.stamp,
        "key_file": str(made.key_file), "keys": list(made.keys), "ca": str(ca / "ca.pem"),
    }  # fmt: skip
    click.echo(json.dumps(answer))


@click.command()
@click.argument("name")
@click.option("--remove", is_flag=True, help="Remove the key.")
def key(name, remove):
    """Make an API key, in place of the one of this name, or remove it.

    Prints a JSON object: changed, name, file (holds the key; null if it is removed), and keys (the names of all).

    \b
    Examples:
      edgellm controller key kitchen
    """
    from edgellm.controller.serving import keys_in, make_key, remove_key
    from edgellm.manager.cluster_file import default_path

    config = default_path().parent
    file: Path | None = None
    if remove:
        remove_key(config, name)
    else:
        file = make_key(config, name)
    answer = {"changed": True, "name": name, "file": file and str(file), "keys": sorted(keys_in(config))}
    click.echo(json.dumps(answer))
