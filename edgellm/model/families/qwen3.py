"""Qwen3: Llama with norms over the heads of q and k. Pure."""

from edgellm.model.families.config import Config
from edgellm.model.families.llama_like import default_kv_heads, layer_windows, make_spec
from edgellm.model.families.spec import Spec


def qwen3(config: Config) -> Spec:
    """Return the Spec of a config of model_type qwen3; raises UnsupportedError."""
    bias = config.flag("attention_bias", False)
    return make_spec(
        config, "Qwen3ForCausalLM", kv_heads=default_kv_heads(config, 32), eps=1e-6, max_seq_len=32768,
        windows=layer_windows(config), qkv_bias=bias, o_bias=bias, qk_norm=True, head_dim=128,
    )  # fmt: skip
