"""GGUF files as sources: header, parts, metadata to config.json, tensors under the names of the shards."""
