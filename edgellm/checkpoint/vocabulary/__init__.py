"""Vocabularies of checkpoints: how a text becomes token ids, and which tokens end an answer."""
