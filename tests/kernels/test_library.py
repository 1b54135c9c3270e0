"""The native kernels: every encoding, odd shapes, every instruction set of this processor, and what is refused."""

import ctypes

import gguf
import numpy as np
import pytest
import torch
from building import available
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import EdgellmError
from edgellm.kernels import library
from edgellm.model.generic.packed import unpack
from edgellm.shards import encodings
from edgellm.shards.tiles import from_blocks, from_tiles
from tests.model.make_split import pack
from tests.native_abi import call

ENCODINGS = list(library.ENCODINGS)
PACKED = list(library.GROUP_BYTES)


@pytest.fixture(params=available())
def target(request):
    library.use_target(request.param)
    yield request.param
    library.use_target(None)


@pytest.fixture
def one_thread_afterwards():
    yield
    library.set_threads(1)


def fitting(columns, encoding):
    """As many columns, or the next number of them that this encoding takes."""
    unit = library.BLOCK_COLUMNS.get(encoding, 1)
    return -(-columns // unit) * unit


def weight(out, columns, encoding, seed=0):
    torch.manual_seed(seed)
    return pack(torch.randn(out, columns), encoding)


def raw(data):
    return data.view(torch.int16).numpy() if data.dtype == torch.bfloat16 else data.numpy()


def computed(x, data, encoding, shape, integer=False):
    y = np.full((x.shape[0], shape[0]), np.nan, np.float32)
    library.linear(np.ascontiguousarray(x), raw(data), encoding, shape, y, integer)
    return y


def dequantized(data, encoding, shape):
    into = np.empty(shape, np.float32)
    library.dequantize(raw(data), encoding, shape, 0, shape[0], into)
    return into


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(1, 32), (3, 32), (17, 64), (5, 544), (4, 1024), (33, 1056)])
def test_linear_equals_matmul_with_the_unpacked_weight(target, encoding, shape):
    shape = shape[0], fitting(shape[1], encoding)
    data = weight(*shape, encoding)
    reference = unpack(data, encoding, shape).double().numpy()
    for tokens in (1, 2, 3, 4, 5, 8, 17):
        x = torch.randn(tokens, shape[1]).numpy()
        np.testing.assert_allclose(computed(x, data, encoding, shape), x.astype(float) @ reference.T, 1e-5, 2e-4)


@pytest.mark.parametrize("encoding", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("columns", [1, 3, 31, 33, 95])
def test_plain_rows_may_have_any_length(target, encoding, columns):
    data = weight(6, columns, encoding)
    x = torch.randn(9, columns).numpy()
    expected = x.astype(float) @ data.double().numpy().T
    np.testing.assert_allclose(computed(x, data, encoding, (6, columns)), expected, 1e-5, 1e-5)
    assert np.array_equal(dequantized(data, encoding, (6, columns)), data.float().numpy())


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_token_does_not_depend_on_its_neighbours_or_on_threads(target, encoding, integer, one_thread_afterwards):
    shape = (67, fitting(608, encoding))
    data = weight(*shape, encoding)
    x = torch.randn(37, shape[1]).numpy()
    alone = np.concatenate([computed(row[None], data, encoding, shape, integer) for row in x])
    for threads in (1, 2, 3):
        library.set_threads(threads)
        for tokens in (1, 2, 3, 5, 6, 7, 13, 16, 37):
            assert np.array_equal(computed(x[:tokens], data, encoding, shape, integer), alone[:tokens])


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("encoding", PACKED)
def test_a_row_does_not_depend_on_its_neighbours(target, encoding, integer):
    columns = fitting(96, encoding)
    whole = weight(41, columns, encoding)
    x = torch.randn(3, columns).numpy()
    together = computed(x, whole, encoding, (41, columns), integer)
    for start in (0, 16, 32):
        shape = (min(16, 41 - start), columns)
        alone = computed(x, whole[start // 16 : start // 16 + 1], encoding, shape, integer)
        assert np.array_equal(alone, together[:, start : start + 16])


def test_symmetric_nibbles_keep_their_sign_and_infinity(target):
    """q = 8 with a negative scale is -0, and an infinite scale makes no NaN of another q, in any number of rows."""
    q = np.random.default_rng(0).integers(0, 256, 256, np.uint8)
    scales = np.array([-0.5, np.inf, -np.inf, 1.0] * 4, np.float16).view(np.uint8)
    data, shape = torch.from_numpy(np.concatenate([q, scales])), (16, 32)
    whole = dequantized(data, "int4s", shape)
    x = np.eye(32, dtype=np.float32)[:3] * np.float32(-2)
    product = computed(x, data, "int4s", shape)
    library.use_target("scalar")
    for found, expected in ((whole, dequantized(data, "int4s", shape)), (product, computed(x, data, "int4s", shape))):
        assert np.array_equal(found, expected, equal_nan=True)
        numbers = ~np.isnan(expected)
        assert np.array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))
    assert np.isinf(whole).any() and (np.signbit(whole) & (whole == 0)).any()


def rounding_bound(x, weights, scale, minima):
    """What gemm.h promises of the integer product for each token and row, given the float64 weights and minima."""
    groups = weights.shape[1] // 32
    sums = np.abs(weights).reshape(-1, groups, 32).sum(2)  # [out, groups]
    largest = np.abs(x).reshape(len(x), groups, 32).max(2)
    half_steps = np.where(largest < 2.0**-100, 2.0**-100, scale.astype(float) / 2)  # [tokens, groups]
    return half_steps @ sums.T + (groups + 3) * 2.0**-22 * (np.abs(x).astype(float) @ (np.abs(weights) + minima).T)


def minima_of(data, encoding, shape):
    """What is added to each weight, float64 [out, in], or 0."""
    layout = encodings.ENCODINGS[encoding]
    minima = encodings._factors(from_tiles(data.numpy(), encoding, shape)[1], encoding)[1]
    if minima is None:
        return 0
    return np.repeat(np.abs(minima.astype(float)), layout.columns // minima.shape[2], axis=2).reshape(shape)


@st.composite
def problems(draw):
    """(x, encoding, weights): x of ordinary, tiny, huge, sparse and constant values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens, out, groups = draw(st.integers(1, 17)), draw(st.integers(1, 40)), draw(st.integers(1, 6))
    encoding = draw(st.sampled_from(PACKED))
    groups = fitting(32 * groups, encoding) // 32
    scale = draw(st.sampled_from([1.0, 1e-3, 1e-20, 1e-36, 1e-41, 1e15]))
    x = (rng.standard_normal((tokens, 32 * groups)) * scale).astype(np.float32)
    kind = draw(st.sampled_from(["ordinary", "zeros", "outlier", "signs", "sparse"]))
    if kind == "zeros":
        x[:, :32] = 0
    elif kind == "outlier":
        x[0, 5] = 1000 * scale
    elif kind == "signs":
        x = np.sign(x) * np.float32(scale)
    elif kind == "sparse":
        x[rng.random(x.shape) < 0.9] = 0
    spread = draw(st.sampled_from([1e-4, 1.0, 100.0]))
    weights = (rng.standard_normal((out, 32 * groups)) + draw(st.sampled_from([0, 2]))) * spread
    return x, encoding, torch.from_numpy(weights.astype(np.float32))


@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_the_integer_product_is_within_its_bound_and_the_same_everywhere(problem):
    x, encoding, weights = problem
    shape, data = tuple(weights.shape), pack(weights, encoding)
    exact = unpack(data, encoding, shape).double().numpy()
    results = []
    for name in available():
        library.use_target(name)
        results.append(computed(x, data, encoding, shape, integer=True))
        scale = library.quantize(x)[1]
    library.use_target(None)
    assert all(np.array_equal(r, results[0]) for r in results)
    error = np.abs(results[0] - x.astype(float) @ exact.T)
    assert (error <= rounding_bound(x, exact, scale, minima_of(data, encoding, shape)) + 1e-44).all()


def test_activations_are_quantized_as_written_in_plain_numpy(target):
    x = np.random.default_rng(0).standard_normal((3, 320)).astype(np.float32)
    x[1, 32:64] = 0
    x[2, :32] = np.arange(-16, 16) + 0.5  # halves go to the even one
    x[2, 0] = 127
    q, scale, total = library.quantize(x)
    grouped = x.reshape(3, 10, 32)
    most = np.abs(grouped).max(2)
    with np.errstate(divide="ignore"):
        inverse = np.where(most == 0, np.float32(0), np.float32(127) / most).astype(np.float32)
    assert np.array_equal(q, np.rint(grouped * inverse[:, :, None]).reshape(3, 320))
    assert np.array_equal(scale, most / np.float32(127))
    assert np.array_equal(total, scale * q.reshape(3, 10, 32).sum(2).astype(np.float32))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_stays_none_and_spoils_only_its_own_token(target, bad):
    data = weight(20, 64, "int8")
    x = np.ones((3, 64), np.float32)
    good = computed(x, data, "int8", (20, 64), integer=True)
    x[1, 40] = bad
    y = computed(x, data, "int8", (20, 64), integer=True)
    assert np.isnan(y[1]).all() and np.array_equal(y[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_dequantize_is_exact_and_writes_only_the_rows_asked_for(target, encoding):
    shape = (39, fitting(544, encoding))
    data = weight(*shape, encoding)
    expected = unpack(data, encoding, shape).numpy()
    for start, end in [(0, 39), (2, 7), (15, 33), (38, 39), (4, 4)]:
        guarded = np.full((end - start + 2, shape[1]), 7, np.float32)
        library.dequantize(raw(data), encoding, shape, start, end, guarded[1:-1])
        assert np.array_equal(guarded[1:-1], expected[start:end])
        assert (guarded[[0, -1]] == 7).all()


def test_every_half_float_is_converted(target):
    every = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(2048, 32)
    into = dequantized(torch.from_numpy(every), "f16", (2048, 32))
    expected = every.astype(np.float32)
    assert np.array_equal(np.isnan(into), np.isnan(expected))
    ordinary = ~np.isnan(expected)
    assert np.array_equal(into[ordinary].view(np.int32), expected[ordinary].view(np.int32))  # -0.0 too


def test_every_brain_float_is_converted(target):
    every = np.arange(65536, dtype=np.uint32).reshape(2048, 32)
    into = np.empty((2048, 32), np.float32)
    library.dequantize(every.astype(np.uint16), "bf16", (2048, 32), 0, 2048, into)
    assert np.array_equal(into.view(np.uint32), every << 16)


@pytest.mark.parametrize("encoding", PACKED)
def test_every_byte_and_odd_scales_are_decoded(target, encoding):
    """As the gguf package decodes them, to the sign of a zero."""
    layout, shape = encodings.ENCODINGS[encoding], (128, 5 * library.BLOCK_COLUMNS[encoding])
    blocks = np.random.default_rng(0).integers(0, 256, (128, 5, layout.block_bytes), dtype=np.uint8)
    at = 0
    for field, size in layout.fields:
        if field in "dm" and size == 2:
            blocks[:, :, at + 1] &= 0xBB  # finite, also subnormal
        elif field == "d":
            blocks[:, :, at] = np.arange(640).reshape(128, 5) % 253
        at += size
    theirs = gguf.quants.dequantize(blocks.reshape(128, -1), gguf.GGMLQuantizationType[layout.gguf])
    data = from_blocks(blocks.reshape(128, -1), encoding)
    assert np.array_equal(dequantized(torch.from_numpy(data), encoding, shape).view(np.int32), theirs.view(np.int32))
    ours = unpack(torch.from_numpy(data), encoding, shape).numpy()
    assert np.array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.mark.parametrize("encoding", PACKED)
def test_weights_are_read_where_they_are_even_at_an_odd_address(target, encoding):
    columns = fitting(64, encoding)
    data = weight(18, columns, encoding)
    shifted = torch.empty(data.numel() + 1, dtype=torch.uint8)
    view = shifted[1:].view(data.shape)
    view.copy_(data)
    x = torch.randn(2, columns).numpy()
    for integer in (False, True):
        expected = computed(x, data, encoding, (18, columns), integer)
        assert np.array_equal(computed(x, view, encoding, (18, columns), integer), expected)


def test_no_tokens_is_no_work():
    assert computed(np.empty((0, 32), np.float32), weight(4, 32, "int4"), "int4", (4, 32)).shape == (0, 4)


X, Y, DATA, SHAPE = np.zeros((2, 64), np.float32), np.zeros((2, 3), np.float32), np.zeros((1, 640), np.uint8), (3, 64)
BAD_CALLS = [
    ((X.astype(float), DATA, "int4", SHAPE, Y), "x must be float32, not float64"),
    ((X, DATA, "int5", SHAPE, Y), "encoding 'int5' is none of int4, int8, bf16, f16, f32, int4s, q5_0, "),
    ((X, DATA, "q4_k", SHAPE, Y), "q4_k packs rows in groups of 256; this weight has rows of 64"),
    ((X[0], DATA, "int4", SHAPE, Y), "x must have 2 dimensions, not 1"),
    ((X[:, :48], DATA, "int4", (3, 48), Y), "groups of 32; this weight has rows of 48"),
    ((X[:, :32], DATA, "int4", SHAPE, Y), r"x must have shape \[2, 64\], not \[2, 32\]"),
    ((np.zeros((64, 2), np.float32).T, DATA, "int4", SHAPE, Y), "x must be a dense array"),
    ((X, DATA[:, :639], "int4", SHAPE, Y), r"an int4 weight of shape \[3, 64\] has 640 bytes, not 639"),
    ((X, np.zeros((1, 1280), np.uint8)[:, ::2], "int4", SHAPE, Y), "must be a dense array"),
    ((X, np.zeros((3, 63), np.float16), "f16", SHAPE, Y), "has 384 bytes, not 378"),
    ((X, DATA, "int4", (0, 64), Y), "has no elements"),
    ((X, DATA, "int4", SHAPE, Y[:, :2]), r"out must have shape \[2, 3\], not \[2, 2\]"),
    ((X, DATA, "int4", SHAPE, Y.astype(np.float16)), "out must be float32, not float16"),
]


@pytest.mark.parametrize("arguments, message", BAD_CALLS)
def test_what_does_not_fit_is_refused_before_the_kernel_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        library.linear(*arguments)


@pytest.mark.parametrize("start, end, rows", [(-1, 1, 2), (0, 4, 4), (2, 1, 0)])
def test_rows_outside_the_weight_are_refused(start, end, rows):
    with pytest.raises(ValueError, match=f"rows {start} to {end} are not within the 3 rows"):
        library.dequantize(DATA, "int4", SHAPE, start, end, np.zeros((rows, 64), np.float32))


def test_a_buffer_for_other_rows_is_refused():
    with pytest.raises(ValueError, match=r"out must have shape \[2, 64\], not \[1, 64\]"):
        library.dequantize(DATA, "int4", SHAPE, 0, 2, np.zeros((1, 64), np.float32))


def test_activations_that_come_in_no_groups_are_refused():
    with pytest.raises(ValueError, match=r"a multiple of 32 values, not of shape \[1, 33\]"):
        library.quantize(np.zeros((1, 33), np.float32))


def test_an_impossible_number_of_threads_is_refused(one_thread_afterwards):
    for count in (0, -1, 10000, 1 << 40):
        with pytest.raises(ValueError, match=f"can't compute with {count} threads"):
            library.set_threads(count)


# weights, bytes, encoding, out, in, x, tokens, y, integer -> status
BUFFER = ctypes.create_string_buffer(4096)  # kept: the first calls below really compute in it
POINTER = ctypes.addressof(BUFFER)
C_CALLS = [
    ((POINTER, 640, 0, 3, 64, POINTER, 1, POINTER, 1), 0),
    ((POINTER, 640, 0, 3, 64, POINTER, 1, POINTER, 0), 0),
    ((None, 640, 0, 3, 64, POINTER, 1, POINTER, 1), 1),
    ((POINTER, 640, 0, 3, 64, None, 1, POINTER, 1), 1),
    ((POINTER, 640, 0, 3, 64, POINTER, 1, None, 1), 1),
    ((POINTER, 640, len(library.ENCODINGS), 3, 64, POINTER, 1, POINTER, 1), 2),
    ((POINTER, 640, -1, 3, 64, POINTER, 1, POINTER, 1), 2),
    ((POINTER, 640, 0, 0, 64, POINTER, 1, POINTER, 1), 3),
    ((POINTER, 640, 0, 3, 63, POINTER, 1, POINTER, 1), 3),
    ((POINTER, 576, 13, 3, 64, POINTER, 1, POINTER, 1), 3),
    ((POINTER, 2304, 13, 3, 256, POINTER, 1, POINTER, 1), 0),
    ((POINTER, 640, 0, 3, 2**63, POINTER, 1, POINTER, 1), 3),
    ((POINTER, 640, 0, 3, 64, POINTER, 2**40, POINTER, 1), 3),
    ((POINTER, 639, 0, 3, 64, POINTER, 1, POINTER, 1), 4),
    ((POINTER, 1280, 0, 3, 64, POINTER, 1, POINTER, 1), 4),
    ((POINTER, 640, 0, 3, 64, POINTER + 2, 1, POINTER, 1), 1),
    ((POINTER, 640, 0, 3, 64, POINTER, 1, POINTER + 1, 0), 1),
]


@pytest.mark.parametrize("arguments, status", C_CALLS)
def test_the_c_function_checks_for_itself(arguments, status):
    assert call("edgellm_linear", *arguments) == status


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="can't run the kernels for abacus"):
        library.use_target("abacus")


def test_read_sums_the_words():
    for count in (8, 24, 64, 8 * 1000):
        assert library.read(np.arange(count, dtype=np.int64)) == count * (count - 1) // 2
    with pytest.raises(ValueError, match="multiple of 64 bytes, not 63"):
        library.read(np.zeros(63, np.uint8))


def test_a_missing_library_is_one_line_that_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "_candidates", lambda: [tmp_path / "libedgellm.so"])
    library.library.cache_clear()
    try:
        with pytest.raises(EdgellmError, match=r"not built. Build them with: pip install -e \."):
            library.target()
        (tmp_path / "libedgellm.so").write_bytes(b"not a library")
        with pytest.raises(EdgellmError, match="can't be loaded"):
            library.target()
    finally:
        library.library.cache_clear()
