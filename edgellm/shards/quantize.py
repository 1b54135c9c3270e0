"""Packing float32 weights into tiles of q4_k, int4 or int8, in NumPy; docs/shards.md has the arithmetic."""

import numpy as np

from edgellm.kernels.library import GROUP
from edgellm.shards.search import q4_k
from edgellm.shards.tiles import to_tiles

LEVELS = {"int4": 15, "int8": 127}  # steps from the minimum (int4) or zero (int8) to the largest weight
_HALF_MAX = 65504.0
_ZERO = np.float32(0.0)


def quantize(weight: np.ndarray, encoding: str) -> np.ndarray:
    """Return finite float32 [rows, columns], columns a multiple of the encoding's block, as tiles: uint8 [tiles, bytes
    of a tile].

    Every element is off by at most d / 2, but in q4_k, whose scales are those of the least squares. Raises ValueError
    for elements too large for fp16 scales.
    """
    if encoding == "q4_k":
        return to_tiles(encoding, *q4_k(weight))
    levels = LEVELS[encoding]
    groups = weight.reshape(len(weight), -1, GROUP)  # [rows, groups, 32]
    if encoding == "int4":
        low, high = groups.min(axis=2), groups.max(axis=2)
        most = float(max((-low).max(), high.max()))
        if most > _HALF_MAX:
            raise ValueError(f"a weight of {most:g} is more than int4 can hold, {_HALF_MAX:g}")
        # Adding 0 turns -0 into 0: which of the two is the least of a group is each processor's own choice.
        minimum = _half_at_most(low + _ZERO)
        offset = minimum.astype(np.float32)
        span = high - offset + _ZERO
        q = groups - offset[:, :, None]
    else:
        span = np.maximum(groups.max(axis=2), -groups.min(axis=2)) + _ZERO
        if float(span.max()) > _HALF_MAX * levels:
            raise ValueError(f"a weight of {float(span.max()):g} is more than int8 can hold, {_HALF_MAX * levels:g}")
        minimum = None
        q = groups.copy()
    scale = _half_scale(span, levels)
    d = scale.astype(np.float32)
    q /= np.where(d == 0, np.float32(1.0), d)[:, :, None]
    np.rint(q, out=q)
    np.clip(q, 0 if encoding == "int4" else -levels, levels, out=q)
    halves = [scale] if minimum is None else [scale, minimum]
    codes = q.astype(np.uint8 if encoding == "int4" else np.int8).view(np.uint8)
    return to_tiles(encoding, codes, np.stack(halves, axis=2).view(np.uint8))


def _half_at_most(values: np.ndarray) -> np.ndarray:
    """Return the largest fp16 that is not above each value, so that the offset from it is never negative."""
    half = values.astype(np.float16)
    bits = half.view(np.int16)
    # The bits of a positive fp16 grow with it, those of a negative one grow away from zero (-0.0 counts as such).
    below = np.where(bits < 0, bits + np.int16(1), bits - np.int16(1)).view(np.float16)
    return np.where(half.astype(np.float32) > values, below, half)


def _half_scale(span: np.ndarray, levels: int) -> np.ndarray:
    """Return fp16 span / levels; the next one up where its rounding would leave the far end off by over half a step."""
    half = np.minimum(span / np.float32(levels), np.float32(_HALF_MAX)).astype(np.float16)
    above = (half.view(np.int16) + np.int16(1)).view(np.float16)
    return np.where(np.float32(levels + 0.5) * half.astype(np.float32) < span, above, half)
