"""The split folder on disk (docs/shards.md): manifest, shard files, packed weights."""
