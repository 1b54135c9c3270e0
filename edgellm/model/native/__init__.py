"""Sections of well-known families, run by one native call per step; NumPy and cffi, no torch."""
