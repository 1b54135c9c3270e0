"""The daemon on a board: measure, load, run, serve."""
