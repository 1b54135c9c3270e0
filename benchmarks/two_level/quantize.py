"""Weights rounded to int4 in groups of 32: affine or two-level scales, by minimum and maximum or by a search.

All functions take float32 [groups, 32] and return what the quantized weights stand for, in the same shape. The groups
of a two-level block of 256 columns lie one after the other, eight at a time.
"""

import math

import torch

BLOCK_GROUPS = 8
_STEPS = 15


def affine_searched(groups: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """By the search: fp16 d and m a group."""
    d, m = search(groups, weights=weights)
    return rounded(groups, d.half().float(), m.half().float())


def affine_weighted(groups: torch.Tensor) -> torch.Tensor:
    """By the search, large weights counting more."""
    return affine_searched(groups, importance(groups))


def two_level(groups: torch.Tensor) -> torch.Tensor:
    """By minimum and maximum: 6-bit scales and minima, fp16 d and m a block."""
    low, high = groups.aminmax(dim=1, keepdim=True)
    low = low.clamp(max=0)
    return rounded(groups, *six_bits((high - low) / _STEPS, low))


def two_level_searched(groups: torch.Tensor, weights: torch.Tensor | None = None, rounds: int = 3) -> torch.Tensor:
    """By the search, then d and m fitted to the whole block by least squares, and the 6 bits and they in turn."""
    weights = torch.ones_like(groups) if weights is None else weights
    d, m = six_bits(*search(groups, 0.0, weights))
    best = rounded(groups, d, m)
    least = block_errors(groups, best, weights)
    for _ in range(rounds):
        d, m = six_bits_fitted(groups, integers(groups, d, m), d, m, weights)
        values = rounded(groups, d, m)
        errors = block_errors(groups, values, weights)
        better = (errors < least).repeat_interleave(BLOCK_GROUPS)[:, None]
        best, least = torch.where(better, values, best), torch.minimum(errors, least)
    return best


def two_level_weighted(groups: torch.Tensor) -> torch.Tensor:
    """By the search, large weights counting more."""
    return two_level_searched(groups, importance(groups))


def rounded(groups: torch.Tensor, d: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """The nearest values d * q + m, q from 0 to 15; d and m [groups, 1]."""
    return d * integers(groups, d, m) + m


def integers(groups: torch.Tensor, d: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """The q of the nearest values, as floats."""
    return ((groups - m) / torch.where(d == 0, 1.0, d)).round_().clamp_(0, _STEPS)


def block_errors(groups: torch.Tensor, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Squared error, each counted by its weight [blocks]."""
    return (weights * (groups - values).square()).sum(1).view(-1, BLOCK_GROUPS).sum(1)


def importance(groups: torch.Tensor) -> torch.Tensor:
    """How much an error counts in llama.cpp's quantizer, uncalibrated: |w| plus the group's root mean square."""
    return groups.abs() + groups.square().mean(1, keepdim=True).sqrt()


def search(
    groups: torch.Tensor, most_minimum: float = math.inf, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(d, m) [groups, 1] of the smallest squared error found, each counted by its weight: several steps around
    (max - min) / 15 are tried, each fitted by least squares to the integers it gives, as llama.cpp's make_qkx2_quants
    does. m <= most_minimum."""
    weights = torch.ones_like(groups) if weights is None else weights
    low, high = groups.aminmax(dim=1, keepdim=True)
    low = low.clamp(max=most_minimum)
    best_d, best_m = (high - low) / _STEPS, low
    least = (weights * (groups - rounded(groups, best_d, best_m)).square()).sum(1, keepdim=True)
    for i in range(-10, 11):
        q = integers(groups, (high - low) / (_STEPS + 0.1 * i), low)
        d, m = fitted(groups, q, most_minimum, weights)
        error = (weights * (groups - rounded(groups, d, m)).square()).sum(1, keepdim=True)
        better = error < least
        best_d, best_m = torch.where(better, d, best_d), torch.where(better, m, best_m)
        least = torch.where(better, error, least)
    return best_d, best_m


def fitted(groups, q, most_minimum: float, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(d, m) of the least squares for given q; where m would be above its limit, d for m at the limit."""
    whole = weights.sum(1, keepdim=True)
    whole = torch.where(whole == 0, 1.0, whole)
    mean_q, mean = (weights * q).sum(1, keepdim=True) / whole, (weights * groups).sum(1, keepdim=True) / whole
    spread = (weights * (q - mean_q).square()).sum(1, keepdim=True)
    d = (weights * (q - mean_q) * groups).sum(1, keepdim=True) / torch.where(spread == 0, 1.0, spread)
    m = mean - d * mean_q
    if most_minimum < math.inf:
        power = (weights * q.square()).sum(1, keepdim=True)
        through = (weights * (groups - most_minimum) * q).sum(1, keepdim=True) / torch.where(power == 0, 1.0, power)
        d, m = torch.where(m > most_minimum, through, d), m.clamp(max=most_minimum)
    return d, m


def six_bits(d: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """d >= 0 and m <= 0 [groups, 1], rounded to 63 steps of an fp16 a block."""
    return _six_bits(d, d), -_six_bits(-m, -m)


def _six_bits(values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    blocks = values.view(-1, BLOCK_GROUPS)
    step = (blocks.amax(1, keepdim=True) / 63).half().float()
    levels = (wanted.view(-1, BLOCK_GROUPS) / torch.where(step == 0, 1.0, step)).round_().clamp_(0, 63)
    return (levels * step).view(-1, 1)


def six_bits_fitted(groups, q, d, m, weights) -> tuple[torch.Tensor, torch.Tensor]:
    """For given q: each group's 6 bits anew, then the block's fp16 pair by least squares over all its weights."""
    step_d, step_m = (v.view(-1, BLOCK_GROUPS).abs().amax(1, keepdim=True) / 63 for v in (d, m))
    level_d, level_m = (
        (v.view(-1, BLOCK_GROUPS).abs() / torch.where(s == 0, 1.0, s)).round_().clamp_(0, 63)
        for v, s in ((d, step_d), (m, step_m))
    )
    # w ~ D * (level_d q) - M * level_m: two unknowns a block
    a = (level_d.view(-1, 1) * q).view(len(step_d), -1)
    b = -level_m.view(-1, 1).expand_as(q).reshape(len(step_d), -1)
    w = groups.reshape(len(step_d), -1)
    count = weights.reshape(len(step_d), -1)
    aa, bb, ab = (count * a * a).sum(1), (count * b * b).sum(1), (count * a * b).sum(1)
    aw, bw = (count * a * w).sum(1), (count * b * w).sum(1)
    determinant = aa * bb - ab * ab
    sound = determinant > 1e-6 * aa * bb
    determinant = torch.where(sound, determinant, 1.0)
    big_d = torch.where(sound, (aw * bb - bw * ab) / determinant, step_d[:, 0]).clamp(min=0).half().float()[:, None]
    big_m = torch.where(sound, (bw * aa - aw * ab) / determinant, step_m[:, 0]).clamp(min=0).half().float()[:, None]
    # and each group's 6 bits for that pair, by its own least squares
    fit_d, fit_m = fitted(groups, q, 0.0, weights)
    new_d, new_m = (
        (v.view(-1, BLOCK_GROUPS).abs() / torch.where(s == 0, 1.0, s)).round_().clamp_(0, 63) * s
        for v, s in ((fit_d, big_d), (fit_m, big_m))
    )
    return new_d.view(-1, 1), -new_m.view(-1, 1)
