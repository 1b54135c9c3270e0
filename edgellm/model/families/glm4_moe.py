"""GLM-4.5 and 4.6: experts in groups beside a shared one, chosen by sigmoids. Pure."""

from dataclasses import replace

from edgellm.model.families.config import MAX_LAYERS, Config
from edgellm.model.families.expert_layers import sigmoid_groups
from edgellm.model.families.feed_forwards import FeedForward
from edgellm.model.families.llama_like import Positions, make_spec
from edgellm.model.families.mtp import with_mtp
from edgellm.model.families.rotary import rotary_of
from edgellm.model.families.spec import Spec

_SIZES = {"hidden_size": 4096, "num_attention_heads": 96, "num_hidden_layers": 46, "vocab_size": 151552}


def glm4_moe(config: Config) -> Spec:
    """Return the Spec of a config of model_type glm4_moe; raises UnsupportedError."""
    hidden, heads = config.count("hidden_size", default=4096), config.count("num_attention_heads", default=96)
    dim = config.count("head_dim", default=hidden // heads)
    max_seq_len = config.count("max_position_embeddings", default=131072)
    partial = config.content.get("partial_rotary_factor")
    rope = {**config.content, "partial_rotary_factor": 0.5 if partial is None else partial}

    def feed_forward(layer: int) -> FeedForward:
        return sigmoid_groups(config, layer, count=128, inner=10944, moe_inner=1408, first_dense=1)

    spec = make_spec(
        config, "Glm4MoeForCausalLM", kv_heads=8, eps=1e-5, max_seq_len=max_seq_len, windows=lambda layer: 0,
        qkv_bias=config.flag("attention_bias", False), qk_norm=config.flag("use_qk_norm", False),
        positions=Positions((rotary_of(rope, dim, max_seq_len, partial=True),)), defaults=_SIZES,
        feed_forwards=feed_forward,
    )  # fmt: skip
    at = f"model.layers.{spec.num_layers}."
    return with_mtp(
        spec, config, replace(spec.layers[-1], feed_forward=feed_forward(MAX_LAYERS)), fc=f"{at}eh_proj",
        pre_fc_norm_embedding=f"{at}enorm", pre_fc_norm_hidden=f"{at}hnorm", norm=f"{at}shared_head.norm", layers=at,
    )  # fmt: skip
