"""Granite 3, dense: Llama with a multiplier for embeddings, scores, what a layer adds, and logits. Pure."""

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.llama_like import Scales, make_spec
from edgellm.model.families.spec import Spec


def granite(config: Config) -> Spec:
    """Return the Spec of a config of model_type granite; raises UnsupportedError."""
    bias = config.flag("attention_bias", False)
    return make_spec(
        config, "GraniteForCausalLM", kv_heads=None, eps=1e-6, max_seq_len=2048, windows=lambda layer: 0,
        qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False), scales=granite_scales(config),
        defaults={"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000},
    )  # fmt: skip


def granite_scales(config: Config) -> Scales:
    """Return Granite's multipliers. Raises UnsupportedError."""
    divisor = config.number("logits_scaling", 1.0)
    if not divisor:
        raise UnsupportedError("logits_scaling is 0, by which logits can't be divided")
    return Scales(
        attention=config.number("attention_multiplier", 1.0), embedding=config.number("embedding_multiplier", 1.0),
        residual=config.number("residual_multiplier", 1.0), logits=1.0 / divisor,
    )  # fmt: skip
