"""Frames, messages and the protocol between manager and boards; standard library only."""
