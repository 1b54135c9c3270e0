"""Shards small enough to hash in no time: each holds its own name."""

import hashlib
from dataclasses import replace

from edgellm.checkpoint.manifest import Manifest
from tests.fakes import make_manifest


def whole_manifest() -> Manifest:
    """The fake model's manifest, for the shards that `write_model` makes."""
    manifest = make_manifest()
    shards = tuple(
        replace(s, bytes=len(s.name), sha256=hashlib.sha256(s.name.encode()).hexdigest()) for s in manifest.shards
    )
    return replace(manifest, shards=shards)


def write_model(folder) -> None:
    """The shard files, without the manifest."""
    for shard in whole_manifest().shards:
        (folder / shard.name).write_text(shard.name)
