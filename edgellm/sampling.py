"""How the next token of an answer is to be chosen."""

import reprlib
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgellm.errors import UsageError

_GENERATION_CONFIG = {  # transformers' names, and ours
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. Raises UsageError for values out of range."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top-p", self.top_p, 0.0, 1.0)
        _check("min-p", self.min_p, 0.0, 1.0)
        _check("repeat-penalty", self.repeat_penalty, 0.01, 100.0)
        for name, value, most in (("top-k", self.top_k, 1 << 31), ("seed", self.seed, (1 << 63) - 1)):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise UsageError(f"{name} is {reprlib.repr(value)}, expected a whole number from 0 to {most}")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that Open carries."""
        return asdict(self)

    @classmethod
    def from_generation_config(cls, content: dict[str, Any]) -> "Sampling":
        """Return what transformers' generate() does with a generation_config.json. Raises UsageError.

        Greedy without `do_sample`; the other values are kept for those who ask for a temperature.
        """
        sampled = content.get("do_sample") is True
        values: dict[str, Any] = {"temperature": 1.0, "top_k": 50} if sampled else {}
        for theirs, ours in _GENERATION_CONFIG.items():
            if content.get(theirs) is not None:
                values[ours] = content[theirs]
        return cls(**values if sampled else {**values, "temperature": 0.0})

    @classmethod
    def from_dict(cls, content: object) -> "Sampling":
        """Parse JSON from the network. Raises UsageError."""
        known = {f.name for f in fields(cls)}
        if not isinstance(content, dict) or not set(content) <= known:
            raise UsageError(f"sampling has unknown fields; known are {', '.join(sorted(known))}")
        return cls(**content)


def _check(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The comparison is false for NaN, and never turns a huge integer into a float.
    if not number or not low <= value <= high:
        raise UsageError(f"{name} is {reprlib.repr(value)}, expected a number from {low:g} to {high:g}")
