"""Ministral 8B and Ministral 3: Mistral with a window for each type of layer, or with queries that grow with their
position. Pure."""

import numpy as np

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.layer_types import read_layer_types, read_window, windows_of
from edgellm.model.families.llama_like import Positions, default_kv_heads, make_spec, same_window
from edgellm.model.families.rotary import rotary_of
from edgellm.model.families.spec import Spec

_MOST_SCALES = 1 << 16
_YARN = {
    "type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


def ministral(config: Config) -> Spec:
    """Return the Spec of a config of model_type ministral; raises UnsupportedError."""
    window = read_window(config, 4096)
    types = read_layer_types(config, config.layers("num_hidden_layers", default=32), lambda layer: window > 0)
    return make_spec(
        config, "MinistralForCausalLM", kv_heads=default_kv_heads(config, 8), eps=1e-6, max_seq_len=131072,
        windows=windows_of(types, window),
        defaults={"hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 32000},
    )  # fmt: skip


def ministral3(config: Config) -> Spec:
    """Return the Spec of a config of model_type ministral3; raises UnsupportedError."""
    max_seq_len = config.count("max_position_embeddings", default=262144)
    heads = config.count("num_attention_heads", default=32)
    default = config.count("hidden_size", default=4096) // heads if config.is_null("head_dim") else 128
    dim = config.count("head_dim", default=default)
    given = Config({**config.content, **({} if _rope(config) else {"rope_parameters": _YARN})})
    scales, every = _query_scales(Config(_rope(given)), max_seq_len)
    rotary = rotary_of(given.content, dim, max_seq_len, partial=False)
    return make_spec(
        config, "Ministral3ForCausalLM", kv_heads=default_kv_heads(config, 8), eps=1e-5, max_seq_len=262144,
        windows=same_window(config, None), head_dim=default,
        positions=Positions((rotary,), query_scales=scales, scale_every=every),
        defaults={"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 34, "vocab_size": 131072},
    )  # fmt: skip


def _rope(config: Config) -> dict:
    found = config.get("rope_scaling", "rope_parameters") or {}
    if not isinstance(found, dict):
        raise UnsupportedError("its rotary parameters are no set")
    return found


def _query_scales(rope: Config, max_seq_len: int) -> tuple[tuple[float, ...], int]:
    """Return what queries are multiplied by, 1 + beta * log(1 + n) in the n-th stretch of the context that the model
    was made for at first, and how long that is."""
    beta = rope.number("llama_4_scaling_beta", 0.0)
    if not beta:
        return (), 0
    every = rope.count("original_max_position_embeddings", default=max_seq_len)
    count = -(-max_seq_len // every)
    if count > _MOST_SCALES:
        raise UnsupportedError(f"{max_seq_len} positions are {count} times the first context, at most {_MOST_SCALES}")
    logs = np.log(1.0 + np.arange(count)).astype(np.float32)
    return tuple((np.float32(1.0) + np.float32(beta) * logs).tolist()), every
