"""From a GGUF's header to a config.json, for families with latent attention that the native path knows."""

from edgellm.checkpoint.gguf.expert_configs import SIGMOID, SOFTMAX, expert_width, normalizes_weights, read_experts
from edgellm.checkpoint.gguf.header import Header, decoder_layers, read_rms_eps, read_scale
from edgellm.checkpoint.gguf.rope import rope_parameters
from edgellm.errors import CheckpointError


def deepseek2(header: Header) -> dict:
    """Return the config of DeepSeek-V2 if experts are chosen by a softmax, else that of DeepSeek-V3; GLM-4.7-Flash
    computes the same as the latter, and llama.cpp has no other name for it."""
    metadata = header.metadata
    experts = read_experts(header, SOFTMAX, SIGMOID)
    corrected = any(name.endswith(".exp_probs_b.bias") for name in header.shapes)
    gating = metadata.count("expert_gating_func", 0, least=0) or (SIGMOID if corrected else SOFTMAX)
    groups = metadata.count("expert_group_count", 0, least=0) or 1
    config = {
        "hidden_size": metadata.count("embedding_length"),
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_hidden_layers": decoder_layers(header),
        "max_position_embeddings": metadata.count("context_length"),
        **_attention(header),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "first_k_dense_replace": metadata.count("leading_dense_block_count", 0, least=0),
        "n_routed_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "n_shared_experts": metadata.count("expert_shared_count"),
        "n_group": groups,
        "topk_group": metadata.count("expert_group_used_count", 0, least=0) or 1,
        "moe_intermediate_size": expert_width(header, 0),
        "routed_scaling_factor": read_scale(header, "expert_weights_scale", 1.0),
    }
    if gating == SIGMOID:
        return {"model_type": "deepseek_v3", **config, "norm_topk_prob": normalizes_weights(header, False)}
    metadata.expect("expert_weights_norm", False)
    return {
        "model_type": "deepseek_v2", **config, "topk_method": "group_limited_greedy" if groups > 1 else "greedy",
        "norm_topk_prob": False,
    }  # fmt: skip


def _attention(header: Header) -> dict:
    """Read the sizes of heads and of what a slot keeps. Files whose keys and values are apart state a head's sizes as
    those of `mla`, and what a slot keeps as those of one head. Raises CheckpointError."""
    metadata = header.metadata
    heads, rank = metadata.count("attention.head_count"), metadata.count("attention.kv_lora_rank")
    rope = metadata.count("rope.dimension_count")
    apart = metadata.get("attention.key_length_mla") is not None
    sizes = ("attention.key_length_mla", "attention.value_length_mla") if apart else (
        "attention.key_length", "attention.value_length")  # fmt: skip
    key, value = (metadata.count(name) for name in sizes)
    if apart:
        metadata.expect("attention.key_length", rank + rope)
        metadata.expect("attention.value_length", rank)
    metadata.expect("attention.head_count_kv", *((1,) if apart else (1, heads)))
    if key <= rope:
        raise CheckpointError(
            f"{metadata.where}: {metadata.key(sizes[0])} is {key}, expected more than the {rope} that turn "
            f"({metadata.key('rope.dimension_count')})"
        )
    max_seq_len = metadata.count("context_length")
    found = rope_parameters(metadata, header.read, rope, max_seq_len)
    # llama.cpp has a tenth of mscale_all_dim, and takes mscale to be the same.
    if by := 10 * metadata.number("rope.scaling.yarn_log_multiplier", 0.0):
        if found["rope_type"] == "yarn":
            found |= dict.fromkeys(("mscale", "mscale_all_dim"), float(f"{by:.6g}"))
    q_rank = metadata.count("attention.q_lora_rank", 0, least=0)
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": q_rank or None,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": key - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "attention_bias": False,
        "rope_parameters": found,
    }
