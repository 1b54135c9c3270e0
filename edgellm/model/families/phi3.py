"""Phi-3 and Phi-3.5: Llama with q, k, v and gate, up each in one matrix, LongRoPE, and a sliding window. Pure."""

from edgellm.model.families.config import Config
from edgellm.model.families.llama_like import make_spec, same_window
from edgellm.model.families.spec import Spec


def phi3(config: Config) -> Spec:
    """Return the Spec of a config of model_type phi3; raises UnsupportedError."""
    return make_spec(
        config, "Phi3ForCausalLM", kv_heads=None, eps=1e-5, max_seq_len=4096, windows=same_window(config, None),
        fused=True, partial_rotary=True,
    )  # fmt: skip
