"""Qwen3-MoE: Qwen3 with experts in place of the MLP, in all layers or in some. Pure."""

from edgellm.model.families.config import Config
from edgellm.model.families.expert_layers import gated_mlp, is_sparse, qwen_experts
from edgellm.model.families.feed_forwards import FeedForward
from edgellm.model.families.layer_types import read_window
from edgellm.model.families.llama_like import default_kv_heads, make_spec
from edgellm.model.families.spec import Spec


def qwen3_moe(config: Config) -> Spec:
    """Return the Spec of a config of model_type qwen3_moe; raises UnsupportedError."""
    bias = config.flag("attention_bias", False)
    window = read_window(config, 4096) if config.flag("use_sliding_window", False) else 0
    experts = qwen_experts(config, top_k=8, count=128, inner=768, normalises=False)
    dense = gated_mlp("mlp.", config.count("hidden_size"), config.count("intermediate_size", default=6144))

    def feed_forward(layer: int) -> FeedForward:
        return experts if is_sparse(config, layer) else dense

    return make_spec(
        config, "Qwen3MoeForCausalLM", kv_heads=default_kv_heads(config, 4), eps=1e-6, max_seq_len=32768,
        windows=lambda layer: window, qkv_bias=bias, o_bias=bias, qk_norm=True, feed_forwards=feed_forward,
        defaults={"num_hidden_layers": 24},
    )  # fmt: skip
