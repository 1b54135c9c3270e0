"""Llama, and models published as Llama: SmolLM2, TinyLlama, Yi. Pure."""

from edgellm.model.families.config import Config
from edgellm.model.families.llama_like import make_spec
from edgellm.model.families.spec import Spec


def llama(config: Config) -> Spec:
    """Return the Spec of a config of model_type llama; raises UnsupportedError."""
    bias = config.flag("attention_bias", False)
    return make_spec(
        config, "LlamaForCausalLM", kv_heads=None, eps=1e-6, max_seq_len=2048, windows=lambda layer: 0,
        qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False),
    )  # fmt: skip
