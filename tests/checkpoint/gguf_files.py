"""Writing GGUF files of tiny models as llama.cpp's converters would, with any quantization per tensor."""

from functools import lru_cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    MODEL_ARCH_NAMES,
    ExpertGatingFuncType,
    GGMLQuantizationType,
    GGUFWriter,
    RopeScalingType,
    TokenType,
    get_tensor_name_map,
)
from gguf import MODEL_ARCH as ARCH
from gguf.quants import quantize

Q = GGMLQuantizationType
_ARCH = {"llama": ARCH.LLAMA, "gpt2": ARCH.GPT2, "phi3": ARCH.PHI3, "qwen2": ARCH.QWEN2, "qwen3": ARCH.QWEN3,
         "gemma2": ARCH.GEMMA2, "gemma3_text": ARCH.GEMMA3, "qwen3_moe": ARCH.QWEN3MOE, "qwen2_moe": ARCH.QWEN2MOE,
         "mistral": ARCH.LLAMA, "falcon": ARCH.FALCON, "bloom": ARCH.BLOOM, "stablelm": ARCH.STABLELM,
         "gemma": ARCH.GEMMA, "granite": ARCH.GRANITE, "smollm3": ARCH.SMOLLM3, "ministral3": ARCH.MISTRAL3,
         "glm4": ARCH.GLM4, "olmo2": ARCH.OLMO2, "olmo3": ARCH.OLMO2, "starcoder2": ARCH.STARCODER2,
         "gpt_oss": ARCH.GPT_OSS, "olmoe": ARCH.OLMOE, "granitemoe": ARCH.GRANITE_MOE,
         "granitemoeshared": ARCH.GRANITE_MOE, "glm4_moe": ARCH.GLM4_MOE,
         "deepseek_v2": ARCH.DEEPSEEK2, "deepseek_v3": ARCH.DEEPSEEK2, "glm4_moe_lite": ARCH.DEEPSEEK2,
         "nemotron": ARCH.NEMOTRON, "minimax_m2": ARCH.MINIMAXM2}  # fmt: skip
_PERMUTED = ("llama", "mistral", "granite", "granitemoe", "granitemoeshared", "smollm3", "ministral3")
_LATENT = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
_LAYER_NORM_EPS = {
    "gpt2": "layer_norm_epsilon", "falcon": "layer_norm_epsilon", "bloom": "layer_norm_epsilon",
    "stablelm": "layer_norm_eps", "starcoder2": "norm_epsilon", "nemotron": "norm_eps",
}  # fmt: skip
_F16_FIELDS = {  # where a block of what the gguf package can't make has its fp16 scales
    Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,), Q.IQ4_NL: (0,), Q.IQ4_XS: (0,),
}  # fmt: skip


_name_map = lru_cache(get_tensor_name_map)


def random_blocks(rng: np.random.Generator, shape: tuple[int, ...], kind: Q) -> np.ndarray:
    """Random valid blocks of what the gguf package can't make: any bytes, but scales of sane size."""
    block, size = GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (int(np.prod(shape)) // block, size), dtype=np.uint8)
    for at in _F16_FIELDS[kind]:
        scales = (rng.random(len(data)) * 1e-3).astype(np.float16)
        data[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return data.reshape(*shape[:-1], -1)


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's LlamaModel.permute."""
    shape = weight.shape
    return weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(path: Path, model, kinds=None, extra=None, extra_tensors=None, tokenizer=None, seed: int = 0) -> Path:
    """Write `model` as GGUF. `kinds(gguf_name) -> type` for matrices (F32 by default; vectors always are),
    `extra(writer)` adds metadata, `tokenizer` is a dict as for `add_tokenizer`."""
    config, rng = model.config, np.random.default_rng(seed)
    arch = _ARCH[config.model_type]
    writer = GGUFWriter(path, arch_name(config.model_type))
    writer.add_name("tiny")
    _add_sizes(writer, config)
    if "moe" in config.model_type or config.model_type in ("minimax_m2", "gpt_oss", "deepseek_v2", "deepseek_v3"):
        writer.add_expert_count(getattr(config, "num_experts", None) or config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    if config.model_type in ("glm4_moe", *_LATENT):
        softmax = config.model_type == "deepseek_v2"
        dense = getattr(config, "first_k_dense_replace", 1)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_leading_dense_block_count(dense)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_gating_func(ExpertGatingFuncType.SOFTMAX if softmax else ExpertGatingFuncType.SIGMOID)
        if config.n_group:
            writer.add_expert_group_count(config.n_group)
            writer.add_expert_group_used_count(config.topk_group)
    if config.model_type == "granitemoeshared":
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    if config.model_type == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if config.model_type == "minimax_m2":
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "olmo3":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if config.model_type.startswith("granite"):
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if extra:
        extra(writer)
    if tokenizer:
        add_tokenizer(writer, **tokenizer)
    names = _name_map(arch, config.num_hidden_layers)
    for name, weight in _gguf_tensors(model, names):
        kind = kinds(name) if kinds and weight.ndim > 1 else Q.F32
        if kind in _F16_FIELDS:
            writer.add_tensor(name, random_blocks(rng, weight.shape, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)
    for name, weight in (extra_tensors or {}).items():
        writer.add_tensor(name, np.asarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_sizes(writer: GGUFWriter, config) -> None:
    kind, heads = config.model_type, config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", 2048))
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(heads)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    if kind in _LAYER_NORM_EPS:
        writer.add_layer_norm_eps(getattr(config, _LAYER_NORM_EPS[kind]))
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if kind in _LATENT:
        _add_latent_sizes(writer, config)
    elif kind == "falcon":
        writer.add_head_count_kv(config.num_kv_heads if config.new_decoder_architecture else 1)
        writer.add_tensor_data_layout("jploski")
    elif kind not in ("gpt2", "bloom"):
        writer.add_head_count_kv(config.num_key_value_heads)
        rope = config.rope_parameters
        if kind == "gemma3_text":
            writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope.get("full_attention", rope)
        _add_rope_scaling(writer, kind, rope)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_vocab_size(config.vocab_size)
        if kind not in _PERMUTED or head_dim * heads != config.hidden_size:
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)


def _add_latent_sizes(writer: GGUFWriter, config) -> None:
    """Sizes as of files that have keys and values apart."""
    rope = config.rope_parameters
    writer.add_head_count_kv(1)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_rope_scaling(writer, config.model_type, rope)
    if "mscale_all_dim" in rope:
        writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])


def _add_rope_scaling(writer: GGUFWriter, kind: str, rope: dict) -> None:
    if rope["rope_type"] not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
    writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "linear":
        return
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "beta_fast" in rope:
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if kind == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if kind == "olmo3":
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])


def arch_name(model_type: str) -> str:
    """general.architecture for a transformers model type."""
    return MODEL_ARCH_NAMES[_ARCH[model_type]]


def _gguf_tensors(model, names):
    config = model.config
    tied = bool(config.tie_word_embeddings)
    for full, value in model.state_dict().items():
        weight = value.float().numpy()
        if full == "lm_head.weight" and tied:
            continue
        if (found := next(filter(None, (of(config, full, weight) for of in _OTHERS)), None)) is not None:
            yield from found
            continue
        if full.endswith("experts.gate_up_proj"):
            base = full.removesuffix("gate_up_proj")
            half = weight.shape[1] // 2
            yield names.get_name(base + "gate_proj") + ".weight", np.ascontiguousarray(weight[:, :half])
            yield names.get_name(base + "up_proj") + ".weight", np.ascontiguousarray(weight[:, half:])
            continue
        stem, _, suffix = full.rpartition(".")
        if full.endswith("experts.down_proj"):
            stem, suffix = full, "weight"
        if full.endswith("e_score_correction_bias"):
            yield f"blk.{full.split('.')[2]}.exp_probs_b.bias", weight
            continue
        name = names.get_name(stem) or names.get_name(stem.removeprefix("transformer."))
        assert name, full
        yield f"{name}.{suffix}", np.ascontiguousarray(_as_converted(config, full, weight))


_Named = list[tuple[str, np.ndarray]]  # tensors by their names in a GGUF


def _of_granite(config, full: str, weight: np.ndarray) -> _Named | None:
    """Granite's experts, and its shared one."""
    block, names = f"blk.{(full.split('.') + ['', ''])[2]}", ("gate", "up")
    if not config.model_type.startswith("granitemoe"):
        return None
    if full.endswith("router.weight"):
        return [(f"{block}.ffn_gate_inp.weight", weight)]
    if full.endswith("experts.down_proj"):
        return [(f"{block}.ffn_down_exps.weight", weight)]
    if full.endswith("shared_mlp.output_linear.weight"):
        return [(f"{block}.ffn_down_shexp.weight", weight)]
    if full.endswith(("experts.gate_up_proj", "input_linear.weight")):
        kind, rows = ("exps", np.split(weight, 2, axis=1)) if weight.ndim == 3 else ("shexp", np.split(weight, 2))
        return [(f"{block}.ffn_{n}_{kind}.weight", np.ascontiguousarray(r)) for n, r in zip(names, rows, strict=True)]
    return None


def _of_latent(config, full: str, weight: np.ndarray) -> _Named | None:
    """Keys and values of latent attention, which are apart, the former transposed."""
    if not full.endswith("kv_b_proj.weight"):
        return None
    heads = weight.reshape(config.num_attention_heads, -1, config.kv_lora_rank)
    k, v = np.split(heads, [config.qk_nope_head_dim], axis=1)
    block = f"blk.{full.split('.')[2]}"
    return [(f"{block}.attn_k_b.weight", np.ascontiguousarray(k.swapaxes(1, 2))),
            (f"{block}.attn_v_b.weight", np.ascontiguousarray(v))]  # fmt: skip


def _of_gpt_oss(config, full: str, weight: np.ndarray) -> _Named | None:
    """gpt-oss' own layout: experts' gate and up take turns, and all is transposed."""
    if config.model_type != "gpt_oss":
        return None
    block, name = f"blk.{(full.split('.') + ['', ''])[2]}", full.partition("mlp.experts.")[2]
    if name in ("gate_up_proj", "gate_up_proj_bias"):
        rows, kind = (weight, "bias") if name.endswith("bias") else (weight.swapaxes(1, 2), "weight")
        parts = enumerate(("gate", "up"))
        return [(f"{block}.ffn_{part}_exps.{kind}", np.ascontiguousarray(rows[:, i::2])) for i, part in parts]
    if name == "down_proj":
        return [(f"{block}.ffn_down_exps.weight", np.ascontiguousarray(weight.swapaxes(1, 2)))]
    if name == "down_proj_bias":
        return [(f"{block}.ffn_down_exps.bias", weight)]
    if full.endswith("sinks"):
        return [(f"{block}.attn_sinks.weight", weight)]
    if full.endswith("post_attention_layernorm.weight"):
        return [(f"{block}.post_attention_norm.weight", weight)]
    return None


_OTHERS = (_of_gpt_oss, _of_granite, _of_latent)


def _as_converted(config, full: str, weight: np.ndarray) -> np.ndarray:
    """What llama.cpp's converter does to values."""
    kind, heads = config.model_type, config.num_attention_heads
    if kind in _PERMUTED and ".q_proj." in full:
        return permute(weight, heads)
    if kind in _PERMUTED and ".k_proj." in full:
        return permute(weight, config.num_key_value_heads)
    if kind == "gpt2" and full.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return weight.T
    if kind.startswith("gemma") or kind == "nemotron":
        return weight + 1 if full.endswith("norm.weight") else weight
    if kind == "falcon" and ".query_key_value." in full:
        kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1
        groups = weight.reshape(kv_heads, heads // kv_heads + 2, config.hidden_size // heads, -1)
        parts = [groups[:, :-2], groups[:, -2:-1], groups[:, -1:]]
        return np.concatenate([p.reshape(-1, groups.shape[-1]) for p in parts]).reshape(weight.shape)
    if kind == "bloom" and ".query_key_value." in full:
        grouped = weight.reshape(heads, 3, config.hidden_size // heads, *weight.shape[1:])
        return grouped.swapaxes(0, 1).reshape(weight.shape)
    if full.endswith("shared_expert_gate.weight"):
        return weight[0]
    return weight


def add_tokenizer(
    writer: GGUFWriter, pre: str, tokens: list[str], special: list[str], merges: list[str], **ids
) -> None:
    """A byte-level vocabulary; `special` come first."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*special, *tokens])
    writer.add_token_types([TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * len(tokens))
    writer.add_token_merges(merges)
    if "bos" in ids:
        writer.add_bos_token_id(ids["bos"])
    if "eos" in ids:
        writer.add_eos_token_id(ids["eos"])
    if "eot" in ids:
        writer.add_eot_token_id(ids["eot"])
    if "add_bos" in ids:
        writer.add_add_bos_token(ids["add_bos"])
    if "template" in ids:
        writer.add_chat_template(ids["template"])


def reference(path: Path, model) -> dict[str, torch.Tensor]:
    """What transformers' own GGUF loader makes of the file."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with mock.patch("gguf.get_tensor_name_map", _name_map):  # made anew for every module otherwise, 20 ms each
        return load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
