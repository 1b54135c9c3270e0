"""Shards small enough to hash in no time, as `fakes.Boards` writes them: zeros."""

import hashlib
from dataclasses import replace
from pathlib import Path

from edgellm.shards.manifest import Manifest
from tests.fakes import make_manifest


def whole_manifest() -> Manifest:
    """The fake model's manifest with the SHA-256 that its shards really have."""
    manifest = make_manifest()
    digest = {s.bytes: hashlib.sha256(bytes(s.bytes)).hexdigest() for s in manifest.shards}
    return replace(manifest, shards=tuple(replace(s, sha256=digest[s.bytes]) for s in manifest.shards))


def write_model(folder: Path) -> None:
    """The shard files, without the manifest."""
    for shard in whole_manifest().shards:
        (folder / shard.name).write_bytes(bytes(shard.bytes))
