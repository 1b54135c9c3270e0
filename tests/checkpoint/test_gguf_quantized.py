"""GGUFs whose weights stay quantized as they are: the split is as small as the file, and its answers are those of the
dequantized weights."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig

from edgellm.checkpoint.shard import make_entry, make_plan, write_shard
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.checkpoint.tensors import LoadedRows, SourceTensor
from edgellm.errors import CheckpointError, ManifestError
from edgellm.model.generic.packed import unpack
from edgellm.shards import encodings
from edgellm.shards.encodings import ENCODINGS
from edgellm.shards.manifest import Shard
from edgellm.shards.mapped import MappedShard
from tests.blocks import random_blocks
from tests.checkpoint.gguf_files import Q, reference, write_gguf
from tests.model import native_sections, ring

_CONFIG = LlamaConfig(
    vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, rms_norm_eps=1e-5,
)  # fmt: skip
_IDS = np.random.default_rng(3).integers(3, 320, 40).tolist()
# As llama.cpp mixes them, and one of every type.
_MIXES = {
    "Q4_K_M": {"": Q.Q4_K, "attn_v": Q.Q6_K, "ffn_down": Q.Q6_K, "output": Q.Q6_K},
    "Q5_K_M": {"": Q.Q5_K, "attn_v": Q.Q6_K, "ffn_down": Q.Q6_K, "output": Q.Q6_K},
    "IQ4": {"": Q.IQ4_XS, "attn_v": Q.IQ4_NL, "ffn_down": Q.Q5_K, "token_embd": Q.MXFP4},
    "small": {"": Q.Q3_K, "attn_q": Q.Q2_K, "attn_v": Q.Q5_0, "ffn_up": Q.MXFP4, "output": Q.Q5_1},
}


def _written(path, mix):
    """(the file, transformers' model of its dequantized weights)"""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_CONFIG).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.05 + (p.dim() == 1))
    kinds = _MIXES[mix]
    write_gguf(path, model, lambda name: next((q for part, q in kinds.items() if part and part in name), kinds[""]))
    model.load_state_dict(reference(path, model))
    return path, model


@pytest.mark.parametrize("mix", _MIXES)
def test_a_quantized_file_answers_as_its_dequantized_weights_do(tmp_path, mix):
    path, model = _written(tmp_path / "m.gguf", mix)
    manifest = split(open_source(str(path)), tmp_path / "out")
    assert sum(s.bytes for s in manifest.shards) <= 1.03 * path.stat().st_size
    expected = native_sections.reference_logits(model, _IDS)
    generic = ring.Ring(ring.load(manifest, tmp_path / "out", (0, 1, 2)), kv_dtype="float32", chunk=40)
    assert native_sections.difference(generic.step(_IDS, 0, 40), expected[-1:]) < 2e-5
    sections = native_sections.load(manifest, tmp_path / "out", (0, 1, 2))
    found = native_sections.NativeRing(sections, kv_dtype="float32").logits(_IDS, (40,))
    with native_sections.rounded_inputs(model):
        expected = native_sections.reference_logits(model, _IDS)
    assert native_sections.difference(found, expected, np.min) < 1e-5
    assert native_sections.difference(found, expected) < 0.1
    for chunks in ((1,), (7, 2), (16,)):
        again = native_sections.NativeRing(sections, kv_dtype="float32").logits(_IDS, chunks)
        assert np.array_equal(again, found)


def test_a_type_that_can_not_stay_is_told_with_its_sizes(tmp_path):
    model = AutoModelForCausalLM.from_config(_CONFIG)
    path = write_gguf(tmp_path / "m.gguf", model, lambda name: Q.TQ2_0 if "ffn_down" in name else Q.Q8_0)
    (note,) = (note for note in open_source(str(path)).notes if "float16" in note)
    # Two matrices of 512 x 256: 66 bytes for 256 weights, then 512.
    assert note.startswith(f"{path} has 0.1 MB in TQ2_0, which become 0.5 MB in float16 and are as much slower.")
    assert not any("float16" in note for note in open_source(str(_written(tmp_path / "k.gguf", "small")[0])).notes)


def _experts(encoding, shape):
    """(a source's tensor of random blocks, what it stands for)"""
    blocks = random_blocks(encoding, shape[0] * shape[1], shape[2])
    weights = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[ENCODINGS[encoding].gguf]).reshape(shape)
    rows = LoadedRows(shape, encoding, lambda: blocks)
    return SourceTensor(shape, encoding, "m.gguf: tensor experts", lambda transposed: rows), weights


def _floats(weights):
    rows = LoadedRows(weights.shape, "f32", lambda: weights)
    return SourceTensor(weights.shape, "f32", "model: experts", lambda transposed: rows)


def _written_shard(folder, tensor, quantize="none"):
    entry = make_entry("experts", tensor, False, True, "layer", quantize)
    return write_shard(make_plan("layer-0000.safetensors", "layer", 0, [entry]), folder, lambda done: None)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_experts_are_packed_one_after_the_other(tmp_path, encoding):
    shape = (3, 20, 512)
    tensor, weights = _experts(encoding, shape)
    shard = _written_shard(tmp_path, tensor)
    stored = MappedShard(tmp_path, shard).tensors["experts"]
    assert (stored.encoding, stored.shape) == (encoding, shape)
    with safe_open(tmp_path / shard.name, "pt") as f:
        assert json.loads(f.metadata()["encodings"]) == {"experts": [encoding, [3, 20, 512]]}
        data = f.get_tensor("experts")
    assert np.array_equal(unpack(data, encoding, shape).numpy(), weights)
    # One expert of three lies as it would alone.
    one = _written_shard(tmp_path, _experts(encoding, shape)[0])
    assert one == shard
    assert torch.equal(unpack(data[1], encoding, shape[1:]), torch.from_numpy(weights[1]))


@pytest.mark.parametrize("quantize, encoding", [("int4", "int4"), ("int8", "int8")])
def test_experts_of_floats_are_quantized_as_matrices_are(tmp_path, monkeypatch, quantize, encoding):
    weights = np.random.default_rng(0).standard_normal((3, 40, 64)).astype(np.float32)
    monkeypatch.setattr("edgellm.checkpoint.shard._CHUNK_ELEMENTS", 16 * 64)
    shard = _written_shard(tmp_path, _floats(weights), quantize)
    with safe_open(tmp_path / shard.name, "np") as f:
        data = f.get_tensor("experts")
    for expert, stored in zip(weights, data, strict=True):
        assert np.array_equal(stored, _matrix(tmp_path, expert, quantize))


def _matrix(folder, weights, quantize):
    shard = _written_shard(folder, _floats(weights), quantize)
    with safe_open(folder / shard.name, "np") as f:
        return f.get_tensor("experts")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_scale_that_is_not_finite_is_refused(tmp_path, encoding):
    layout, shape = ENCODINGS[encoding], (18, 512)
    for field in ("d", "m"):
        at = 0
        for name, size in layout.fields:
            if name == field:
                break
            at += size
        else:
            continue
        blocks = random_blocks(encoding, *shape)
        bad = b"\xfd" if size == 1 else b"\x00\xfc"
        blocks.reshape(18, -1, layout.block_bytes)[17, 0, at : at + size] = np.frombuffer(bad, np.uint8)
        rows = LoadedRows(shape, encoding, blocks.copy)
        tensor = SourceTensor(shape, encoding, "m.gguf: tensor w", lambda transposed, rows=rows: rows)
        count = 18 * 512 // layout.columns
        with pytest.raises(CheckpointError, match=f"m.gguf: tensor w: the scales of 1 of {count} blocks from row 0 on"):
            _written_shard(tmp_path, tensor)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape, stored", [((16, 288), "f16"), ((2, 3, 4, 256), "f16"), ((2, 16, 256), "q4_k")])
def test_what_has_no_whole_blocks_is_plain(shape, stored):
    tensor = SourceTensor(shape, "q4_k", "m.gguf: tensor w", None)
    assert make_entry("w", tensor, False, True, "layer", "none").encoding == stored
    assert make_entry("w", tensor, False, False, "layer", "none").encoding == "f16"


@pytest.mark.parametrize("encoding, int8, int4", [
    ("q2_k", "q2_k", "q2_k"), ("q4_k", "q4_k", "q4_k"), ("mxfp4", "mxfp4", "mxfp4"), ("iq4_xs", "iq4_xs", "iq4_xs"),
    ("q5_k", "q5_k", "q4_k"), ("q6_k", "q6_k", "q4_k"), ("int8", "int8", "q4_k"),
])  # fmt: skip
def test_quantize_leaves_what_has_no_more_bits(encoding, int8, int4):
    tensor = SourceTensor((16, 256), encoding, "m.gguf: tensor w", None)
    for quantize, expected in (("none", encoding), ("int8", int8), ("int4", int4)):
        assert make_entry("w", tensor, False, True, "layer", quantize).encoding == expected


@pytest.mark.parametrize("shape", [[16], [1, 2, 16, 256], [16, 0], [16, "256"], 256, None])
def test_a_shard_whose_encodings_have_no_shape_is_refused(tmp_path, shape):
    shard = _written_shard(tmp_path, _experts("q4_k", (1, 16, 256))[0])
    path = tmp_path / shard.name
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["encodings"] = json.dumps({"experts": ["q4_k", shape]})
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + size :])
    bad = Shard(shard.name, "layer", 0, path.stat().st_size, 0, "")
    with pytest.raises(ManifestError, match="experts has encoding|list of encodings can't be read"):
        MappedShard(tmp_path, bad, verify_sha256=False)


def test_the_tables_are_those_of_the_gguf_package():
    assert encodings.IQ4_VALUES.tolist() == list(gguf.quants.IQ4_NL.kvalues)
    assert encodings.MXFP4_VALUES.tolist() == list(gguf.quants.MXFP4.kvalues)
