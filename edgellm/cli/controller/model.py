"""`edgellm controller model`: the split to push to boards."""

import json

import click

from edgellm.cli.group import verbose_option
from edgellm.cli.models import split_source_to


@click.command()
@click.argument("source")
@click.option("--quantize", type=click.Choice(["none", "int8", "int4"]), default="none", show_default=True,
              help="How to pack weights; none keeps the source's own format.")  # fmt: skip
@click.option("--drafts-for", metavar="SOURCE", help="Refuse a model that can't draft for this one, which is split.")
@verbose_option
def model(source, quantize, drafts_for, verbose):
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
    from edgellm.shards.manifest import MANIFEST_NAME, Manifest
    from edgellm.text.vocabulary import check_draft

    folder = finished_split(source, quantize)
    changed = False
    if folder is None:
        folder = split_folder(source, quantize)
        if not is_fresh(source, folder):
            before = _age(folder / MANIFEST_NAME)
            split_source_to(source, folder, quantize, replace=True)
            remember(source, folder)
            changed = _age(folder / MANIFEST_NAME) != before
    if drafts_for is not None:
        drafted = finished_split(drafts_for, quantize) or split_folder(drafts_for, quantize)
        check_draft(Manifest.read(drafted), drafted, Manifest.read(folder), folder)
    click.echo(json.dumps({"changed": changed, **describe(folder)}))


def _age(path):
    return path.stat().st_mtime_ns if path.is_file() else None
