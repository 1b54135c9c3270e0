"""A split against what it must equal: plain transformers, and one process."""
