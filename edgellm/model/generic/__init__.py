"""Sections of any decoder that transformers builds, its own layers run with torch."""
