"""From a GGUF's header to a config.json, for the families that the native path knows: one function per architecture."""

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
