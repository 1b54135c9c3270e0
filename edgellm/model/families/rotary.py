"""Rotary position factors from a config, as transformers computes them: default, linear, llama3, YaRN, LongRoPE and
proportional.
Pure."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.model.families.config import UnsupportedError

_DEFAULT_THETA = 10000.0
KINDS = "default, linear, llama3, yarn, longrope, proportional"


@dataclass(frozen=True)
class Rotary:
    """Inverse frequencies float32 [rotary_dim / 2]; sequences longer than `switch_len` tokens use the second set.
    Cosines and sines are multiplied by `scaling`."""

    rotary_dim: int
    frequencies: tuple[np.ndarray, ...]
    switch_len: int | None
    scaling: float

    def choose(self, pass_len: int) -> int:
        """Return which set a pass takes that ends at `pass_len` tokens."""
        return int(self.switch_len is not None and pass_len > self.switch_len)

    def tables(self, which: int, positions: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines and sines for positions [0, positions): float32 [positions, rotary_dim / 2]."""
        at = np.arange(positions, dtype=np.float32)[:, None]
        angles = (at * self.frequencies[which]).astype(np.float64)  # the angle in float32, as transformers has it
        scaling = np.float32(self.scaling)
        return np.cos(angles).astype(np.float32) * scaling, np.sin(angles).astype(np.float32) * scaling


def rotary_of(
    config: Mapping[str, Any], head_dim: int, max_seq_len: int, *, partial: bool, theta: float = _DEFAULT_THETA
) -> Rotary:
    """Return the factors that `rope_parameters` (in older configs, `rope_scaling` and `rope_theta`) ask for.

    `partial`: the family knows partial_rotary_factor; `theta` is its default base. Formulas: transformers'
    modeling_rope_utils. Raises UnsupportedError.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise UnsupportedError("its rotary parameters aren't one set for all layers")
    kind = given.get("rope_type", given.get("type", "default"))
    outer = config.get("rope_theta")
    theta = _number(given, "rope_theta", theta if outer is None else outer)
    if kind == "proportional":
        return _proportional(given, theta, head_dim)
    outer = config.get("partial_rotary_factor")
    factor = _number(given, "partial_rotary_factor", 1.0 if outer is None else outer)
    if factor != 1.0 and not partial or factor > 1.0:
        raise UnsupportedError(f"partial_rotary_factor is {factor:g}")
    dim = int(head_dim * factor)
    if dim % 2 or dim < 2:
        raise UnsupportedError(f"{dim} rotary dimensions")
    # NumPy's powers in float32 differ from processor to processor; those in float64, rounded, are the same.
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    powers = (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
    plain = (np.float32(1.0) / powers).astype(np.float32)
    if kind in ("default", None):
        return Rotary(dim, (plain,), None, 1.0)
    if kind == "linear":
        return Rotary(dim, (plain / np.float32(_number(given, "factor")),), None, 1.0)
    original = config.get("original_max_position_embeddings")
    if original is None:
        original = _number(given, "original_max_position_embeddings", max_seq_len)
    if type(original) not in (int, float) or not 1 < original < 1 << 40:
        raise UnsupportedError(f"original_max_position_embeddings is {reprlib.repr(original)}")
    if kind == "llama3":
        return Rotary(dim, (_llama3(plain, given, original),), None, 1.0)
    if kind == "yarn":
        return _yarn(powers, theta, given, original, max_seq_len)
    if kind in ("longrope", "su"):  # Phi-3's first name for it
        return _longrope(powers, given, original, max_seq_len)
    raise UnsupportedError(f"rope type {reprlib.repr(kind)}, the native path knows {KINDS}")


def _number(given: Mapping[str, Any], name: str, default: Any = None) -> float:
    value = given.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < 1e30:
        raise UnsupportedError(f"{name} is {reprlib.repr(value)}, expected a number over 0")
    return float(value)


def _proportional(given: Mapping[str, Any], theta: float, head_dim: int) -> Rotary:
    """Return frequencies as if all of a head turned, of which those beyond a share don't turn at all."""
    share, factor = _number(given, "partial_rotary_factor", 1.0), _number(given, "factor", 1.0)
    if share > 1.0 or head_dim % 2:
        raise UnsupportedError(f"partial_rotary_factor is {share:g}, of heads of {head_dim}")
    turning = int(share * head_dim // 2)
    exponents = np.arange(0, 2 * turning, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (np.float64(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.zeros(head_dim // 2, np.float32)
    frequencies[:turning] = np.float32(1.0) / powers / np.float32(factor)
    return Rotary(head_dim, (frequencies,), None, 1.0)


def _llama3(plain: np.ndarray, given: Mapping[str, Any], original: float) -> np.ndarray:
    """Llama 3.1's frequencies: long waves are stretched by a factor, short ones left alone, those between blended."""
    low, high = _number(given, "low_freq_factor"), _number(given, "high_freq_factor")
    factor, f = _number(given, "factor"), plain.astype(np.float32)
    waves = np.float32(2 * math.pi) / f
    stretched = np.where(waves > np.float32(original / low), f / np.float32(factor), f)
    if high == low:
        raise UnsupportedError("llama3 factors that leave no room between them")
    smooth = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
    blended = (1 - smooth) * stretched / np.float32(factor) + smooth * stretched
    between = ~(waves < np.float32(original / high)) & ~(waves > np.float32(original / low))
    return np.where(between, blended, stretched).astype(np.float32)


def _yarn(powers: np.ndarray, theta: float, given: Mapping[str, Any], original: float, max_seq_len: int) -> Rotary:
    """YaRN: waves that turn seldom within `original` tokens are stretched by a factor, those that turn often are left
    alone, and between them it goes linearly over the dimensions. arXiv 2309.00071."""
    dim = 2 * len(powers)
    factor = _number(given, "factor", max_seq_len / original)
    truncate = given.get("truncate", True)
    if type(truncate) is not bool:
        raise UnsupportedError(f"truncate is {reprlib.repr(truncate)}, expected true or false")

    def dimension(turns: float) -> float:
        """Return which dimension turns so often within `original` tokens."""
        if theta == 1.0:
            raise UnsupportedError("YaRN with a rope_theta of 1")
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = (dimension(_number(given, name, turns)) for name, turns in (("beta_fast", 32.0), ("beta_slow", 1.0)))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0.0
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = np.float32(1.0) - np.clip(ramp, 0, 1).astype(np.float32)
    stretched, plain = np.float32(1.0) / (np.float32(factor) * powers), np.float32(1.0) / powers
    frequencies = (stretched * (np.float32(1.0) - kept) + plain * kept).astype(np.float32)
    return Rotary(dim, (frequencies,), None, _number(given, "attention_factor", _yarn_scaling(given, factor)))


def _yarn_scaling(given: Mapping[str, Any], factor: float) -> float:
    """Return what a config multiplies cosines and sines by unless it says so itself."""

    def scaling(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return scaling(_number(given, "mscale")) / scaling(_number(given, "mscale_all_dim"))
    return scaling(1.0)


def _longrope(powers: np.ndarray, given: Mapping[str, Any], original: float, max_seq_len: int) -> Rotary:
    """LongRoPE's two sets: short factors for sequences up to `original` tokens, long ones beyond."""
    if any(given.get(name) is not None for name in ("short_mscale", "long_mscale")):
        raise UnsupportedError("LongRoPE with an mscale of its own")
    sets = tuple(
        (np.float32(1.0) / (_factors(given, name, len(powers)) * powers)).astype(np.float32)
        for name in ("short_factor", "long_factor")
    )
    stretch = _number(given, "factor", max_seq_len / original)
    default = 1.0 if stretch <= 1.0 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return Rotary(2 * len(powers), sets, int(original), _number(given, "attention_factor", default))


def _factors(given: Mapping[str, Any], name: str, count: int) -> np.ndarray:
    values = given.get(name)
    numbers = isinstance(values, list) and all(type(v) in (int, float) and 0 < v < 1e30 for v in values)
    if not isinstance(values, list) or not numbers or len(values) != count:
        raise UnsupportedError(f"{name} is not a list of {count} numbers over 0")
    return np.array(values, np.float32)
