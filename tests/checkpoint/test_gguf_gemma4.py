"""Gemma 4's GGUFs give the shards that the model's folder gives, packed weights in slices among them."""

import numpy as np
import pytest
from gguf import MODEL_ARCH as ARCH
from gguf import MODEL_ARCH_NAMES, GGUFWriter
from gguf.quants import quantize

from edgellm.check.reference import Reference
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from tests.checkpoint.gguf_files import Q
from tests.checkpoint.helpers import encodings, read_split
from tests.model.gemma4_models import CONFIGS, forward, gemma4_model
from tests.model.native_sections import NativeRing, difference, load

IDS = np.random.default_rng(3).integers(3, 500, 40).tolist()
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight", "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "router.proj": "ffn_gate_inp", "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale", "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight", "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate": "inp_gate", "per_layer_projection": "proj", "post_per_layer_input_norm": "post_norm",
}  # fmt: skip
_MODEL = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight", "model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}  # fmt: skip
_KINDS = {
    "per_layer_token_embd.weight": Q.Q8_0, "per_layer_model_proj.weight": Q.Q4_0, "ffn_gate_up_exps.weight": Q.Q4_0,
    "ffn_down_exps.weight": Q.Q8_0, "attn_q.weight": Q.Q5_0, "ffn_down.weight": Q.Q4_1,
}  # fmt: skip


def _name(full: str) -> str:
    """Return what llama.cpp calls one of transformers' tensors."""
    if full in _MODEL:
        return _MODEL[full]
    _, _, layer, name = full.split(".", 3)
    stem, _, suffix = name.rpartition(".")
    return f"blk.{layer}.{_LAYER[name] if name in _LAYER else f'{_LAYER[stem]}.{suffix}'}"


def write(path, model, kinds=None, changed=None):
    """Write a model as llama.cpp's converter does; `changed` are other values of keys, None to leave one out."""
    config = model.config
    slides, layers = [of == "sliding_attention" for of in config.layer_types], config.num_hidden_layers
    full, window = (config.per_layer_config[f"{of}_attention"] for of in ("full", "sliding"))
    shared = config.num_kv_shared_layers
    wide = [2 if config.use_double_wide_mlp and i >= layers - shared else 1 for i in range(layers)]
    rope = config.rope_parameters
    keys = {
        "block_count": layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": [(window if s else full).num_key_value_heads for s in slides],
        "feed_forward_length": [config.intermediate_size * n for n in wide],
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "attention.key_length": full.head_dim,
        "attention.value_length": full.head_dim, "attention.key_length_swa": window.head_dim,
        "attention.value_length_swa": window.head_dim, "rope.dimension_count": full.head_dim,
        "rope.dimension_count_swa": window.head_dim, "rope.freq_base": rope["full_attention"]["rope_theta"],
        "rope.freq_base_swa": rope["sliding_attention"]["rope_theta"],
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": slides, "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "final_logit_softcapping": config.final_logit_softcapping,
    }  # fmt: skip
    if config.enable_moe_block:
        keys |= {"expert_count": config.num_experts, "expert_used_count": config.top_k_experts,
                 "expert_feed_forward_length": config.moe_intermediate_size}  # fmt: skip
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[ARCH.GEMMA4])
    adders = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    for name, value in (keys | (changed or {})).items():
        if value is not None:
            adders[type(value)](f"gemma4.{name}", value)
    turning = int(rope["full_attention"].get("partial_rotary_factor", 1.0) * full.head_dim // 2)
    divisors = np.array([1.0] * turning + [1e30] * (full.head_dim // 2 - turning), np.float32)
    writer.add_tensor("rope_freqs.weight", divisors)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    if shared:  # files have what nobody sees
        unseen = f"model.layers.{layers - 1}.self_attn."
        state[f"{unseen}k_proj.weight"] = np.zeros((16, config.hidden_size), np.float32)
        state[f"{unseen}k_norm.weight"] = np.ones(16, np.float32)
    for full_name, value in state.items():
        if full_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = _name(full_name)
        kind = (kinds or {}).get(name.split(".", 2)[-1] if name.startswith("blk.") else name, Q.F32)
        writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _model(name):
    model = gemma4_model(name)
    if name == "dense":  # llama.cpp knows other rotary factors of no file
        model.config.rope_parameters = {
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e5},
        }
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_shards_are_those_of_the_folder(name, tmp_path):
    model = _model(name)
    model.save_pretrained(tmp_path / "folder")
    expected = split(open_source(str(tmp_path / "folder")), tmp_path / "a")
    manifest = split(open_source(str(write(tmp_path / "m.gguf", model))), tmp_path / "b")
    found, theirs = read_split(tmp_path / "b"), read_split(tmp_path / "a")
    assert found.keys() == theirs.keys() and all((found[key] == theirs[key]).all() for key in found)
    for field in ("architecture", "kv_elements_per_token", "kv_window_tokens", "kv_sources", "row_elements"):
        assert getattr(manifest, field) == getattr(expected, field)
    native = [NativeRing(load(m, tmp_path / f, (0, 3, 6))).logits(IDS, (9,)) for m, f in
              ((manifest, "b"), (expected, "a"))]  # fmt: skip
    np.testing.assert_allclose(*native, rtol=1e-4, atol=1e-4)  # thetas were in float32 meanwhile


@pytest.mark.parametrize("name", ["experts", "per_layer"])
def test_packed_weights_are_sliced_as_they_are(name, tmp_path):
    path = write(tmp_path / "m.gguf", gemma4_model(name), _KINDS)
    manifest = split(open_source(str(path)), tmp_path / "split")
    packed = encodings(tmp_path / "split", "layer-0001.safetensors")
    expected = {"per_layer": {"embed_tokens_per_layer.weight": "int8", "per_layer_model_projection.weight": "int4s"},
                "experts": {"experts.gate_proj.weight": "int4s", "experts.up_proj.weight": "int4s",
                            "experts.down_proj.weight": "int8"}}[name]  # fmt: skip
    assert {key: packed[key] for key in expected} == expected
    logits, _ = Reference(manifest, tmp_path / "split").run(IDS, 40)
    native = NativeRing(load(manifest, tmp_path / "split", (0, 3, 6)), kv_dtype="float32").logits(IDS, (9,))
    assert difference(native, logits.numpy(), np.median) < 5e-2  # activations are in 8 bits
    plain, _ = forward(gemma4_model(name), IDS)
    assert difference(logits.numpy(), plain, np.median) < 0.5  # as far as rounded weights go


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"attention.sliding_window_pattern": [True] * 6}, "the last layer has a window, which no Gemma 4 has"),
        ({"attention.sliding_window_pattern": [True]}, "gemma4.attention.sliding_window_pattern isn't true or false "
         "for each of 6 layers"),
        ({"feed_forward_length": [96] * 5 + [80]}, "gemma4.feed_forward_length isn't one size, or twice that where "
         "layers share keys"),
        ({"attention.head_count_kv": [2, 0] * 3}, "gemma4.attention.head_count_kv isn't a number over 0 for each of 6 "
         "layers"),
        ({"rope.dimension_count": 16}, "gemma4.rope.dimension_count is 16, which edgellm can't run"),
        ({"attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64},
         "rope_freqs.weight isn't 32 divisors, of which the first ones are 1 and the others 1e30"),
        ({"embedding_length_per_layer_input": 32}, "tensor blk.0.inp_gate.weight is missing; Gemma4ForCausalLM "
         "needs it with shape [32, 64]"),
    ],
)  # fmt: skip
def test_what_a_header_says_wrongly_is_refused_in_words(changed, said, tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", gemma4_model("keys_are_values"), changed=changed)
    with pytest.raises(CheckpointError) as e:
        open_source(str(path)).layout()
    assert said in str(e.value) and "\n" not in str(e.value)
