"""Options for choosing the next token of an answer."""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgellm.errors import UsageError

_GENERATION_CONFIG = {  # transformers' names, and ours
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}

MAX_BIASES = 300  # tokens whose logits one answer may shift
_MAX_BIAS = 100.0


def _number(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _whole(default: int, low: int, high: int) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "whole": True})


@dataclass(frozen=True)
class Sampling:
    """Options for choosing the next token; temperature 0 is greedy. Raises UsageError for values out of range.

    An option is a line here, with a default that changes nothing. `presence_penalty` and `frequency_penalty` are for
    tokens of the answer, `repeat_penalty` for those of the prompt too. `logit_bias` holds (token id, what to add to its
    logit); it may be given as a mapping.
    """

    temperature: float = _number(0.0, 0.0, 100.0)
    top_p: float = _number(1.0, 0.0, 1.0)
    top_k: int = _whole(0, 0, 1 << 31)
    min_p: float = _number(0.0, 0.0, 1.0)
    repeat_penalty: float = _number(1.0, 0.01, 100.0)
    seed: int = _whole(0, 0, (1 << 63) - 1)
    presence_penalty: float = _number(0.0, -2.0, 2.0)
    frequency_penalty: float = _number(0.0, -2.0, 2.0)
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.metadata:
                _check(option.name.replace("_", "-"), getattr(self, option.name), **option.metadata)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    def to_dict(self) -> dict[str, Any]:
        """Return all options by name."""
        return asdict(self)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object that Open carries: the options that differ from their defaults, so that a board which
        doesn't know an option yet serves everybody who doesn't use it."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

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
        if values.get("top_k") == -1:  # another program's word for off
            values["top_k"] = 0
        return cls(**values if sampled else {**values, "temperature": 0.0})

    @classmethod
    def from_dict(cls, content: object) -> "Sampling":
        """Parse JSON from the network. Raises UsageError."""
        known = {f.name for f in fields(cls)}
        if not isinstance(content, dict) or not set(content) <= known:
            raise UsageError(f"sampling has unknown fields; known are {', '.join(sorted(known))}")
        return cls(**content)


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    """Return biases in the order of their ids. Raises UsageError."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise UsageError(f"logit-bias is {reprlib.repr(value)}, expected pairs of a token id and a bias")
    biases: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise UsageError(f"logit-bias has {reprlib.repr(pair)}, expected a token id and a bias")
        token, bias = pair
        _check("a token id of logit-bias", token, 0, (1 << 32) - 1, whole=True)
        _check(f"logit-bias of token {token}", bias, -_MAX_BIAS, _MAX_BIAS)
        if token in biases:
            raise UsageError(f"logit-bias has token {token} twice")
        biases[token] = float(bias)
        if len(biases) > MAX_BIASES:
            raise UsageError(f"logit-bias has over {MAX_BIASES} tokens")
    return tuple(sorted(biases.items()))


def _check(name: str, value: object, low: float, high: float, whole: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        known = False
    else:
        known = low <= value <= high  # false for NaN, and never turns a huge integer into a float
    if not known:
        what = f"whole number from {low} to {high}" if whole else f"number from {low:g} to {high:g}"
        raise UsageError(f"{name} is {reprlib.repr(value)}, expected a {what}")
