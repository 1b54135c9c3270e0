"""edgellm: a handful of small boards that answer as one machine."""

__version__ = "0.1.0"
