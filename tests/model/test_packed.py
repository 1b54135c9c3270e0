"""Packing and unpacking: error bounds, agreement with the gguf package; and the two modules against torch's."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from edgellm.kernels import library
from edgellm.model.generic import packed
from edgellm.model.generic.packed import PackedEmbedding, PackedLinear, pack, unpack
from edgellm.shards import tiles
from tests.blocks import to_blocks

ENCODINGS = ["int4", "int8", "bf16", "f16", "f32"]
GGUF_TYPES = {"int4": gguf.GGMLQuantizationType.Q4_1, "int8": gguf.GGMLQuantizationType.Q8_0}
WEIGHTS = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([32, 64])),
                     elements=st.floats(-1000, 1000, width=32))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scales(data, encoding, shape):
    """float32 [groups, 1], row by row."""
    halves = tiles.from_tiles(data.numpy(), encoding, shape)[1].view(np.float16)
    return torch.from_numpy(halves[:, :, 0].astype(np.float32)).reshape(-1, 1)


def assert_within_half_a_step(weight, encoding):
    data = pack(weight, encoding)
    error = (weight - unpack(data, encoding, weight.shape)).abs().view(-1, 32)
    rounding = weight.abs().amax() * 2**-22
    assert (error <= scales(data, encoding, tuple(weight.shape)) / 2 + rounding).all()


@pytest.mark.parametrize("encoding", ["int4", "int8"])
@given(weight=WEIGHTS)
def test_no_weight_is_off_by_more_than_half_a_step(encoding, weight):
    assert_within_half_a_step(torch.from_numpy(weight), encoding)


@pytest.mark.parametrize("encoding", ["int4", "int8"])
@pytest.mark.parametrize("scale", [1e-9, 1e-7, 3e-6, 1e-4, 0.02, 1.0, 300.0, 12000.0])
@pytest.mark.parametrize("offset", [0.0, 1.0, -1.0])
def test_very_small_large_and_shifted_weights_stay_within_half_a_step(encoding, scale, offset):
    torch.manual_seed(0)
    assert_within_half_a_step((torch.randn(64, 64).clamp(-4, 4) + offset) * scale, encoding)


@pytest.mark.parametrize("encoding", ["int4", "int8"])
@settings(deadline=None)
@given(weight=WEIGHTS)
def test_gguf_reads_our_numbers_as_we_do(encoding, weight):
    data = pack(torch.from_numpy(weight), encoding)
    blocks = to_blocks(data.numpy(), encoding, weight.shape)
    theirs = gguf.quants.dequantize(blocks, GGUF_TYPES[encoding])
    assert np.array_equal(theirs, unpack(data, encoding, weight.shape).numpy())


@pytest.mark.parametrize("encoding", ["int4", "int8"])
@settings(deadline=None)
@given(weight=WEIGHTS)
def test_blocks_of_gguf_become_tiles_without_loss(encoding, weight):
    with np.errstate(all="ignore"):
        blocks = gguf.quants.quantize(weight, GGUF_TYPES[encoding])
    data = tiles.from_blocks(blocks, encoding)
    assert np.array_equal(to_blocks(data, encoding, weight.shape), blocks)
    ours = unpack(torch.from_numpy(data), encoding, weight.shape).numpy()
    assert np.array_equal(gguf.quants.dequantize(blocks, GGUF_TYPES[encoding]), ours)


@pytest.mark.parametrize("encoding", ["int4", "int8"])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
def test_tiles_and_back_is_nothing_lost_and_padding_is_zeros(encoding, rows):
    rng = np.random.default_rng(rows)
    blocks = rng.integers(0, 256, (rows, 3 * tiles.BLOCK_BYTES[encoding]), dtype=np.uint8)
    data = tiles.from_blocks(blocks, encoding)
    assert data.shape == library.stored_shape(encoding, (rows, 96))
    assert np.array_equal(to_blocks(data, encoding, (rows, 96)), blocks)
    filled = to_blocks(data, encoding, (len(data) * 16, 96))
    assert not filled[rows:].any()


def test_int4_bytes_lie_as_documented():
    weight = torch.zeros(16, 32)
    weight[3] = torch.arange(32.0).clamp(max=15) + 2
    group = pack(weight, "int4")[0].numpy()
    assert group[12:16].tobytes() == bytes.fromhex("40516273")  # row 3, columns 0 to 3 and 4 to 7
    assert group[3 * 64 + 12 : 3 * 64 + 16].tobytes() == b"\xff" * 4
    assert group[256 + 6 : 256 + 8].tobytes() + group[288 + 6 : 288 + 8].tobytes() == bytes.fromhex("003c 0040")


def test_int8_bytes_lie_as_documented():
    weight = torch.zeros(16, 32)
    weight[15] = torch.arange(-127.0, 128.0, 254 / 31).round()
    group = pack(weight, "int8")[0].numpy()
    got = group[:512].reshape(8, 16, 4)[:, 15].reshape(-1).view(np.int8)
    assert got.tolist() == weight[15].tolist() and not group[:512].reshape(8, 16, 4)[:, :15].any()
    assert group[542:].tobytes() == bytes.fromhex("003c")


@pytest.mark.parametrize("encoding", ["int4", "int8"])
def test_constant_groups_keep_their_value(encoding):
    for value in (0.0, 1.0, -0.25, 0.1, -1e-8, 60000.0):
        weight = torch.full((2, 64), value)
        torch.testing.assert_close(unpack(pack(weight, encoding), encoding, (2, 64)), weight, rtol=1e-3, atol=3e-8)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_weights_that_are_not_finite_are_refused(encoding, value):
    weight = torch.zeros(4, 32)
    weight[2, 5] = value
    with pytest.raises(ValueError, match="1 of the 128 weights from row 0 on are not finite"):
        pack(weight, encoding)


TOO_LARGE = [("int4", 65520.0), ("int4", -1e6), ("int8", 9e6), ("f16", 1e5), ("bf16", 3.4e38)]


@pytest.mark.parametrize("encoding, value", TOO_LARGE)
def test_weights_too_large_for_the_encoding_are_refused(encoding, value):
    with pytest.raises(ValueError, match=f"more than {encoding} can hold"):
        pack(torch.full((1, 32), value), encoding)


@pytest.mark.parametrize("encoding, shape, message", [
    ("int4", (2, 48), "int4 packs rows in groups of 32; this weight has rows of 48"),
    ("int8", (2, 16), "groups of 32; this weight has rows of 16"),
    ("int3", (2, 32), "encoding 'int3' is none of"),
    ("int4", (0, 32), "no elements"),
])
def test_shapes_that_cannot_be_packed_are_refused(encoding, shape, message):
    with pytest.raises(ValueError, match=message):
        pack(torch.zeros(shape), encoding)


def test_only_floating_point_matrices_are_packed():
    for weight in (torch.zeros(2, 32, dtype=torch.int64), torch.zeros(32), torch.zeros(2, 2, 32)):
        with pytest.raises(ValueError, match="a floating-point matrix"):
            pack(weight, "int8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_widened(dtype):
    torch.manual_seed(0)
    weight = torch.randn(4, 64).to(dtype)
    assert torch.equal(pack(weight, "int8"), pack(weight.float(), "int8"))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_packing_in_chunks_changes_nothing(encoding, monkeypatch):
    torch.manual_seed(0)
    weight = torch.randn(39, 64)
    whole = pack(weight, encoding)
    values = unpack(whole, encoding, (39, 64))
    monkeypatch.setattr(packed, "_CHUNK_ELEMENTS", 100)
    assert torch.equal(pack(weight, encoding), whole)
    assert torch.equal(unpack(whole, encoding, (39, 64)), values)


@pytest.mark.parametrize("data, encoding", [
    (torch.zeros(1, 641, dtype=torch.uint8), "int4"),
    (torch.zeros(2, 640, dtype=torch.uint8), "int4"),
    (torch.zeros(1, 640, dtype=torch.int8), "int4"),
    (torch.zeros(1, 640, dtype=torch.uint8), "int8"),
    (torch.zeros(4, 64), "f16"),
    (torch.zeros(4, 64, dtype=torch.float16), "f32"),
    (torch.zeros(640, dtype=torch.uint8), "int4"),
])
def test_data_that_is_not_what_the_shape_says_is_refused(data, encoding):
    for refuse in (unpack, PackedLinear, PackedEmbedding):
        with pytest.raises(ValueError, match=f"an {encoding} weight"):
            refuse(data, encoding, (4, 64))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_linear_is_linear_with_the_unpacked_weight(encoding, tokens, with_bias, monkeypatch):
    monkeypatch.setattr(packed, "_PANEL_BYTES", 5 * 96 * 4)  # several panels, the last one smaller
    torch.manual_seed(0)
    data = pack(torch.randn(13, 96), encoding)
    bias = torch.randn(13) if with_bias else None
    linear = PackedLinear(data, encoding, (13, 96), bias)
    x = torch.randn(tokens, 96)
    expected = functional.linear(x, unpack(data, encoding, (13, 96)), bias)
    torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_packed_linear_takes_any_leading_dimensions_and_strides(encoding):
    torch.manual_seed(0)
    linear = PackedLinear(pack(torch.randn(5, 32), encoding), encoding, (5, 32))
    x = torch.randn(32, 3, 2).permute(2, 1, 0)
    torch.testing.assert_close(linear(x), functional.linear(x, linear.weight), rtol=1e-5, atol=1e-5)
    assert linear(x[0, 0]).shape == (5,)
    assert linear(x[:0]).shape == (0, 3, 5)


def test_packed_linear_holds_its_data_in_place_and_out_of_the_state_dict():
    data = pack(torch.ones(5, 32), "int4")
    linear = PackedLinear(data, "int4", (5, 32))
    assert linear.data.data_ptr() == data.data_ptr()
    assert not linear.state_dict() and not list(linear.parameters())
    assert (linear.in_features, linear.out_features) == (32, 5)
    assert torch.equal(linear.weight, torch.ones(5, 32))


def test_packed_linear_refuses_what_does_not_fit():
    linear = PackedLinear(pack(torch.ones(5, 32), "int8"), "int8", (5, 32))
    with pytest.raises(ValueError, match="float32"):
        linear(torch.ones(1, 32, dtype=torch.float16))
    with pytest.raises(ValueError):
        linear(torch.ones(1, 64))
    with pytest.raises(ValueError, match=r"float32 of shape \[5\], not torch.float32 of \[4\]"):
        PackedLinear(linear.data, "int8", (5, 32), torch.zeros(4))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_packed_embedding_is_embedding_with_the_unpacked_weight(encoding):
    torch.manual_seed(0)
    data = pack(torch.randn(50, 64), encoding)
    embedding = PackedEmbedding(data, encoding, (50, 64))
    for ids in (torch.tensor([[3, 3, 49], [0, 7, 1]]), torch.tensor(5), torch.empty(0, dtype=torch.int64)):
        assert torch.equal(embedding(ids), functional.embedding(ids, unpack(data, encoding, (50, 64))))
    with pytest.raises(IndexError):
        embedding(torch.tensor([50]))
