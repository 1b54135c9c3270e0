"""From a source checkpoint to pre-split shard files and their manifest."""
