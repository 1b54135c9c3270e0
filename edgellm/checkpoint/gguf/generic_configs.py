"""From a GGUF's header to a config.json, for families that transformers computes: one function per architecture."""

from edgellm.checkpoint.gguf.header import (
    QKV_BIASES,
    Header,
    Sizes,
    expect_default_head_dim,
    expect_plain_scale,
    qwen_window,
    read_layer_norm_eps,
    read_rms_eps,
    read_rope,
    read_sizes,
    read_window,
)
from edgellm.errors import CheckpointError


def _experts(header: Header, gating: int = 1) -> dict:
    """Read what mixtures of experts share; `gating` is llama.cpp's number for how they are weighed, 1 for softmax."""
    metadata = header.metadata
    used = metadata.count("expert_used_count")
    metadata.expect("expert_gating_func", 0, gating)
    return {
        "num_experts": metadata.count("expert_count"),
        "num_experts_per_tok": used,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _normalizes_weights(header: Header, default: bool) -> bool:
    value = header.metadata.get("expert_weights_norm")
    header.metadata.expect("expert_weights_norm", False, True)
    return default if value is None else bool(value)


def qwen2moe(header: Header) -> dict:
    """Return the config of Qwen's mixtures of experts with a shared one."""
    sizes, experts = read_sizes(header), _experts(header)
    expect_plain_scale(header, sizes)
    expect_default_head_dim(header, sizes)
    inner = sizes.intermediate_size
    return {
        "model_type": "qwen2_moe",
        **sizes.settings("head_dim"),
        **experts,
        **read_rms_eps(header),
        **qwen_window(header, sizes),
        "hidden_act": "silu",
        # llama.cpp's defaults.
        "moe_intermediate_size": header.metadata.count(
            "expert_feed_forward_length", max(1, inner // experts["num_experts_per_tok"])
        ),
        "shared_expert_intermediate_size": header.metadata.count("expert_shared_feed_forward_length", inner),
        "norm_topk_prob": _normalizes_weights(header, False),
        "rope_parameters": read_rope(header, sizes),
    }


def qwen3moe(header: Header) -> dict:
    """Return the config of Qwen3's mixtures of experts."""
    sizes, experts = read_sizes(header), _experts(header)
    expect_plain_scale(header, sizes)
    return {
        "model_type": "qwen3_moe",
        **sizes.settings(),
        **experts,
        **read_rms_eps(header),
        **qwen_window(header, sizes),
        "hidden_act": "silu",
        "attention_bias": header.has(*QKV_BIASES, "attn_output.bias"),
        "moe_intermediate_size": header.metadata.count(
            "expert_feed_forward_length", max(1, sizes.intermediate_size // experts["num_experts_per_tok"])
        ),
        "norm_topk_prob": _normalizes_weights(header, True),
        "rope_parameters": read_rope(header, sizes),
    }


def _gemma(header: Header, layers_of_largest: int) -> tuple[Sizes, dict]:
    """Read what Gemma 2 and 3 share. `layers_of_largest` tells the model whose scores are scaled by another size than
    the head's: no file says it, and llama.cpp goes by the layers too."""
    sizes, metadata = read_sizes(header), header.metadata
    largest = sizes.num_hidden_layers == layers_of_largest
    scalar = sizes.hidden_size // sizes.num_attention_heads if largest else sizes.head_dim
    if stated := metadata.number("attention.scale", 0.0):
        scalar = round(stated**-2)
        metadata.expect("attention.scale", max(scalar, 1) ** -0.5)  # a config has whole numbers
    caps = {name: metadata.number(name, 0.0) or None for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    return sizes, {
        **sizes.settings(),
        **read_rms_eps(header),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        **caps,
    }


def _layer_types(header: Header, sizes: Sizes, period: int, window: int | None) -> dict:
    """Return which layers have a window: all but the last of every `period`, unless the file says otherwise."""
    metadata, layers = header.metadata, sizes.num_hidden_layers
    stated = metadata.raw("attention.sliding_window_pattern")
    if isinstance(stated, list):
        if len(stated) < layers or any(type(v) not in (bool, int) for v in stated):
            raise CheckpointError(
                f"{metadata.where}: {metadata.key('attention.sliding_window_pattern')} has {len(stated)} entries, "
                f"expected true or false for each of {layers} layers"
            )
        slides = [bool(v) for v in stated[:layers]]
    else:
        period = metadata.count("attention.sliding_window_pattern", period)
        slides = [(i + 1) % period != 0 for i in range(layers)]
    if window is None:
        return {"layer_types": ["full_attention"] * layers, "sliding_window": sizes.max_position_embeddings}
    return {
        "layer_types": ["sliding_attention" if s else "full_attention" for s in slides],
        "sliding_window": window,
    }


def gemma2(header: Header) -> dict:
    """Return the config of Gemma 2."""
    sizes, config = _gemma(header, layers_of_largest=46)
    for name, default in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        if header.metadata.get(name) is None:  # llama.cpp's and the model's own
            config[name] = default
    window = header.metadata.count("attention.sliding_window", 4096, least=0) or None
    return {
        "model_type": "gemma2",
        **config,
        **_layer_types(header, sizes, 2, window),
        "rope_parameters": read_rope(header, sizes),
    }


def gemma3(header: Header) -> dict:
    """Return the config of Gemma 3 (text)."""
    sizes, config = _gemma(header, layers_of_largest=62)
    window = header.metadata.count("attention.sliding_window", 0, least=0) or None
    # Layers with a window have a rotary base of their own and no scaling; without windows there is one for all.
    local = header.metadata.number("rope.freq_base_swa", 10000.0)
    return {
        "model_type": "gemma3_text",
        **config,
        **_layer_types(header, sizes, 6, window),
        "rope_parameters": {
            "full_attention": read_rope(header, sizes),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
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
    sizes, experts = read_sizes(header), _experts(header, gating=2)  # sigmoid
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
