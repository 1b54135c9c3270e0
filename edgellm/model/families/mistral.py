"""Mistral 7B and its kin: Llama with a sliding window. Pure."""

from edgellm.model.families.config import Config
from edgellm.model.families.llama_like import default_kv_heads, make_spec, same_window
from edgellm.model.families.spec import Spec


def mistral(config: Config) -> Spec:
    """Return the Spec of a config of model_type mistral; raises UnsupportedError."""
    return make_spec(
        config, "MistralForCausalLM", kv_heads=default_kv_heads(config, 8), eps=1e-6, max_seq_len=131072,
        windows=same_window(config, 4096),
    )  # fmt: skip
