"""GGUFs with latent attention, old and new, and layers behind the decoder's: in GGUFs and in folders."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm.check.reference import Reference
from edgellm.checkpoint.gguf.source import GGUFSource
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from tests.checkpoint import gguf_files
from tests.checkpoint.gguf_files import Q, write_gguf
from tests.checkpoint.helpers import assert_same_weights, encodings, save
from tests.checkpoint.test_split_gguf import _model
from tests.model import native_sections

_IDS = list(range(3, 43))


def _old(monkeypatch) -> None:
    """From now on, write files as they were before keys and values were apart."""

    def sizes(writer, config):
        head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
        writer.add_head_count_kv(config.num_attention_heads)
        writer.add_kv_lora_rank(config.kv_lora_rank)
        writer.add_key_length(head_dim)
        writer.add_value_length(config.v_head_dim)
        writer.add_rope_dimension_count(config.qk_rope_head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if config.q_lora_rank:
            writer.add_q_lora_rank(config.q_lora_rank)

    def together(config, full, weight):
        name = f"blk.{full.split('.')[2]}.attn_kv_b.weight" if full.endswith("kv_b_proj.weight") else None
        return [(name, weight)] if name else None

    monkeypatch.setattr(gguf_files, "_add_latent_sizes", sizes)
    monkeypatch.setattr(gguf_files, "_OTHERS", (together,))


def test_older_files_have_keys_and_values_together(tmp_path, monkeypatch):
    model = _model("deepseek-v2")
    _old(monkeypatch)
    split(GGUFSource(write_gguf(tmp_path / "m.gguf", model)), tmp_path / "out")
    assert_same_weights(tmp_path / "out", model.state_dict())


@pytest.mark.parametrize("old, k, v", [(False, "int8", "int4s"), (True, "f16", "int4s")])
def test_quantized_files_keep_what_they_can_and_answer_as_their_weights_do(tmp_path, monkeypatch, old, k, v):
    model = _model("deepseek-v2")
    if old:
        _old(monkeypatch)
    kinds = {"attn_k_b": Q.Q8_0, "attn_v_b": Q.Q4_0, "attn_kv_b": Q.Q4_0, "ffn_gate_inp.": Q.F32}
    path = write_gguf(tmp_path / "m.gguf", model, lambda n: next((q for p, q in kinds.items() if p in n), Q.Q8_0))
    manifest = split(GGUFSource(path), tmp_path / "out")
    layer = encodings(tmp_path / "out", "layer-0001.safetensors")
    assert (layer["self_attn.k_b_proj.weight"], layer["self_attn.v_b_proj.weight"]) == (k, v)
    expected, _ = Reference(manifest, tmp_path / "out").run(_IDS, 40)
    native_sections.check_near(manifest, tmp_path / "out", (0, 2, 3), _IDS, expected.numpy())


@pytest.mark.parametrize("name, value, reason", [
    ("attention.key_length_mla", 16, "key_length_mla is 16, expected more than the 16 that turn"),
    ("attention.key_length", 48, "attention.key_length is 48, which edgellm can't run"),
    ("attention.kv_lora_rank", 0, "kv_lora_rank is 0, expected a whole number from 1 on"),
    ("nextn_predict_layers", 3, "nextn_predict_layers is 3, of 3 layers"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(tmp_path, name, value, reason):
    model = _model("deepseek-v3")
    path = write_gguf(tmp_path / "m.gguf", model, extra=lambda w: w.add_uint32(f"deepseek2.{name}", value))
    with pytest.raises(CheckpointError, match=reason):
        GGUFSource(path)


def test_weights_of_another_shape_are_refused(tmp_path, monkeypatch):
    _old(monkeypatch)
    monkeypatch.setattr(gguf_files, "_OTHERS", (lambda config, full, weight: (
        [(f"blk.{full.split('.')[2]}.attn_kv_b.weight", weight[1:])] if "kv_b_proj" in full else None),))  # fmt: skip
    path = write_gguf(tmp_path / "m.gguf", _model("deepseek-v2"))
    with pytest.raises(CheckpointError, match=r"attn_kv_b.weight has shape \[639, 256\]"):
        split(GGUFSource(path), tmp_path / "out")


@pytest.mark.parametrize("family", ["glm4-moe", "deepseek-v3"])
def test_layers_that_predict_further_tokens_are_left_out_of_a_gguf(tmp_path, family):
    model = _model(family)
    layers = model.config.num_hidden_layers

    def extra(writer):
        writer.add_nextn_predict_layers(1)
        writer.add_block_count(layers + 1)

    tensors = {f"blk.{layers}.nextn.eh_proj.weight": np.ones((4, 4)), f"blk.{layers}.attn_norm.weight": np.ones(4)}
    path = write_gguf(tmp_path / "m.gguf", model, extra=extra, extra_tensors=tensors)
    manifest = split(open_source(str(path)), tmp_path / "out")
    assert manifest.num_layers == layers
    assert_same_weights(tmp_path / "out", model.state_dict())

    path = write_gguf(tmp_path / "b.gguf", model, extra_tensors=tensors)  # no such layers are announced
    with pytest.raises(CheckpointError, match=f"blk.{layers}.* has no such tensor"):
        split(open_source(str(path)), tmp_path / "other")


@pytest.mark.parametrize("family", ["glm4-moe", "deepseek-v3"])
def test_layers_that_predict_further_tokens_are_left_out_of_a_folder(tmp_path, family):
    model = _model(family)
    layers = model.config.num_hidden_layers
    folder = save(model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    further = ("eh_proj.weight", "mlp.experts.0.gate_proj.weight", "self_attn.q_proj.weight")
    weights |= {f"model.layers.{layers}.{name}": np.ones((4, 4), np.float32) for name in further}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    manifest = split(open_source(str(folder)), tmp_path / "out")
    assert manifest.num_layers == layers
    assert_same_weights(tmp_path / "out", model.state_dict())

    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0, "num_mtp_layers": 0}))
    with pytest.raises(CheckpointError, match=f"model.layers.{layers}.* has no such tensor"):
        split(open_source(str(folder)), tmp_path / "other")
