"""Measurements: engine.py (the whole path), phi3.py (what needs two boards), kernels.py (the native kernels)."""
