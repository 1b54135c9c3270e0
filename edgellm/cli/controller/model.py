"""`edgellm controller model`: the split to push to boards."""

import json

import click

from edgellm.cli.group import verbose_option
from edgellm.cli.models import split_source_to


@click.command()
@click.argument("source")
@click.option("--quantize", type=click.Choice(["none", "int8", "int4"]), default="none", show_default=True,
              help="How to pack weights; none keeps the source's own format.")  # fmt: skip
@verbose_option
def model(source, quantize, verbose):
    """Split a model into the cache, unless it is already there.

    SOURCE is anything that 'edgellm split' takes, or a folder that it made. Prints a JSON object: changed, model,
    folder, manifest_sha256, total_bytes, files (name, bytes, sha256 of each), measure (the names of the files that a
    board needs at least, to measure itself), and path (native or generic: how its sections are computed).

    \b
    Examples:
      edgellm controller model smollm2-135m
      edgellm controller model ./Phi-3-mini-4k-instruct --quantize int8
    """
    from edgellm.controller.model import describe, finished_split, is_fresh, remember, split_folder
    from edgellm.shards.manifest import MANIFEST_NAME

    folder = finished_split(source, quantize)
    changed = False
    if folder is None:
        folder = split_folder(source, quantize)
        if not is_fresh(source, folder):
            before = _age(folder / MANIFEST_NAME)
            split_source_to(source, folder, quantize, replace=True)
            remember(source, folder)
            changed = _age(folder / MANIFEST_NAME) != before
    click.echo(json.dumps({"changed": changed, **describe(folder)}))


def _age(path):
    return path.stat().st_mtime_ns if path.is_file() else None
