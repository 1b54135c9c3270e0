"""Defaults that more than one room uses, and how an answer is to be sampled."""

import reprlib
from dataclasses import asdict, dataclass, fields

from edgellm.errors import UsageError

DEFAULT_PORT = 7710
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_CONTEXT = 2048  # tokens a slot holds
DEFAULT_SLOTS = 4  # sequences at once
DEFAULT_CHUNK = 32  # prompt tokens a prefill chunk: benchmarks/chunks.py
DEFAULT_MAX_TOKENS = 512
MAX_FRAME_BYTES = 64 << 20  # the largest body of a frame
MAX_STEP_BYTES = MAX_FRAME_BYTES - 64  # the largest tensor in one; also all that a trace may answer
MAX_CHOICES = 16  # tokens that one step may choose: one, and one after each draft that it carries

# Timeouts by phase, in seconds.
CONNECT_TIMEOUT_S = 5.0
HELLO_TIMEOUT_S = 5.0
FRAME_TIMEOUT_S = 30.0  # from a frame's first byte to its last
WRITE_TIMEOUT_S = 20.0  # a peer that reads nothing for so long is gone
PING_EVERY_S = 0.5
PONG_TIMEOUT_S = 4.0  # a board that answers no ping for so long is dead or hangs: noticed within 5 s
PATIENCE_S = 120.0  # an answer without a token for so long, whatever was tried, is given up
MANAGER_SILENCE_S = 30.0  # a manager that says nothing for so long is gone
BOARD_SILENCE_S = 600.0  # a board that sends no step for so long dials again when it has one
STALL_TIMEOUT_S = 20.0  # no token for so long while no board has work: a step was lost
STEP_TIMEOUT_S = 180.0  # a board that is asked to work and finishes no step for so long hangs


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. Raises UsageError for values out of range."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top-p", self.top_p, 0.0, 1.0)
        _check("min-p", self.min_p, 0.0, 1.0)
        _check("repeat-penalty", self.repeat_penalty, 0.01, 100.0)
        for name, value, most in (("top-k", self.top_k, 1 << 31), ("seed", self.seed, (1 << 63) - 1)):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise UsageError(f"{name} is {reprlib.repr(value)}, expected a whole number from 0 to {most}")

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> "Sampling":
        """From JSON out of the network; raises UsageError."""
        known = {f.name for f in fields(cls)}
        if not isinstance(content, dict) or not set(content) <= known:
            raise UsageError(f"sampling has unknown fields; known are {', '.join(sorted(known))}")
        return cls(**content)


def _check(name: str, value, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The comparison is false for NaN, and never turns a huge integer into a float.
    if not number or not low <= value <= high:
        raise UsageError(f"{name} is {reprlib.repr(value)}, expected a number from {low:g} to {high:g}")
