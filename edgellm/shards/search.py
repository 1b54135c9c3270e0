"""A search for the scales and minima of q4_k: those that leave the least error, not those that reach both ends.

For a group of 32 weights w the codes q that a scale gives fix, by least squares, the scale and minimum that suit them
best: d and m of the least sum of (w - d q - m)^2. Tried for codes that stretch the group to a little less and to a
little more than 15 steps, of which the best counts. m is at most 0, as q4_k wants it. All sums go in halves, so that
every processor finds the same.
"""

import numpy as np

from edgellm.kernels.library import GROUP

_STEPS = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6)  # beyond 15, tried; more gain less than a hundredth
_LEVELS, _SCALE_LEVELS = 15, 63  # of codes; of a group's scale and minimum
_MOST = 65504.0 * _LEVELS
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def q4_k(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return codes [rows, groups, 32] and scales [rows, blocks, 16] of q4_k, both uint8, for finite float32 [rows,
    columns], columns a multiple of 256. Raises ValueError for weights too large for fp16 scales."""
    most = float(max(weight.max(), -weight.min()))
    if most > _MOST:
        raise ValueError(f"a weight of {most:g} is more than int4 can hold, {_MOST:g}")
    groups = weight.reshape(len(weight), -1, 8, GROUP)  # row, block, group, column
    scale, minimum = _fit(groups)
    d, d6 = _in_63_steps(scale)
    m, m6 = _in_63_steps(minimum)
    scale = d.astype(np.float32)[:, :, None] * d6
    minimum = m.astype(np.float32)[:, :, None] * m6
    codes = np.rint((groups + minimum[..., None]) / _or_one(scale)[..., None])
    codes = np.clip(codes, 0, _LEVELS).astype(np.uint8).reshape(len(weight), -1, GROUP)
    halves = [half[:, :, None].view(np.uint8) for half in (d, m)]
    return codes, np.concatenate([_six_bits(d6.astype(np.uint8), m6.astype(np.uint8)), *halves], axis=2)


def _fit(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and how far the minimum lies below 0, float32 of each group [..., 32]."""
    low, high = np.minimum(groups.min(axis=-1), _ZERO), groups.max(axis=-1)
    span = high - low
    per_span = np.where(span > 0, _ONE / _or_one(span), _ZERO)
    above = groups - low[..., None]
    total = _sum(groups)
    least, scale, minimum = np.full_like(total, np.inf), np.zeros_like(total), np.zeros_like(total)
    for step in _STEPS:
        q = np.clip(np.rint(above * (np.float32(_LEVELS + step) * per_span)[..., None]), 0, _LEVELS)
        sums, squares, products = _sum(q), _sum(q * q), _sum(q * groups)
        determinant = GROUP * squares - sums * sums
        d = np.where(determinant > 0, (GROUP * products - sums * total) / _or_one(determinant), _ZERO)
        m = (total - d * sums) / np.float32(GROUP)
        d = np.maximum(np.where(m > 0, products / _or_one(squares), d), _ZERO)
        m = np.minimum(m, _ZERO)
        off = groups - (d[..., None] * q + m[..., None])
        error = _sum(off * off)
        better = error < least
        np.copyto(least, error, where=better)
        np.copyto(scale, d, where=better)
        np.copyto(minimum, m, where=better)
    return scale, -minimum


def _in_63_steps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return fp16 steps [rows, blocks], and how many of them, 0 to 63 in float32, each of [rows, blocks, groups] is."""
    step = (values.max(axis=2) / np.float32(_SCALE_LEVELS)).astype(np.float16)
    return step, np.clip(np.rint(values / _or_one(step.astype(np.float32))[:, :, None]), 0, _SCALE_LEVELS)


def _six_bits(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Return the 12 bytes in which GGUF packs 8 scales and 8 minima of 6 bits [rows, blocks, 8]."""
    first, last = slice(0, 4), slice(4, 8)
    return np.concatenate([
        scales[..., first] | scales[..., last] >> 4 << 6,
        minima[..., first] | minima[..., last] >> 4 << 6,
        scales[..., last] & 15 | (minima[..., last] & 15) << 4,
    ], axis=2)  # fmt: skip


def _or_one(values: np.ndarray) -> np.ndarray:
    """Return the values to divide by: 1 for 0."""
    return np.where(values == 0, _ONE, values)


def _sum(values: np.ndarray) -> np.ndarray:
    """Return the sum over the last axis, 32 long, adding halves."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values[..., 0]
