"""GGUFs of families with recurrent layers, as llama.cpp's converters write them: what these change is put back,
quantized blocks stay as they are, and a split computes what transformers computes."""

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH as ARCH
from gguf import MODEL_ARCH_NAMES, ExpertGatingFuncType, GGUFWriter
from gguf.quants import dequantize, quantize

from edgellm.check.reference import Reference
from edgellm.checkpoint.gguf.source import GGUFSource
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from tests.checkpoint.gguf_files import Q, permute
from tests.checkpoint.helpers import encodings
from tests.model.native_sections import NativeRing, difference, load, reference_logits
from tests.model.recurrent_models import recurrent_model

IDS = np.random.default_rng(3).integers(3, 500, 60).tolist()
ARCHS = {
    "qwen3_5": ARCH.QWEN35, "qwen3_5_moe": ARCH.QWEN35MOE, "lfm2": ARCH.LFM2, "lfm2_moe": ARCH.LFM2MOE,
    "granite4": ARCH.GRANITE_HYBRID, "granite4_moe": ARCH.GRANITE_HYBRID, "nemotron_h": ARCH.NEMOTRON_H,
    "nemotron_h_moe": ARCH.NEMOTRON_H_MOE,
}  # fmt: skip
_NAMES = {  # of transformers' tensors in a layer
    "input_layernorm": "attn_norm", "operator_norm": "attn_norm", "norm": "attn_norm", "ffn_norm": "ffn_norm",
    "self_attn.out_proj": "attn_output", "self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm",
    "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta", "linear_attn.out_proj": "ssm_out", "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm", "conv.conv": "shortconv.conv", "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj", "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down", "feed_forward.gate": "ffn_gate_inp", "block_sparse_moe.router": "ffn_gate_inp",
    "shared_mlp.output_linear": "ffn_down", "mlp.gate": "ffn_gate_inp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mixer.up_proj": "ffn_up", "mixer.down_proj": "ffn_down", "mixer.gate": "ffn_gate_inp",
    **{f"{at}.{theirs}": ours for at in ("mamba", "mixer") for theirs, ours in (
        ("in_proj", "ssm_in"), ("out_proj", "ssm_out"), ("conv1d", "ssm_conv1d"), ("norm", "ssm_norm"),
        ("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output"))},
    **{f"self_attn.{p}_{kind}": f"attn_{p}{'_norm' * (kind == 'norm')}" for p in "qkv" for kind in ("proj", "norm")},
    "self_attn.o_proj": "attn_output",
    **{f"{at}{p}_proj": f"ffn_{p}{kind}" for p in ("gate", "up", "down") for at, kind in (
        ("mlp.", ""), ("mlp.shared_expert.", "_shexp"), ("mixer.shared_experts.", "_shexp"))},
}  # fmt: skip


def _tiled(values: np.ndarray, heads: int, key_heads: int, axis: int = 0) -> np.ndarray:
    """As _reorder_v_heads of llama.cpp's converter."""
    shape = values.shape
    of_heads = values.reshape(*shape[:axis], key_heads, heads // key_heads, shape[axis] // heads, *shape[axis + 1 :])
    return np.ascontiguousarray(of_heads.swapaxes(axis, axis + 1)).reshape(shape)


def _layer(config, name: str, w: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """A layer's tensor as the converter has it, without the layer's number."""
    kind, stem, suffix = config.model_type, *name.rsplit(".", 1)
    if name.endswith(("experts.gate_up_proj", "shared_mlp.input_linear.weight")):
        shared = "_shexp" if getattr(config, "num_local_experts", 0) else ""
        last = "_exps" if w.ndim == 3 else shared
        gate, up = np.split(w, 2, axis=-2)
        return [(f"ffn_gate{last}.weight", gate), (f"ffn_up{last}.weight", up)]
    if name.endswith(("experts.down_proj", "experts.up_proj")):
        return [(f"ffn_{name.rsplit('.', 1)[1].removesuffix('_proj')}_exps.weight", w)]
    if name.endswith(("expert_bias", "e_score_correction_bias")):
        return [("exp_probs_b.bias", w)]
    if name.endswith("shared_mlp.output_linear.weight") and config.num_local_experts:
        return [("ffn_down_shexp.weight", w)]
    if name.endswith("shared_expert_gate.weight"):
        w = w[0]
    if kind.startswith("qwen3_5"):
        return [_of_qwen(config, name, stem, suffix, w)]
    if name.endswith("post_attention_layernorm.weight"):
        return [("ffn_norm.weight", w)]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.rsplit(".", 1)[-1])
    if kind in ("granitemoehybrid", "nemotron_h") and heads:
        w = permute(w, heads)
    if name.endswith("A_log"):
        return [("ssm_a", -np.exp(w)[:, None])]
    if name.endswith(".D"):
        return [("ssm_d", w[:, None])]
    if name.endswith("dt_bias"):
        return [("ssm_dt.bias", w)]
    if name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        w = w.reshape(getattr(config, "mamba_n_groups", None) or config.n_groups, -1)
    return [(f"{_NAMES[stem]}.{suffix}", w.squeeze(1) if w.ndim == 3 else w)]


def _of_qwen(config, name: str, stem: str, suffix: str, w: np.ndarray) -> tuple[str, np.ndarray]:
    heads, key_heads = config.linear_num_value_heads, config.linear_num_key_heads
    keys = 2 * key_heads * config.linear_key_head_dim
    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        w = np.concatenate([w[:keys], _tiled(w[keys:], heads, key_heads)])
        return f"{_NAMES[stem]}.{suffix}", w.squeeze(1) if w.ndim == 3 else w
    if name.endswith("linear_attn.out_proj.weight"):
        return "ssm_out.weight", _tiled(w, heads, key_heads, 1)
    if name.endswith(("A_log", "dt_bias", "in_proj_a.weight", "in_proj_b.weight", "in_proj_z.weight")):
        w = _tiled(w, heads, key_heads)
    if name.endswith("A_log"):
        return "ssm_a", -np.exp(w)
    if name.endswith("dt_bias"):
        return "ssm_dt.bias", w
    if name.endswith("post_attention_layernorm.weight"):
        return "post_attention_norm.weight", w + 1
    return f"{_NAMES[stem]}.{suffix}", w + 1 if "norm" in stem and "linear_attn" not in stem else w


def _metadata(writer: GGUFWriter, config) -> None:
    kind = config.model_type
    types = config.layer_types
    attends = [t == "full_attention" for t in types]
    writer.add_block_count(len(types))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(config.num_attention_heads)
    eps = getattr(config, "rms_norm_eps", None) or getattr(config, "norm_eps", None) or config.layer_norm_epsilon
    writer.add_layer_norm_rms_eps(eps)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if kind.startswith("qwen3_5"):
        writer.add_head_count_kv(config.num_key_value_heads)
        if kind == "qwen3_5_text":
            writer.add_feed_forward_length(config.intermediate_size)
        writer.add_key_length(dim)
        writer.add_value_length(dim)
        writer.add_rope_dimension_count(dim // 4)
        writer.add_rope_dimension_sections([1, 1, 2, 0])
        writer.add_full_attention_interval(4)
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    else:
        writer.add_head_count_kv([config.num_key_value_heads * a for a in attends])
    rope = getattr(config, "rope_parameters", None)
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if kind.startswith("lfm2"):
        writer.add_shortconv_l_cache(config.conv_L_cache)
        writer.add_feed_forward_length(256 if kind == "lfm2" else config.intermediate_size)
    if kind == "granitemoehybrid":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
        writer.add_rope_scaling_finetuned(False)
        writer.add_rope_dimension_count(dim)
        _add_mamba(writer, config.mamba_n_heads, config.mamba_d_head, config.mamba_n_groups, config.mamba_d_state,
                   config.mamba_d_conv)  # fmt: skip
    if kind == "nemotron_h":
        wide = [config.intermediate_size * (t == "mlp") or config.moe_intermediate_size * (t == "moe") for t in types]
        writer.add_feed_forward_length(wide)
        writer.add_key_length(dim)
        writer.add_value_length(dim)
        writer.add_rope_scaling_finetuned(False)
        _add_mamba(writer, config.mamba_num_heads, config.mamba_head_dim, config.n_groups, config.ssm_state_size,
                   config.conv_kernel)  # fmt: skip
    if "moe" in types or kind.endswith("moe") or kind == "qwen3_5_moe_text" or getattr(config, "num_local_experts", 0):
        _add_experts(writer, config)


def _add_mamba(writer: GGUFWriter, heads: int, head_dim: int, groups: int, state: int, kernel: int) -> None:
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_state_size(state)
    writer.add_ssm_group_count(groups)
    writer.add_ssm_inner_size(heads * head_dim)
    writer.add_ssm_time_step_rank(heads)


def _add_experts(writer: GGUFWriter, config) -> None:
    kind = config.model_type
    if kind == "nemotron_h" and "moe" not in config.layer_types:
        return
    writer.add_expert_count(getattr(config, "num_experts", 0) or config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if kind != "granitemoehybrid":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if kind == "qwen3_5_moe_text":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if kind == "lfm2_moe":
        writer.add_leading_dense_block_count(config.num_dense_layers)
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
    if kind == "nemotron_h":
        writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)


def write(path, name: str, kinds=lambda name: Q.F32, extra=None, change=lambda name, weight: weight):
    """Write a model; return it with its weights as the file has them, and where it is."""
    model = recurrent_model(name)
    config = model.config
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[ARCHS[name]])
    _metadata(writer, config)
    if extra:
        extra(writer)
    for full, value in model.state_dict().items():
        weight = value.float().numpy()
        if full == "lm_head.weight" and config.tie_word_embeddings:
            continue
        outer = {"model.embed_tokens.weight": "token_embd.weight", "model.embeddings.weight": "token_embd.weight",
                 "model.norm.weight": "output_norm.weight", "model.norm_f.weight": "output_norm.weight",
                 "model.embedding_norm.weight": "token_embd_norm.weight",
                 "lm_head.weight": "output.weight"}  # fmt: skip
        if full in outer:
            offset = config.model_type.startswith("qwen3_5") and full == "model.norm.weight"
            named = [(outer[full], weight + 1 if offset else weight)]
        else:
            _, _, number, rest = full.split(".", 3)
            named = [(f"blk.{number}.{n}", w) for n, w in _layer(config, rest, weight)]
        for theirs, w in named:
            w = change(theirs, np.ascontiguousarray(w, np.float32))
            plain = ("conv1d.weight", "shortconv.conv.weight", "ssm_norm.weight", "ssm_a", "ssm_d")
            kind = kinds(theirs) if w.ndim > 1 and not theirs.endswith(plain) else Q.F32
            writer.add_tensor(theirs, quantize(w, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("name", ARCHS)
def test_a_split_computes_what_the_model_computes(tmp_path, name):
    model = write(tmp_path / "m.gguf", name)
    manifest = split(GGUFSource(tmp_path / "m.gguf"), tmp_path / "split")
    expected = reference_logits(model, IDS)
    sections = load(manifest, tmp_path / "split", (0, manifest.num_layers))
    assert difference(NativeRing(sections, kv_dtype="float32").logits(IDS, (60,)), expected) < 5e-5
    assert any(manifest.state_bytes) and len(manifest.state_bytes) == manifest.num_layers
    logits, layers = Reference(manifest, tmp_path / "split").run(IDS, 60)
    assert difference(logits.numpy(), expected) < 5e-5 and len(layers) == manifest.num_layers


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2", "granite4", "nemotron_h"])
def test_quantized_blocks_stay_as_they_are(tmp_path, name):
    """The reference dequantizes what the file has, and puts rows back where the converter has moved them."""
    seen: dict[str, np.ndarray] = {}

    def change(theirs, w):
        seen[theirs] = w
        return w

    write(tmp_path / "m.gguf", name, lambda n: Q.Q8_0 if "ffn" in n else Q.Q4_0, change=change)
    manifest = split(GGUFSource(tmp_path / "m.gguf"), tmp_path / "split")
    kinds = {e for i in range(manifest.num_layers)
             for n, e in encodings(tmp_path / "split", f"layer-{i:04}.safetensors").items()
             if n.endswith("proj.weight")}  # fmt: skip
    assert kinds <= {"int8", "int4s"} and "int4s" in kinds
    expected, _ = Reference(manifest, tmp_path / "split").run(IDS, 60)
    sections = load(manifest, tmp_path / "split", (0, manifest.num_layers))
    found = NativeRing(sections, kv_dtype="float32").logits(IDS, (60,))
    assert difference(found, expected.numpy(), np.median) < 0.1  # what goes into products is rounded to 8 bits
    assert np.array_equal(NativeRing(sections, kv_dtype="float32").logits(IDS, (1, 7)), found)
    out = next(n for n in seen if n.endswith(("ssm_out.weight", "shortconv.out_proj.weight")))
    assert np.abs(dequantize(quantize(seen[out], Q.Q4_0), Q.Q4_0) - seen[out]).max() > 0


def test_layers_that_predict_further_tokens_are_left_out(tmp_path):
    def extra(writer):
        writer.add_nextn_predict_layers(1)
        writer.add_block_count(5)
        writer.add_tensor("blk.4.nextn.eh_proj.weight", np.zeros((64, 128), np.float32))

    model = write(tmp_path / "m.gguf", "qwen3_5", extra=extra)
    manifest = split(GGUFSource(tmp_path / "m.gguf"), tmp_path / "split")
    assert manifest.num_layers == 4
    sections = load(manifest, tmp_path / "split", (0, 4))
    found = NativeRing(sections, kv_dtype="float32").logits(IDS, (60,))
    assert difference(found, reference_logits(model, IDS)) < 5e-5


@pytest.mark.parametrize("name, extra, change, reason", [
    ("granite4", lambda w: w.add_ssm_time_step_rank(7), None, "128, not a multiple of 7 heads"),
    ("lfm2", lambda w: w.add_block_count(1 << 30), None, "block_count is 1073741824, at most 1024"),
    ("lfm2", lambda w: w.add_head_count_kv([2, 0]), None, "expected a whole number for each of 4 layers"),
    ("qwen3_5", lambda w: w.add_nextn_predict_layers(4), None, "nextn_predict_layers is 4, of 4 layers"),
    ("nemotron_h", lambda w: w.add_uint32("nemotron_h.moe_latent_size", 8), None, "moe_latent_size"),
    ("granite4", None, lambda n, w: -w if n == "blk.0.ssm_a" else w, "a value that isn't negative"),
    ("granite4", None, lambda n, w: w[:-1] if n == "blk.0.ssm_d" else w, "ssm_d has shape"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_reason(tmp_path, name, extra, change, reason):
    write(tmp_path / "m.gguf", name, extra=extra, change=change or (lambda n, w: w))
    with pytest.raises(CheckpointError, match=reason):
        split(GGUFSource(tmp_path / "m.gguf"), tmp_path / "split")


def test_tiled_heads_go_back_to_where_transformers_has_them():
    from edgellm.model.families.find import find_spec

    config = dict(model_type="qwen3_5_text", hidden_size=64, intermediate_size=64, vocab_size=64, num_hidden_layers=1,
                  linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=16,
                  linear_value_heads_tiled=True)  # fmt: skip
    spec, reason = find_spec(config)
    assert spec is not None, reason
    layer = spec.layers[0]
    for piece in layer.pieces:
        whole = torch.arange(float(np.prod(layer.tensors[piece.name]))).reshape(layer.tensors[piece.name]).numpy()
        stored, again = piece.cut(whole, 0), np.empty_like(whole)
        piece.put(stored, again)
        assert np.array_equal(again, whole) and not np.array_equal(stored, whole), piece.name
    assert len(layer.pieces) == 8
