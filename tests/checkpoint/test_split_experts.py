"""Folders of models with experts: what a shard stores apart comes out of transformers' tensors, and goes back in."""

import json

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from edgellm.check.reference import Reference
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from edgellm.model.generic.section import GenericSection
from tests.checkpoint.helpers import encodings
from tests.model.expert_models import CONFIGS, expert_model
from tests.model.native_sections import NativeRing, difference, load, reference_logits

IDS = np.random.default_rng(3).integers(3, 500, 40).tolist()


def saved(name, folder):
    model = expert_model(name)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_is_split_natively_and_its_reference_is_transformers(name, tmp_path):
    model = saved(name, tmp_path / "folder")
    manifest = split(open_source(str(tmp_path / "folder")), tmp_path / "split")
    expected = reference_logits(model, IDS)
    native = NativeRing(load(manifest, tmp_path / "split", (0, 2, 5)), kv_dtype="float32")
    assert difference(native.logits(IDS, (16,)), expected) < 2e-5
    logits, layers = Reference(manifest, tmp_path / "split").run(IDS, 40)
    assert difference(logits.numpy(), expected) < 1e-6 and len(layers) == 5


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "granitemoeshared"])
def test_the_generic_path_puts_experts_together_again(name, tmp_path):
    saved(name, tmp_path / "folder")
    manifest = split(open_source(str(tmp_path / "folder")), tmp_path / "split", "int8")
    expected, _ = Reference(manifest, tmp_path / "split").run(IDS, 1)
    section = GenericSection.load(manifest, tmp_path / "split", 0, 5)
    got = section.forward(np.array(IDS), 0, section.new_slot(64), len(IDS), 1)
    assert difference(got, expected.numpy()) < 1e-5


def separate(folder):
    """Write the experts of a folder one by one, as checkpoints have them."""
    tensors = load_file(folder / "model.safetensors")
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        whole, prefix = tensors.pop(name), name.rpartition(".")[0]
        for i, matrix in enumerate(whole):
            names = ("gate_proj", "up_proj") if name.endswith("gate_up_proj") else ("down_proj",)
            for part, rows in zip(names, matrix.chunk(len(names)), strict=True):
                tensors[f"{prefix}.{i}.{part}.weight"] = rows.contiguous().clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_experts_that_are_tensors_of_their_own_give_the_same_shards(quantize, tmp_path):
    saved("qwen3_moe_options", tmp_path / "folder")
    together = split(open_source(str(tmp_path / "folder")), tmp_path / "together", quantize)
    assert separate(tmp_path / "folder")
    apart = split(open_source(str(tmp_path / "folder")), tmp_path / "apart", quantize)
    assert [s.sha256 for s in together.shards] == [s.sha256 for s in apart.shards]


def test_routers_stay_as_they_are_and_experts_are_packed(tmp_path):
    saved("gpt_oss", tmp_path / "folder")
    split(open_source(str(tmp_path / "folder")), tmp_path / "split", "int4")
    raw = (tmp_path / "split" / "layer-0000.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    packed = json.loads(header["__metadata__"]["encodings"])
    assert packed["mlp.experts.gate_proj.weight"] == ["int4", [8, 128, 64]]
    assert packed["mlp.experts.down_proj.weight"] == ["int4", [8, 64, 128]]
    assert header["mlp.router.weight"]["dtype"] == "F32" and "mlp.router.weight" not in packed
    assert header["mlp.experts.up_proj.bias"]["shape"] == [8, 128]


def test_a_missing_expert_is_named(tmp_path):
    saved("qwen3_moe", tmp_path / "folder")
    tensors = separate(tmp_path / "folder")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight"]
    save_file(tensors, tmp_path / "folder" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts"):
        split(open_source(str(tmp_path / "folder")), tmp_path / "split")


def test_experts_in_bfloat16_stay_so(tmp_path):
    model = saved("qwen3_moe", tmp_path / "folder").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    manifest = split(open_source(str(tmp_path / "half")), tmp_path / "split")
    native = NativeRing(load(manifest, tmp_path / "split", (0, 5)), kv_dtype="float32")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    assert difference(native.logits(IDS, (40,)), reference_logits(again, IDS)) < 2e-5


def to_mxfp4(folder):
    """Write the experts of a gpt-oss folder in MXFP4, as its authors' checkpoint has them. Return (blocks, scales) by
    name."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    tensors, found = load_file(folder / "model.safetensors"), {}
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        rows = tensors.pop(name).transpose(1, 2).contiguous().numpy()
        packed = quantize(rows, GGMLQuantizationType.MXFP4).reshape(*rows.shape[:2], -1, 17)
        codes = np.concatenate([packed[..., 1:] & 15, packed[..., 1:] >> 4], axis=-1)
        blocks, scales = codes[..., 0::2] | codes[..., 1::2] << 4, packed[..., 0]
        found[name] = tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in (blocks, scales))
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = found[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (folder / "config.json").write_text(json.dumps(config))
    return found


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_mxfp4_stays_as_it_is(quantize, tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    model = saved("gpt_oss", tmp_path / "folder")
    for name, (blocks, scales) in to_mxfp4(tmp_path / "folder").items():
        exact = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        with torch.no_grad():
            model.get_parameter(name).copy_(exact)
    manifest = split(open_source(str(tmp_path / "folder")), tmp_path / "split", quantize)
    packed = encodings(tmp_path / "split", "layer-0002.safetensors")
    assert {e for n, e in packed.items() if ".experts." in n and n.endswith("weight")} == {"mxfp4"}
    if quantize == "none":
        logits, _ = Reference(manifest, tmp_path / "split").run(IDS, 40)
        assert difference(logits.numpy(), reference_logits(model, IDS)) < 1e-6
        native = NativeRing(load(manifest, tmp_path / "split", (0, 5)), kv_dtype="float32")
        assert difference(native.logits(IDS, (16,)), reference_logits(model, IDS), np.median) < 0.05


def test_mxfp4_without_its_exponents_is_refused(tmp_path):
    saved("gpt_oss", tmp_path / "folder")
    to_mxfp4(tmp_path / "folder")
    tensors = load_file(tmp_path / "folder" / "model.safetensors")
    tensors.pop("model.layers.1.mlp.experts.down_proj_scales")
    save_file(tensors, tmp_path / "folder" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1\.mlp\.experts\.down_proj_scales no tensor, expected \[experts, rows"):
        split(open_source(str(tmp_path / "folder")), tmp_path / "split")
