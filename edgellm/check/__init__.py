"""A split compared with what it must equal: plain transformers, and one process."""
