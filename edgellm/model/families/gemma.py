"""Gemma, Gemma 2 and the text of Gemma 3: norms that store how far their weights are from 1, and scaled embeddings.

Gemma 2 bounds scores and logits, and every other layer of it has a window. Gemma 3 norms queries and keys instead, and
layers with a window have a rotary base of their own.
"""

from collections.abc import Callable

import numpy as np

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.layer_types import (
    FULL,
    SLIDING,
    Windows,
    read_layer_types,
    read_window,
    rotaries_of_types,
    windows_of,
)
from edgellm.model.families.llama_like import Norms, Positions, Scales, make_spec
from edgellm.model.families.spec import Spec

_AROUND = Norms(
    after_mixer="post_attention_layernorm", before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm", offset=1.0,
)  # fmt: skip
_SIZES = {"hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8, "num_hidden_layers": 26}
_GELU = "gelu_pytorch_tanh"


def gemma(config: Config) -> Spec:
    """Return the Spec of a config of model_type gemma; raises UnsupportedError."""
    config.expect("hidden_act", _GELU, _GELU, "gelu")  # transformers takes "gelu" as what was meant
    sizes = {"hidden_size": 3072, "intermediate_size": 24576, "num_attention_heads": 16, "num_hidden_layers": 28}
    bias = _bias(config)
    return make_spec(
        config, "GemmaForCausalLM", kv_heads=16, eps=1e-6, max_seq_len=8192, windows=lambda layer: 0, head_dim=256,
        qkv_bias=bias, o_bias=bias, activation="gelu_tanh", norms=Norms(offset=1.0),
        scales=Scales(embedding=_embedding(config, 3072)), defaults={**sizes, "vocab_size": 256000}, tied=True,
    )  # fmt: skip


def gemma2(config: Config) -> Spec:
    """Return the Spec of a config of model_type gemma2; raises UnsupportedError."""
    config.expect("hidden_activation", _GELU, _GELU)
    windows, _ = _windows(config, lambda layer: layer % 2 == 0)
    caps = _cap(config, "attn_logit_softcapping", 50.0), _cap(config, "final_logit_softcapping", 30.0)
    bias = _bias(config)
    return make_spec(
        config, "Gemma2ForCausalLM", kv_heads=4, eps=1e-6, max_seq_len=8192, windows=windows, head_dim=256,
        qkv_bias=bias, o_bias=bias, activation="gelu_tanh", norms=_AROUND, scales=_scales(config, *caps),
        defaults={**_SIZES, "vocab_size": 256000}, tied=True,
    )  # fmt: skip


def gemma3(config: Config) -> Spec:
    """Return the Spec of a config of model_type gemma3_text; raises UnsupportedError."""
    config.expect("hidden_activation", _GELU, _GELU)
    if config.get("attn_logit_softcapping") is not None:
        raise UnsupportedError("attn_logit_softcapping is given, which nothing computes")
    period = config.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    windows, types = _windows(config, lambda layer: (layer + 1) % period != 0)
    dim, max_seq_len = config.count("head_dim", default=256), config.count("max_position_embeddings", default=131072)
    rotaries = rotaries_of_types(
        config, dim, max_seq_len, {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)}
    )
    sets = sorted(set(types))
    bias = _bias(config)
    return make_spec(
        config, "Gemma3ForCausalLM", kv_heads=4, eps=1e-6, max_seq_len=131072, windows=windows, head_dim=256,
        qkv_bias=bias, o_bias=bias, qk_norm=True, activation="gelu_tanh", norms=_AROUND,
        scales=_scales(config, 0.0, _cap(config, "final_logit_softcapping", 0.0)),
        positions=Positions(tuple(rotaries[name] for name in sets), lambda layer: sets.index(types[layer])),
        defaults={**_SIZES, "vocab_size": 262208}, tied=True,
    )  # fmt: skip


def _windows(config: Config, slides: Callable[[int], bool]) -> tuple[Windows, list[str]]:
    """Return each layer's window, and its type."""
    types = read_layer_types(config, config.layers("num_hidden_layers", default=26), slides)
    return windows_of(types, read_window(config, 4096)), types


def _bias(config: Config) -> bool:
    """Return whether attention's matrices have biases. Raises UnsupportedError for a model that isn't causal."""
    if config.get("use_bidirectional_attention"):
        raise UnsupportedError("use_bidirectional_attention is true: it doesn't write text from left to right")
    return config.flag("attention_bias", False)


def _cap(config: Config, name: str, default: float) -> float:
    """Return a cap; null is none."""
    return 0.0 if config.is_null(name) else config.number(name, default)


def _embedding(config: Config, default: int) -> float:
    """Return what embeddings are multiplied by: the root of their size, rounded as transformers' buffer is."""
    return float(np.float32(config.count("hidden_size", default=default) ** 0.5))


def _scales(config: Config, attention_cap: float, logits_cap: float) -> Scales:
    scalar = config.number("query_pre_attn_scalar", 256)
    if not scalar:
        raise UnsupportedError("query_pre_attn_scalar is 0")
    return Scales(scalar**-0.5, attention_cap, _embedding(config, 2304), logits_cap=logits_cap)
