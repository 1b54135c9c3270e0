"""GLM-4: norms on both sides, and half of a head's dimensions turn, neighbours together. Pure."""

from edgellm.model.families.config import Config
from edgellm.model.families.llama_like import Norms, Positions, make_spec
from edgellm.model.families.rotary import rotary_of
from edgellm.model.families.spec import Spec

_NORMS = Norms(after_mixer="post_self_attn_layernorm", after_feed_forward="post_mlp_layernorm")
_SIZES = {"hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "vocab_size": 151552}


def glm4(config: Config) -> Spec:
    """Return the Spec of a config of model_type glm4; raises UnsupportedError."""
    dim = config.count("head_dim", default=128)
    max_seq_len = config.count("max_position_embeddings", default=131072)
    rotary = rotary_of({"partial_rotary_factor": 0.5, **config.content}, dim, max_seq_len, partial=True)
    return make_spec(
        config, "Glm4ForCausalLM", kv_heads=2, eps=1.5625e-7, max_seq_len=131072, windows=lambda layer: 0,
        qkv_bias=config.flag("attention_bias", True), fused_mlp=True, head_dim=128, norms=_NORMS,
        positions=Positions((rotary,), interleaved=True), defaults=_SIZES,
    )  # fmt: skip
