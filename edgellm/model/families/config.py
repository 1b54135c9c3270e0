"""Reading the values of a config.json, each one checked. Pure."""

import reprlib
from collections.abc import Mapping
from typing import Any

MAX_LAYERS = 1024
_MAX = (1 << 24) - 1  # of any size that a family reads


class UnsupportedError(Exception):
    """Says why the native path can't run a config."""


class Config:
    """A config's values by name. A value that is missing or null is its default, as in transformers' config classes;
    one of another type or range raises UnsupportedError."""

    def __init__(self, content: Mapping[str, Any]):
        self.content = content

    def get(self, *names: str) -> Any:
        """Return the first of these values that is there and not null, else None."""
        return next((self.content[n] for n in names if self.content.get(n) is not None), None)

    def is_null(self, name: str) -> bool:
        """Return whether the value is there and null."""
        return name in self.content and self.content[name] is None

    def count(self, *names: str, default: int | None = None, least: int = 1, most: int = _MAX) -> int:
        """Return a whole number from `least` to `most`; with several names, the first that is there."""
        value = self.get(*names)
        value = default if value is None else value
        if type(value) is not int or not least <= value <= most:
            raise UnsupportedError(
                f"{names[0]} is {reprlib.repr(value)}, expected a whole number from {least} to {most}"
            )
        return value

    def layers(self, *names: str, default: int) -> int:
        """Return the number of layers."""
        return self.count(*names, default=default, most=MAX_LAYERS)

    def number(self, name: str, default: float) -> float:
        """Return a number of at least 0."""
        value = self.get(name)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 <= value < 1e30:
            raise UnsupportedError(f"{name} is {reprlib.repr(value)}, expected a number from 0 to 1e30")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false; null is refused."""
        value = self.content.get(name, default)
        if type(value) is not bool:
            raise UnsupportedError(f"{name} is {reprlib.repr(value)}, expected true or false")
        return value

    def expect(self, name: str, default: str, *allowed: str) -> None:
        """Raise UnsupportedError unless the value, or its default, is one of those allowed."""
        value = self.content.get(name, default)
        if value not in allowed:
            known = ", ".join(map(repr, allowed))
            raise UnsupportedError(f"{name} is {reprlib.repr(value)}, the native path knows {known}")
