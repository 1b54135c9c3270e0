"""From a GGUF's header to a config.json, for the families that the native path knows: one function per architecture."""

from edgellm.checkpoint.gguf.header import (
    QKV_BIASES,
    Header,
    Sizes,
    expect_default_head_dim,
    expect_plain_scale,
    layer_types,
    qwen_window,
    read_layer_norm_eps,
    read_rms_eps,
    read_rope,
    read_scale,
    read_sizes,
    read_window,
)


def llama(header: Header) -> dict:
    """Return the config of Llama, or of Mistral if it has a window."""
    header.metadata.expect("tensor_data_layout", "Meta AI original pth")
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    config = {
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "rope_parameters": read_rope(header, sizes),
    }
    if window := read_window(header, sizes):
        # Mistral has no architecture of its own. Its window tells it; general.name may say anything.
        return {"model_type": "mistral", **config, "sliding_window": window}
    return {
        "model_type": "llama",
        **config,
        # llama.cpp takes any of these biases where a tensor has it; a config has them all or none, and those that are
        # missing are zeros.
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "mlp_bias": header.has("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
    }


def qwen2(header: Header) -> dict:
    """Return the config of Qwen2 and Qwen2.5."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    return {
        "model_type": "qwen2",
        **sizes.settings("head_dim"),
        **read_rms_eps(header),
        **qwen_window(header, sizes),
        "hidden_act": "silu",
        "rope_parameters": read_rope(header, sizes),
    }


def qwen3(header: Header) -> dict:
    """Return the config of Qwen3."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    return {
        "model_type": "qwen3",
        **sizes.settings(),
        **read_rms_eps(header),
        **qwen_window(header, sizes),
        "hidden_act": "silu",
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "rope_parameters": read_rope(header, sizes),
    }


def phi3(header: Header) -> dict:
    """Return the config of Phi-3, Phi-3.5 and Phi-4-mini."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    rope = read_rope(header, sizes, partial=True)
    config = {
        "model_type": "phi3",
        **sizes.settings("head_dim"),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "sliding_window": read_window(header, sizes),
        "rope_parameters": rope,
    }
    if rope["rope_type"] == "longrope":  # as in Phi-3's own config.json
        config["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return config


def gpt2(header: Header) -> dict:
    """Return the config of GPT-2."""
    sizes = read_sizes(header, gated=False)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    header.metadata.expect("attention.head_count_kv", sizes.num_attention_heads)
    return {
        "model_type": "gpt2",
        "n_embd": sizes.hidden_size,
        "n_layer": sizes.num_hidden_layers,
        "n_head": sizes.num_attention_heads,
        "n_positions": sizes.max_position_embeddings,
        "n_inner": sizes.intermediate_size,
        "activation_function": "gelu_new",
        **read_layer_norm_eps(header, "layer_norm_epsilon"),
    }


def starcoder2(header: Header) -> dict:
    """Return the config of StarCoder2."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    return {
        "model_type": "starcoder2",
        **sizes.settings("head_dim"),
        **read_layer_norm_eps(header, "norm_epsilon"),
        "hidden_act": "gelu_pytorch_tanh",
        "use_bias": header.has(*QKV_BIASES, "ffn_up.bias"),
        "sliding_window": read_window(header, sizes),
        "rope_parameters": read_rope(header, sizes),
    }


def smollm3(header: Header) -> dict:
    """Return the config of SmolLM3. No file says which layers know no positions: every fourth, as for llama.cpp."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    return {
        "model_type": "smollm3",
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "no_rope_layer_interval": 4,
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "mlp_bias": header.has("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
        "rope_parameters": read_rope(header, sizes),
    }


def olmo2(header: Header) -> dict:
    """Return the config of OLMo 2, or of OLMo 3 if it has a window."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    rope = read_rope(header, sizes)
    if rope["rope_type"] == "yarn" and (stated := read_scale(header, "rope.scaling.attn_factor", 0.0)):
        # Its first converters wrote the whole factor here, which for others counts beside YaRN's own.
        rope["attention_factor"] = stated
    config = {
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
    }
    window = header.metadata.count("attention.sliding_window", 0, least=0)
    if not window:
        return {"model_type": "olmo2", **config, "rope_parameters": rope}
    return {
        "model_type": "olmo3",
        **config,
        **layer_types(header, sizes, 4, window),
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": header.metadata.number("rope.freq_base_swa", rope["rope_theta"]),
            },
        },
    }


def granite(header: Header) -> dict:
    """Return the config of Granite 3, dense."""
    sizes = read_sizes(header)
    header.metadata.expect("rope.scaling.finetuned", True)  # false says here that no layer knows positions
    return {
        "model_type": "granite",
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "mlp_bias": header.has("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
        "rope_parameters": read_rope(header, sizes),
        **granite_multipliers(header, sizes),
    }


def granite_multipliers(header: Header, sizes: Sizes) -> dict:
    """Return Granite's multipliers; those that a file leaves out, or has as 0, are llama.cpp's."""
    return {
        "attention_multiplier": read_scale(header, "attention.scale", sizes.head_dim**-0.5),
        "embedding_multiplier": read_scale(header, "embedding_scale", 1.0),
        "residual_multiplier": read_scale(header, "residual_scale", 1.0),
        "logits_scaling": read_scale(header, "logit_scale", 1.0),
    }


def mistral3(header: Header) -> dict:
    """Return the config of Ministral 3, or of Mistral if its queries don't grow with their position."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    rope = read_rope(header, sizes)
    if of_all := read_scale(header, "rope.scaling.yarn_log_multiplier", 0.0):
        rope |= {"mscale": 1.0, "mscale_all_dim": of_all}
    beta = read_scale(header, "attention.temperature_scale", 0.0)
    if beta:
        original = header.metadata.count("rope.scaling.original_context_length", sizes.max_position_embeddings)
        header.metadata.expect("attention.temperature_length", original)
        rope |= {"llama_4_scaling_beta": beta, "original_max_position_embeddings": original}
    return {
        "model_type": "ministral3" if beta else "mistral",
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "sliding_window": read_window(header, sizes),
        "rope_parameters": rope,
    }


def glm4(header: Header) -> dict:
    """Return the config of GLM-4."""
    sizes = read_sizes(header)
    expect_plain_scale(header, sizes)
    return {
        "model_type": "glm4",
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "attention_bias": header.has(*QKV_BIASES),
        "rope_parameters": {"partial_rotary_factor": 1.0} | read_rope(header, sizes, partial=True),
    }
