"""Splits a source checkpoint into shard files and their manifest."""
