"""From a GGUF's header to a config.json, for families that transformers computes: one function per architecture."""

from edgellm.checkpoint.gguf.expert_configs import SIGMOID, SOFTMAX, expert_width, normalizes_weights, read_experts
from edgellm.checkpoint.gguf.header import (
    QKV_BIASES,
    Header,
    expect_default_head_dim,
    expect_plain_scale,
    qwen_window,
    read_layer_norm_eps,
    read_rms_eps,
    read_rope,
    read_sizes,
)


def qwen2moe(header: Header) -> dict:
    """Return the config of Qwen's mixtures of experts with a shared one."""
    sizes, experts = read_sizes(header), read_experts(header, SOFTMAX)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    inner = sizes.intermediate_size
    return {
        "model_type": "qwen2_moe",
        **sizes.settings("head_dim"),
        **experts,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **read_rms_eps(header),
        **qwen_window(header, sizes),
        "hidden_act": "silu",
        # llama.cpp's defaults.
        "moe_intermediate_size": expert_width(header, inner // experts["num_experts_per_tok"]),
        "shared_expert_intermediate_size": header.metadata.count("expert_shared_feed_forward_length", inner),
        "norm_topk_prob": normalizes_weights(header, False),
        "rope_parameters": read_rope(header, sizes),
    }


def falcon(header: Header) -> dict:
    """Return the config of Falcon, in the layout of 7B or of 40B and later."""
    metadata, sizes = header.metadata, read_sizes(header, gated=False)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    metadata.expect("tensor_data_layout", "jploski")
    metadata.expect("use_parallel_residual", True)
    kv_heads = metadata.count("attention.head_count_kv", 1)
    grouped = kv_heads > 1  # Falcon 40B and later, with two norms or with one
    return {
        "model_type": "falcon",
        **sizes.settings("head_dim", "intermediate_size", "num_key_value_heads"),
        "ffn_hidden_size": sizes.intermediate_size,
        "num_kv_heads": kv_heads,
        "new_decoder_architecture": grouped,
        "num_ln_in_parallel_attn": (2 if header.has("attn_norm_2.weight") else 1) if grouped else None,
        "multi_query": True,  # says nothing of a grouped one
        "parallel_attn": True,
        "alibi": False,
        "bias": header.has("attn_qkv.bias"),
        "activation": "gelu",
        **read_layer_norm_eps(header, "layer_norm_epsilon"),
        "rope_parameters": read_rope(header, sizes),
    }


def bloom(header: Header) -> dict:
    """Return the config of BLOOM."""
    sizes = read_sizes(header, gated=False)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    header.metadata.expect("attention.head_count_kv", sizes.num_attention_heads)
    header.metadata.expect("feed_forward_length", 4 * sizes.hidden_size)
    header.metadata.expect("attention.max_alibi_bias", 0, 8)
    return {
        "model_type": "bloom",
        "hidden_size": sizes.hidden_size,
        "n_layer": sizes.num_hidden_layers,
        "n_head": sizes.num_attention_heads,
        "max_position_embeddings": sizes.max_position_embeddings,
        **read_layer_norm_eps(header, "layer_norm_epsilon"),
    }


def stablelm(header: Header) -> dict:
    """Return the config of StableLM."""
    metadata, sizes = header.metadata, read_sizes(header)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    # The tensors tell, as they do for llama.cpp: its converter writes true where the model's config says nothing.
    parallel = not header.has("ffn_norm.weight")
    metadata.expect("use_parallel_residual", True, False)
    return {
        "model_type": "stablelm",
        **sizes.settings("head_dim"),
        **read_layer_norm_eps(header, "layer_norm_eps"),
        "hidden_act": "silu",
        "use_parallel_residual": parallel,
        "use_qkv_bias": header.has(*QKV_BIASES),
        "qk_layernorm": header.has("attn_q_norm.weight"),
        "rope_parameters": {"partial_rotary_factor": 1.0} | read_rope(header, sizes, partial=True),
    }


def nemotron(header: Header) -> dict:
    """Return the config of Nemotron."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    return {
        "model_type": "nemotron",
        **sizes.settings(),
        **read_layer_norm_eps(header, "norm_eps"),
        "hidden_act": "relu2",
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "mlp_bias": header.has("ffn_up.bias", "ffn_down.bias"),
        "rope_parameters": {"partial_rotary_factor": 1.0} | read_rope(header, sizes, partial=True),
    }


def minimax_m2(header: Header) -> dict:
    """Return the config of MiniMax-M2."""
    sizes, experts = read_sizes(header), read_experts(header, SIGMOID)
    expect_plain_scale(header, sizes)
    header.metadata.expect("expert_feed_forward_length", sizes.intermediate_size)
    header.metadata.expect("expert_weights_norm", True)
    return {
        "model_type": "minimax_m2",
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "rope_parameters": {"partial_rotary_factor": 1.0} | read_rope(header, sizes, partial=True),
    }
