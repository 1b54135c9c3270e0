"""The search for scales of q4_k, against what other ways of choosing them give."""

import numpy as np
import pytest

from edgellm.shards.encodings import values
from edgellm.shards.quantize import quantize
from edgellm.shards.search import q4_k
from edgellm.shards.tiles import from_tiles

SEED = 3


def error(weight: np.ndarray, encoding: str) -> float:
    """The root of the mean square of the errors, in parts of that of the weights."""
    got = values(*from_tiles(quantize(weight, encoding), encoding, weight.shape), encoding)
    return float(np.sqrt(((got - weight) ** 2).mean() / (weight**2).mean()))


@pytest.mark.parametrize("draw, most", [
    (lambda rng: rng.standard_normal((64, 1024)), 0.0725), (lambda rng: rng.standard_t(5, (64, 1024)), 0.0845),
    (lambda rng: rng.uniform(-1, 1, (64, 1024)), 0.056), (lambda rng: rng.standard_normal((64, 1024)) * 1e-3, 0.0735),
    (lambda rng: -np.abs(rng.standard_normal((64, 1024))), 0.06),
], ids=["normal", "heavy tails", "uniform", "small", "negative"])  # fmt: skip
def test_fewer_bits_are_off_by_less_than_those_of_int4(draw, most):
    weight = draw(np.random.default_rng(SEED)).astype(np.float32)
    assert error(weight, "q4_k") < min(most, error(weight, "int4"))


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30])
def test_weights_that_are_all_alike_are_kept(value):
    weight = np.full((20, 256), value, np.float32)
    codes, scales = q4_k(weight)
    assert np.allclose(values(codes, scales, "q4_k"), weight, rtol=1e-3, atol=1e-6)


def test_weights_out_of_range_are_refused():
    with pytest.raises(ValueError, match="more than int4 can hold"):
        quantize(np.full((16, 256), 3e38, np.float32), "q4_k")


def test_a_row_is_quantized_alone():
    weight = np.random.default_rng(SEED).standard_normal((40, 512)).astype(np.float32)
    codes, scales = q4_k(weight)
    for start, end in ((0, 1), (17, 40)):
        part = q4_k(weight[start:end])
        assert np.array_equal(part[0], codes[start:end]) and np.array_equal(part[1], scales[start:end])
