"""OLMo 2 and OLMo 3: norms behind attention and MLP, and over all heads of q and k at once. Pure.

Three of four layers of OLMo 3 have a window, and rotary factors of their own.
"""

from edgellm.model.families.config import Config
from edgellm.model.families.layer_types import (
    FULL,
    SLIDING,
    Windows,
    read_layer_types,
    read_window,
    rotaries_of_types,
    windows_of,
)
from edgellm.model.families.llama_like import Norms, Positions, make_spec
from edgellm.model.families.spec import Spec

_BEHIND = Norms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_SIZES = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 50304}


def olmo2(config: Config) -> Spec:
    """Return the Spec of a config of model_type olmo2; raises UnsupportedError."""
    return _olmo(config, "Olmo2ForCausalLM", lambda layer: 0, None)


def olmo3(config: Config) -> Spec:
    """Return the Spec of a config of model_type olmo3; raises UnsupportedError."""
    num_layers = config.layers("num_hidden_layers", default=32)
    types = read_layer_types(config, num_layers, lambda layer: (layer + 1) % 4 != 0)
    heads = config.count("num_attention_heads", default=32)
    dim = config.count("head_dim", default=config.count("hidden_size", default=4096) // heads)
    max_seq_len = config.count("max_position_embeddings", default=2048)
    rotaries = rotaries_of_types(config, dim, max_seq_len, {FULL: ("rope_theta", 5e5), SLIDING: (None, 5e5)})
    sets = sorted(set(types))
    positions = Positions(tuple(rotaries[name] for name in sets), lambda layer: sets.index(types[layer]))
    return _olmo(config, "Olmo3ForCausalLM", windows_of(types, read_window(config, 4096)), positions)


def _olmo(config: Config, architecture: str, windows: Windows, positions: Positions | None) -> Spec:
    bias = config.flag("attention_bias", False)
    return make_spec(
        config, architecture, kv_heads=None, eps=1e-5, max_seq_len=2048, windows=windows, qkv_bias=bias, o_bias=bias,
        qk_norm_whole=True, norms=_BEHIND, positions=positions, defaults=_SIZES,
    )  # fmt: skip
