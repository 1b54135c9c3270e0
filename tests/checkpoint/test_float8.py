"""Folders whose weights are 8-bit floats, with and without scales: the split holds their exact products."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgellm.checkpoint.float8 import _E8M0, _VALUES
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from edgellm.model.generic.packed import pack
from tests.checkpoint.helpers import assert_same_weights, encodings, read_split, save, tiny_model

DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
BLOCK = 24  # cuts 64 and 96 rows with and without a rest


@pytest.mark.parametrize("name", DTYPES)
def test_every_byte_has_the_value_that_torch_gives_it(name):
    expected = torch.arange(256, dtype=torch.uint8).view(DTYPES[name]).float()
    torch.testing.assert_close(torch.from_numpy(_VALUES[name]), expected, rtol=0, atol=0, equal_nan=True)


def test_scales_of_exponents_alone_have_the_value_that_torch_gives_them():
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).float()
    torch.testing.assert_close(torch.from_numpy(_E8M0), expected, rtol=0, atol=0, equal_nan=True)


def _scales(weight: torch.Tensor, strategy: str) -> torch.Tensor:
    """Scales that bring each tensor, row or block near e4m3's range."""
    rows, columns = weight.shape
    if strategy == "tensor":
        return weight.abs().max().reshape(1) / 400
    if strategy == "channel":
        return weight.abs().amax(1, keepdim=True) / 400
    padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-columns // BLOCK) * BLOCK)
    padded[:rows, :columns] = weight
    return padded.reshape(-(-rows // BLOCK), BLOCK, -(-columns // BLOCK), BLOCK).abs().amax((1, 3)) / 400 + 1e-6


def _spread(scales: torch.Tensor, shape, strategy: str) -> torch.Tensor:
    if strategy != "block":
        return scales.float().expand(shape)
    scales = scales.float().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return scales[: shape[0], : shape[1]]


def quantize(folder, strategy: str, suffix: str, scale_dtype=torch.float32, dtype=torch.float8_e4m3fn) -> dict:
    """Quantize the layers' matrices in `folder`; return what the weights now are, by name."""
    state, expected = load_file(folder / "model.safetensors"), {}
    for name, weight in list(state.items()):
        if weight.ndim != 2 or "layers" not in name:
            expected[name] = weight
            continue
        scales = _scales(weight, strategy).to(scale_dtype)
        spread = _spread(scales, weight.shape, strategy)
        state[name] = (weight / spread).to(dtype)
        state[name + suffix] = scales
        expected[name] = state[name].float() * spread
        state[name.removesuffix("weight") + "input_scale"] = torch.ones(1)
    state["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(state, folder / "model.safetensors")
    return expected


def configure(folder, quantization, key="quantization_config") -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: quantization}))


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
IN_BLOCKS = {**FP8, "weight_block_size": [BLOCK, BLOCK]}


def compressed(**weights) -> dict:
    weights = {"type": "float", "num_bits": 8, **weights}
    return {"quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}  # fmt: skip


@pytest.mark.parametrize(
    "quantization, strategy, suffix, scale_dtype",
    [
        (IN_BLOCKS, "block", "_scale_inv", torch.float32),  # DeepSeek-V3, Qwen3
        (IN_BLOCKS, "block", "_scale_inv", torch.bfloat16),
        (IN_BLOCKS, "block", "_scale_inv", torch.float8_e8m0fnu),
        (FP8, "tensor", "_scale_inv", torch.float32),
        (FP8, "tensor", "_scale", torch.bfloat16),
        ({"quant_method": "fbgemm_fp8"}, "channel", "_scale", torch.float32),
        (compressed(strategy="channel"), "channel", "_scale", torch.bfloat16),
        (compressed(strategy="tensor"), "tensor", "_scale", torch.float32),
        (compressed(strategy="block", block_structure=[BLOCK, BLOCK]), "block", "_scale", torch.float32),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "tensor", "_scale", torch.float32),
    ],
)
def test_scaled_weights_are_the_exact_products(tmp_path, monkeypatch, quantization, strategy, suffix, scale_dtype):
    monkeypatch.setattr("edgellm.checkpoint.shard._CHUNK_ELEMENTS", 64 * 7)  # pieces that end within a block
    folder = save(tiny_model("llama"), tmp_path / "source")
    expected = quantize(folder, strategy, suffix, scale_dtype)
    configure(folder, quantization)
    split(open_source(str(folder)), tmp_path / "out")
    assert_same_weights(tmp_path / "out", expected)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_weights_without_scales_are_exact_in_bfloat16(tmp_path, dtype):
    folder = save(tiny_model("llama"), tmp_path / "source")
    state = load_file(folder / "model.safetensors")
    state = {name: t.to(dtype) if t.ndim == 2 else t for name, t in state.items()}
    save_file(state, folder / "model.safetensors")
    split(open_source(str(folder)), tmp_path / "out")
    assert set(encodings(tmp_path / "out", "layer-0000.safetensors").values()) == {"bf16", "f32"}
    exact = {name: t.to(torch.bfloat16) if t.ndim == 2 else t for name, t in state.items()}
    assert_same_weights(tmp_path / "out", exact)


def test_scaled_weights_are_packed_as_asked(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "source")
    expected = quantize(folder, "block", "_scale_inv")
    configure(folder, IN_BLOCKS)
    split(open_source(str(folder)), tmp_path / "out", "int8")
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "layer-0001.safetensors", "pt") as f:
        got = f.get_tensor("mlp.up_proj.weight")
    assert torch.equal(got, pack(expected["model.layers.1.mlp.up_proj.weight"], "int8"))


def test_experts_are_scaled_before_they_are_merged(tmp_path):
    model = tiny_model("mixtral")
    folder = save(model, tmp_path / "source")
    expected = quantize(folder, "block", "_scale_inv")
    configure(folder, IN_BLOCKS)
    split(open_source(str(folder)), tmp_path / "out")
    found = read_split(tmp_path / "out")["layer:layers.0.mlp.experts.gate_up_proj"]
    name = "model.layers.0.block_sparse_moe.experts.{}.w{}.weight"
    merged = torch.stack([torch.cat([expected[name.format(i, 1)], expected[name.format(i, 3)]]) for i in range(4)])
    torch.testing.assert_close(found, merged, rtol=0, atol=0)


def test_merged_experts_have_scales_of_three_dimensions(tmp_path):
    model = tiny_model("mixtral")
    folder = save(model, tmp_path / "source")
    state, name = {n: t.clone() for n, t in model.state_dict().items()}, "model.layers.1.mlp.experts.down_proj"
    scales = torch.rand(4, 3, 4) + 0.5  # of 64 rows and 96 columns, in blocks of 24
    state[name] = state[name].to(torch.float8_e4m3fn)
    spread = scales.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :64, :96]
    expected = state[name].float() * spread
    save_file({**state, name + "_scale_inv": scales}, folder / "model.safetensors")
    configure(folder, IN_BLOCKS)
    split(open_source(str(folder)), tmp_path / "out")
    found = read_split(tmp_path / "out")["layer:layers.1.mlp.experts.down_proj"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "quantization, method",
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        (compressed(type="int"), "compressed-tensors"),
        (compressed(num_bits=4), "compressed-tensors"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt"),
        ("fp8", "unknown"),
    ],
)
def test_other_quantizations_are_refused(tmp_path, quantization, method):
    folder = save(tiny_model("llama"), tmp_path / "source")
    configure(folder, quantization, "compression_config" if method == "compressed-tensors" else "quantization_config")
    with pytest.raises(CheckpointError, match=rf"already quantized \(method {method}\), and edgellm reads only 8-bit"):
        open_source(str(folder))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s, n: s.pop(n + "_scale_inv"), r"its scales \(.*up_proj.weight_scale_inv or .* are missing"),
        (lambda s, n: s.update({n + "_scale_inv": torch.ones(3, 3)}), r"shape \[3, 3\]; a weight \[96, 64\] has one"),
        (lambda s, n: s.update({n + "_scale_inv": torch.ones(4, 3, dtype=torch.int32)}), "dtype I32, expected scales"),
        (lambda s, n: s.update({n + "_scale_inv": torch.full((4, 3), torch.inf)}), "not finite; the checkpoint is"),
        (lambda s, n: s[n].view(torch.uint8).fill_(0x7F), "values from row 0 on are not finite"),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit_are_refused(tmp_path, change, message):
    folder = save(tiny_model("llama"), tmp_path / "source")
    quantize(folder, "block", "_scale_inv")
    configure(folder, IN_BLOCKS)
    state = load_file(folder / "model.safetensors")
    change(state, "model.layers.1.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as e:
        split(open_source(str(folder)), tmp_path / "out")
    assert "\n" not in str(e.value)
