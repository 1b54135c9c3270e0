"""From a GGUF's header to a config.json, for families with experts that the native path knows: one function per
architecture."""


from edgellm.checkpoint.gguf.header import (
    QKV_BIASES,
    Header,
    expect_default_head_dim,
    expect_plain_scale,
    qwen_window,
    read_rms_eps,
    read_rope,
    read_scale,
    read_sizes,
    read_window,
    without_extra_layers,
)
from edgellm.checkpoint.gguf.native_configs import granite_multipliers

# llama.cpp's numbers for how experts are weighed. Files of most architectures don't state theirs.
SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3


def read_experts(header: Header, *gating: int) -> dict:
    """Read what mixtures of experts share; `gating` are the numbers of how they may be weighed."""
    metadata = header.metadata
    metadata.expect("expert_gating_func", 0, *gating)
    return {
        "num_experts": metadata.count("expert_count"),
        "num_experts_per_tok": metadata.count("expert_used_count"),
    }


def expert_width(header: Header, default: int) -> int:
    """Return the size of one expert."""
    return header.metadata.count("expert_feed_forward_length", max(1, default))


def qwen3moe(header: Header) -> dict:
    """Return the config of Qwen3's mixtures of experts."""
    sizes, experts = read_sizes(header), read_experts(header, SOFTMAX)
    expect_plain_scale(header, sizes)
    return {
        "model_type": "qwen3_moe",
        **sizes.settings(),
        **experts,
        **read_rms_eps(header),
        **qwen_window(header, sizes),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "moe_intermediate_size": expert_width(header, sizes.intermediate_size // experts["num_experts_per_tok"]),
        "norm_topk_prob": normalizes_weights(header, True),
        "rope_parameters": read_rope(header, sizes),
    }


def normalizes_weights(header: Header, default: bool) -> bool:
    """Return whether the weights of the experts chosen are divided by their sum."""
    value = header.metadata.get("expert_weights_norm")
    header.metadata.expect("expert_weights_norm", False, True)
    return default if value is None else bool(value)


def olmoe(header: Header) -> dict:
    """Return the config of OLMoE, whose weights llama.cpp never divides by their sum."""
    sizes, experts = read_sizes(header), read_experts(header, SOFTMAX)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    header.metadata.expect("expert_weights_norm", False)
    return {
        "model_type": "olmoe",
        **sizes.settings("head_dim", "intermediate_size"),
        **experts,
        **read_rms_eps(header),
        "intermediate_size": expert_width(header, sizes.intermediate_size),
        "hidden_act": "silu",
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "norm_topk_prob": False,
        "rope_parameters": read_rope(header, sizes),
    }


def granitemoe(header: Header) -> dict:
    """Return the config of Granite 3's mixtures of experts, with a shared expert if the file has one."""
    sizes, experts = read_sizes(header), read_experts(header, SOFTMAX)
    metadata = header.metadata
    metadata.expect("expert_weights_norm", True)
    config = {
        **sizes.settings("intermediate_size"),
        **read_rms_eps(header),
        "intermediate_size": expert_width(header, sizes.intermediate_size),
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "hidden_act": "silu",
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "rope_parameters": read_rope(header, sizes),
        **granite_multipliers(header, sizes),
    }
    shared = metadata.count("expert_shared_feed_forward_length", 0, least=0)
    if not shared:
        return {"model_type": "granitemoe", **config}
    return {"model_type": "granitemoeshared", **config, "shared_intermediate_size": shared}


def gpt_oss(header: Header) -> dict:
    """Return the config of gpt-oss. Layers take turns with and without a window, as for llama.cpp; no file says it, nor
    that YaRN's bounds aren't whole numbers."""
    sizes, experts = read_sizes(header), read_experts(header, SOFTMAX_OF_CHOSEN)
    expect_plain_scale(header, sizes)
    rope = read_rope(header, sizes)
    if rope["rope_type"] == "yarn":
        rope["truncate"] = False
    return {
        "model_type": "gpt_oss",
        **sizes.settings("intermediate_size"),
        **read_rms_eps(header),
        "intermediate_size": expert_width(header, sizes.intermediate_size),
        "num_local_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "hidden_act": "silu",
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "sliding_window": read_window(header, sizes) or sizes.max_position_embeddings,
        "layer_types": [("sliding_attention", "full_attention")[i % 2] for i in range(sizes.num_hidden_layers)],
        "rope_parameters": rope,
    }


def glm4moe(header: Header) -> dict:
    """Return the config of GLM-4.5 and 4.6."""
    sizes, experts = read_sizes(header), read_experts(header, SIGMOID)
    metadata = header.metadata
    expect_plain_scale(header, sizes)
    sizes, extra = without_extra_layers(header, sizes)
    return {
        "model_type": "glm4_moe",
        **sizes.settings(),
        "num_nextn_predict_layers": extra,
        **read_rms_eps(header),
        "n_routed_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "n_shared_experts": metadata.count("expert_shared_count", 1),
        "n_group": metadata.count("expert_group_count", 1),
        "topk_group": metadata.count("expert_group_used_count", 1),
        "first_k_dense_replace": metadata.count("leading_dense_block_count", 0, least=0),
        "moe_intermediate_size": expert_width(header, sizes.intermediate_size // experts["num_experts_per_tok"]),
        "norm_topk_prob": normalizes_weights(header, False),
        "routed_scaling_factor": read_scale(header, "expert_weights_scale", 1.0),
        "hidden_act": "silu",
        "attention_bias": header.has(*QKV_BIASES),
        "use_qk_norm": header.has("attn_q_norm.weight"),
        "rope_parameters": {"partial_rotary_factor": 1.0} | read_rope(header, sizes, partial=True),
    }
