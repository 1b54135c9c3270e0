"""Sections of well-known families, run by one native call a step; NumPy and cffi, no torch."""
