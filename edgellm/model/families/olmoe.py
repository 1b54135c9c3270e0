"""OLMoE: experts, and norms over all heads of queries and of keys at once. Pure."""

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.expert_layers import experts_of, packed_experts
from edgellm.model.families.feed_forwards import Router
from edgellm.model.families.llama_like import make_spec
from edgellm.model.families.parts import whole
from edgellm.model.families.spec import Spec


def olmoe(config: Config) -> Spec:
    """Return the Spec of a config of model_type olmoe; raises UnsupportedError."""
    if config.get("clip_qkv") is not None:
        raise UnsupportedError("clip_qkv is given")
    hidden, inner = config.count("hidden_size", default=2048), config.count("intermediate_size", default=2048)
    count = config.count("num_experts", "num_local_experts", default=64)
    top_k = config.count("num_experts_per_tok", default=8, most=count)
    router = Router(whole("mlp.gate", count, hidden), count, top_k, normalise=config.flag("norm_topk_prob", False))
    experts = experts_of(packed_experts("mlp.experts.", count, hidden, inner), router)
    bias = config.flag("attention_bias", False)
    sizes = {"hidden_size": 2048, "num_attention_heads": 16, "num_hidden_layers": 16, "vocab_size": 50304}
    return make_spec(
        config, "OlmoeForCausalLM", kv_heads=None, eps=1e-5, max_seq_len=4096, windows=lambda layer: 0, qkv_bias=bias,
        o_bias=bias, qk_norm_whole=True, feed_forwards=lambda layer: experts, defaults=sizes,
    )  # fmt: skip
