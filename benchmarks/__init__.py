"""Measurements: engine.py (the whole path), phi3.py (what needs two boards), instructions.py (the
kernels of boards). `edgellm bench` measures the kernels of the machine it runs on."""
