"""Text to token ids and back: chat templates, tokenizers, streams of text, stop strings."""
