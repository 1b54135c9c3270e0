"""A section of any decoder: its modules, KV slots, packed weights and sampling."""
