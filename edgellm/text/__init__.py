"""Words on their way to tokens and back: chat templates, tokenizers, streams of text, stop strings."""
