"""The native kernels against plain torch: every encoding, odd shapes, every instruction set of this processor."""

import ctypes

import numpy as np
import pytest
import torch

from edgellm.errors import EdgellmError
from edgellm.kernels import native
from edgellm.model.packed import pack, unpack

ENCODINGS = ["int4", "int8", "bf16", "f16"]


def available() -> list[str]:
    """The instruction sets that this processor has; NEON is checked under qemu elsewhere."""
    found = []
    for name in ("avx512", "avx2", "neon", "portable"):
        try:
            native.use_target(name)
            found.append(name)
        except ValueError:
            continue
    native.use_target(None)
    return found


@pytest.fixture(params=available())
def target(request):
    native.use_target(request.param)
    yield request.param
    native.use_target(None)


def weight(out, columns, encoding, seed=0):
    torch.manual_seed(seed)
    return pack(torch.randn(out, columns), encoding)


def computed(x, data, encoding, threads=1):
    y = torch.full((x.shape[0], data.shape[0]), torch.nan)
    native.linear(x, data, encoding, y, threads)
    return y


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(1, 32), (3, 32), (17, 64), (5, 544), (4, 1024), (33, 1056)])
def test_linear_equals_matmul_with_the_unpacked_weight(target, encoding, shape):
    data = weight(*shape, encoding)
    reference = unpack(data, encoding, shape).double()
    for tokens in range(1, 18):
        x = torch.randn(tokens, shape[1])
        torch.testing.assert_close(computed(x, data, encoding).double(), x.double() @ reference.T, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("encoding", ["bf16", "f16"])
@pytest.mark.parametrize("columns", [1, 3, 31, 33, 95])
def test_plain_rows_may_have_any_length(target, encoding, columns):
    data = weight(6, columns, encoding)
    x = torch.randn(9, columns)
    expected = x.double() @ data.double().T
    torch.testing.assert_close(computed(x, data, encoding).double(), expected, rtol=1e-5, atol=1e-5)
    into = torch.empty(6, columns)
    native.dequantize(data, encoding, 0, 6, into)
    assert torch.equal(into, data.float())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_token_does_not_depend_on_its_neighbours_or_on_threads(target, encoding):
    data = weight(67, 608, encoding)
    x = torch.randn(19, 608)
    alone = torch.cat([computed(row[None], data, encoding) for row in x])
    for tokens in range(1, 20):
        for threads in (1, 2, 3):
            assert torch.equal(computed(x[:tokens], data, encoding, threads), alone[:tokens])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_row_does_not_depend_on_its_neighbours(target, encoding):
    data = weight(11, 96, encoding)
    x = torch.randn(3, 96)
    together = computed(x, data, encoding)
    for row in range(11):
        assert torch.equal(computed(x, data[row : row + 1], encoding), together[:, row : row + 1])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_dequantize_is_exact_and_writes_only_the_rows_asked_for(target, encoding):
    shape = (9, 544)
    data = weight(*shape, encoding)
    expected = unpack(data, encoding, shape)
    for start, end in [(0, 9), (2, 7), (8, 9), (4, 4)]:
        guarded = torch.full((end - start + 2, shape[1]), 7.0)
        native.dequantize(data, encoding, start, end, guarded[1:-1], threads=2)
        assert torch.equal(guarded[1:-1], expected[start:end])
        assert torch.equal(guarded[[0, -1]], torch.full((2, shape[1]), 7.0))


def test_every_half_float_is_converted(target):
    every = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.float16)).view(2048, 32)
    into = torch.empty(2048, 32)
    native.dequantize(every, "f16", 0, 2048, into)
    expected = every.float()
    assert torch.equal(into.isnan(), expected.isnan())
    ordinary = ~expected.isnan()
    assert torch.equal(into[ordinary].view(torch.int32), expected[ordinary].view(torch.int32))  # -0.0 too


def test_every_brain_float_is_converted(target):
    every = torch.from_numpy(np.arange(65536, dtype=np.int32).astype(np.uint16).view(np.int16).copy())
    every = every.view(torch.bfloat16).view(2048, 32)
    into = torch.empty(2048, 32)
    native.dequantize(every, "bf16", 0, 2048, into)
    assert torch.equal(into.view(torch.int32), every.view(torch.int16).int() << 16)


@pytest.mark.parametrize("encoding, block_bytes", [("int4", 20), ("int8", 34)])
def test_every_byte_and_odd_scales_are_decoded(target, encoding, block_bytes):
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (2000, block_bytes), dtype=np.uint8)  # scales: also subnormal, inf, nan
    blocks[:256, 4:] = np.arange(256, dtype=np.uint8)[:, None]
    data = torch.from_numpy(blocks.reshape(100, -1))
    expected = unpack(data, encoding, (100, 640))
    into = torch.empty(100, 640)
    native.dequantize(data, encoding, 0, 100, into)
    torch.testing.assert_close(into, expected, rtol=0, atol=0, equal_nan=True)


def test_weights_are_read_where_they_are_even_at_an_odd_address(target):
    data = weight(3, 64, "int4")
    shifted = torch.empty(data.numel() + 1, dtype=torch.uint8)
    view = shifted[1:].view(data.shape)
    view.copy_(data)
    x = torch.randn(2, 64)
    assert torch.equal(computed(x, view, "int4"), computed(x, data, "int4"))


def test_no_tokens_is_no_work():
    assert computed(torch.empty(0, 32), weight(4, 32, "int4"), "int4").shape == (0, 4)


X, Y, DATA = torch.zeros(2, 64), torch.zeros(2, 3), torch.zeros(3, 40, dtype=torch.uint8)
BAD_CALLS = [
    ((X.double(), DATA, "int4", Y), "x must be float32, not torch.float64"),
    ((X, DATA, "int5", Y), "encoding 'int5' is none of int4, int8, bf16, f16"),
    ((X, DATA, "f32", Y), "encoding 'f32' is none of"),
    ((X[0], DATA, "int4", Y), "x must have 2 dimensions, not 1"),
    ((X[:, :48], DATA, "int4", Y), "groups of 32; this weight has rows of 48"),
    ((torch.zeros(64, 2).T, DATA, "int4", Y), "x must be a dense tensor"),
    ((X, DATA.to(torch.int8), "int4", Y), "an int4 weight is a tensor of torch.uint8, not of torch.int8"),
    ((X, DATA[:, :39], "int4", Y), r"of shape \[3, 40\], not \[3, 39\]"),
    ((X, torch.zeros(3, 80, dtype=torch.uint8)[:, ::2], "int4", Y), "must be a dense tensor in main memory"),
    ((X, torch.zeros(3, 63, dtype=torch.float16), "f16", Y), r"of shape \[3, 64\], not \[3, 63\]"),
    ((X, torch.zeros(0, 40, dtype=torch.uint8), "int4", Y), "has no elements"),
    ((X, DATA, "int4", Y[:, :2]), r"out must have shape \[2, 3\], not \[2, 2\]"),
    ((X, DATA, "int4", Y.to(torch.float16)), "out must be float32, not torch.float16"),
    ((X, DATA, "int4", Y, 0), "at least 1 thread is needed, not 0"),
    ((X.to("meta"), DATA, "int4", Y), "x must be a dense tensor in main memory"),
]


@pytest.mark.parametrize("arguments, message", BAD_CALLS)
def test_what_does_not_fit_is_refused_before_the_kernel_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        native.linear(*arguments)


@pytest.mark.parametrize("start, end, rows", [(-1, 1, 2), (0, 4, 4), (2, 1, 0)])
def test_rows_outside_the_weight_are_refused(start, end, rows):
    with pytest.raises(ValueError, match=f"rows {start} to {end} are not within the 3 rows"):
        native.dequantize(DATA, "int4", start, end, torch.zeros(rows, 64))


def test_a_buffer_for_other_rows_is_refused():
    with pytest.raises(ValueError, match=r"out must have shape \[2, 64\], not \[1, 64\]"):
        native.dequantize(DATA, "int4", 0, 2, torch.zeros(1, 64))


# weights, bytes, encoding, out, in, x, tokens, y, threads -> status
BUFFER = ctypes.create_string_buffer(4096)  # kept: the first call below really computes in it
POINTER = ctypes.addressof(BUFFER)
C_CALLS = [
    ((POINTER, 120, 0, 3, 64, POINTER, 1, POINTER, 1), 0),
    ((None, 120, 0, 3, 64, POINTER, 1, POINTER, 1), 1),
    ((POINTER, 120, 0, 3, 64, None, 1, POINTER, 1), 1),
    ((POINTER, 120, 0, 3, 64, POINTER, 1, None, 1), 1),
    ((POINTER, 120, 4, 3, 64, POINTER, 1, POINTER, 1), 2),
    ((POINTER, 120, -1, 3, 64, POINTER, 1, POINTER, 1), 2),
    ((POINTER, 120, 0, 0, 64, POINTER, 1, POINTER, 1), 3),
    ((POINTER, 120, 0, 3, 63, POINTER, 1, POINTER, 1), 3),
    ((POINTER, 120, 0, 3, 2**63, POINTER, 1, POINTER, 1), 3),
    ((POINTER, 120, 0, 3, 64, POINTER, 2**40, POINTER, 1), 3),
    ((POINTER, 119, 0, 3, 64, POINTER, 1, POINTER, 1), 4),
    ((POINTER, 160, 0, 3, 64, POINTER, 1, POINTER, 1), 4),
    ((POINTER, 120, 0, 3, 64, POINTER, 1, POINTER, 0), 5),
]


@pytest.mark.parametrize("arguments, status", C_CALLS)
def test_the_c_function_checks_for_itself(arguments, status):
    assert native.library().edgellm_linear(*arguments) == status


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="can't run the kernels for abacus"):
        native.use_target("abacus")


def test_read_sums_the_words():
    words = torch.arange(1, 25, dtype=torch.int64)
    assert native.read(words.view(torch.uint8)) == 300
    with pytest.raises(ValueError, match="multiple of 64 bytes, not 63"):
        native.read(torch.zeros(63, dtype=torch.uint8))


def test_a_missing_library_is_one_line_that_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_candidates", lambda: [tmp_path / "libedgellm.so"])
    native.library.cache_clear()
    try:
        with pytest.raises(EdgellmError, match=r"not built. Build them with: pip install -e \."):
            native.target()
        (tmp_path / "libedgellm.so").write_bytes(b"not a library")
        with pytest.raises(EdgellmError, match="can't be loaded"):
            native.target()
    finally:
        native.library.cache_clear()
