"""Qwen2 and Qwen2.5: Llama with biases on q, k and v. Pure."""

from edgellm.model.families.config import Config
from edgellm.model.families.llama_like import default_kv_heads, layer_windows, make_spec
from edgellm.model.families.spec import Spec


def qwen2(config: Config) -> Spec:
    """Return the Spec of a config of model_type qwen2; raises UnsupportedError."""
    return make_spec(
        config, "Qwen2ForCausalLM", kv_heads=default_kv_heads(config, 32), eps=1e-6, max_seq_len=32768,
        windows=layer_windows(config), qkv_bias=True,
    )  # fmt: skip
