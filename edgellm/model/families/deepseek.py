"""DeepSeek-V2 and V3, and GLM-4.7-Flash: latent attention, and experts beside shared ones. Pure."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.expert_layers import sigmoid_groups, softmax_groups
from edgellm.model.families.feed_forwards import FeedForward
from edgellm.model.families.mixers import LatentAttention
from edgellm.model.families.parts import Matrix, Projection, rms_norm, whole
from edgellm.model.families.rotary import rotary_of
from edgellm.model.families.spec import Layer, Spec

_ATTENTION = "self_attn."
_V2 = {
    "vocab_size": 102400, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
_V3 = _V2 | {
    "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
    "max_position_embeddings": 4096,
}  # fmt: skip
_GLM = _V2 | {
    "vocab_size": 154880, "hidden_size": 2048, "num_hidden_layers": 47, "num_attention_heads": 20,
    "max_position_embeddings": 202752, "q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256,
}  # fmt: skip


def deepseek_v2(config: Config) -> Spec:
    """Return the Spec of a config of model_type deepseek_v2; raises UnsupportedError."""
    if config.content.get("mlp_bias"):
        raise UnsupportedError("mlp_bias is given, which the native path doesn't know")
    return _spec(config, "DeepseekV2ForCausalLM", _V2, lambda layer: softmax_groups(config, layer))


def deepseek_v3(config: Config) -> Spec:
    """Return the Spec of a config of model_type deepseek_v3; raises UnsupportedError."""

    def feed_forward(layer: int) -> FeedForward:
        return sigmoid_groups(
            config, layer, count=256, inner=18432, moe_inner=2048, first_dense=3, groups=8, top_groups=4, scale=2.5
        )

    return _spec(config, "DeepseekV3ForCausalLM", _V3, feed_forward)


def glm4_moe_lite(config: Config) -> Spec:
    """Return the Spec of a config of model_type glm4_moe_lite; raises UnsupportedError."""
    num_layers = config.layers("num_hidden_layers", default=_GLM["num_hidden_layers"])
    types = config.get("mlp_layer_types")
    if types is None:
        types = ["dense"] + ["sparse"] * (num_layers - 1)
    known = isinstance(types, list) and all(kind in ("dense", "sparse") for kind in types)
    if not known or len(types) < num_layers:
        raise UnsupportedError(f"mlp_layer_types doesn't say dense or sparse for each of the {num_layers} layers")

    def feed_forward(layer: int) -> FeedForward:
        return sigmoid_groups(
            config, layer, count=64, inner=10240, moe_inner=1536, first_dense=1, scale=1.8, top_k=4,
            dense=lambda layer: types[layer] == "dense",
        )  # fmt: skip

    return _spec(config, "Glm4MoeLiteForCausalLM", _GLM, feed_forward, eps=1e-5)


def _spec(
    config: Config, architecture: str, sizes: Mapping[str, int], feed_forward: Callable[[int], FeedForward],
    eps: float = 1e-6,
) -> Spec:  # fmt: skip
    """Return the Spec of a family with these defaults."""

    def count(name: str) -> int:
        return config.count(name, default=sizes[name])

    config.expect("hidden_act", "silu", "silu", "swish")
    hidden, vocab, max_seq_len = count("hidden_size"), count("vocab_size"), count("max_position_embeddings")
    mixer = _latent_attention(config, count)
    rotary = rotary_of(config.content, mixer.rope_dim, max_seq_len, partial=False)
    return Spec(
        model_type=config.content["model_type"],
        architecture=architecture,
        hidden_size=hidden,
        vocab_size=vocab,
        max_seq_len=max_seq_len,
        eps=config.number("rms_norm_eps", eps),
        embedding=Matrix("model.embed_tokens.weight", vocab, hidden),
        position_embedding=None,
        layers=tuple(
            Layer(
                before_mixer=rms_norm("input_layernorm", hidden), mixer=mixer,
                before_feed_forward=rms_norm("post_attention_layernorm", hidden), feed_forward=feed_forward(i),
            )
            for i in range(config.layers("num_hidden_layers", default=sizes["num_hidden_layers"]))
        ),
        final_norm=rms_norm("model.norm", hidden),
        head=Matrix("lm_head.weight", vocab, hidden),
        tied=config.flag("tie_word_embeddings", False),
        rotaries=(rotary,),
    )  # fmt: skip


def _latent_attention(config: Config, count: Callable[[str], int]) -> LatentAttention:
    hidden, heads, rank = count("hidden_size"), count("num_attention_heads"), count("kv_lora_rank")
    kv_heads = config.count("num_key_value_heads", default=heads)
    if kv_heads < heads:
        raise UnsupportedError(f"{heads} heads share {kv_heads} of keys and values, the native path knows as many")
    nope, rope, value = count("qk_nope_head_dim"), count("qk_rope_head_dim"), count("v_head_dim")
    biased = config.flag("attention_bias", False)
    q_rows, q_rank = heads * (nope + rope), None if config.is_null("q_lora_rank") else count("q_lora_rank")
    if q_rank is None:
        q = whole(f"{_ATTENTION}q_proj", q_rows, hidden)
    else:
        q = whole(f"{_ATTENTION}q_b_proj", q_rows, q_rank)
    return LatentAttention(
        heads, nope, rope, value, rank, (nope + rope) ** -0.5 * _yarn_scale(config.content),
        q_a=None if q_rank is None else whole(f"{_ATTENTION}q_a_proj", q_rank, hidden, biased),
        q=q,
        kv_a=whole(f"{_ATTENTION}kv_a_proj_with_mqa", rank + rope, hidden, biased),
        k_b=Projection(Matrix(f"{_ATTENTION}k_b_proj.weight", rank, nope, heads), 0, rank),
        v_b=Projection(Matrix(f"{_ATTENTION}v_b_proj.weight", value, rank, heads), 0, value),
        o=whole(f"{_ATTENTION}o_proj", hidden, heads * value, biased),
        q_norm=None if q_rank is None else rms_norm(f"{_ATTENTION}q_a_layernorm", q_rank),
        kv_norm=rms_norm(f"{_ATTENTION}kv_a_layernorm", rank),
        kv_b=f"{_ATTENTION}kv_b_proj.weight",
        interleaved=config.content["model_type"] == "deepseek_v2" or config.flag("rope_interleave", True),
    )  # fmt: skip


def _yarn_scale(config: Mapping[str, Any]) -> float:
    """Return what scores are multiplied by because of a longer context: the square of YaRN's factor by
    `mscale_all_dim`."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict) or given.get("rope_type", given.get("type", "default")) in ("default", None):
        return 1.0
    rope = Config(given)
    by, factor = rope.number("mscale_all_dim", 0.0), rope.number("factor", 1.0)
    return (0.1 * by * math.log(factor) + 1.0) ** 2 if by and factor > 1.0 else 1.0
