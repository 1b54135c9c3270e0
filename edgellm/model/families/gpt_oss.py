"""gpt-oss: sinks, windows in every other layer, YaRN, and experts with biases and a clamped activation. Pure."""

from dataclasses import replace

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.expert_layers import experts_of, packed_experts
from edgellm.model.families.feed_forwards import Router
from edgellm.model.families.layer_types import read_layer_types, read_window, windows_of
from edgellm.model.families.llama_like import Positions, default_kv_heads, make_spec
from edgellm.model.families.mixers import Attention
from edgellm.model.families.parts import Vector, whole
from edgellm.model.families.rotary import rotary_of
from edgellm.model.families.spec import Layer, Spec

_ALPHA = 1.702  # of the sigmoid in the kernels' clamped activation
_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_SIZES = {
    "hidden_size": 2880, "num_attention_heads": 64, "num_hidden_layers": 36, "vocab_size": 201088,
}  # fmt: skip


def gpt_oss(config: Config) -> Spec:
    """Return the Spec of a config of model_type gpt_oss; raises UnsupportedError."""
    if (alpha := config.number("swiglu_alpha", _ALPHA)) != _ALPHA:
        raise UnsupportedError(f"swiglu_alpha is {alpha:g}, the native path knows {_ALPHA}")
    hidden, inner = config.count("hidden_size", default=2880), config.count("intermediate_size", default=2880)
    count = config.count("num_local_experts", "num_experts", default=128)
    top_k = config.count("num_experts_per_tok", "experts_per_token", default=4, most=count)
    router = Router(whole("mlp.router", count, hidden, True), count, top_k, "softmax_of_chosen")
    packed = packed_experts("mlp.experts.", count, hidden, inner, biased=True, interleaved=True)
    limit = config.number("swiglu_limit", 7.0)
    experts = experts_of(packed, router, activation="swiglu_clamped", limit=limit)
    types = read_layer_types(config, config.layers("num_hidden_layers", default=36), lambda layer: layer % 2 == 0)
    dim = config.count("head_dim", default=64)
    max_seq_len = config.count("max_position_embeddings", default=131072)
    bias = config.flag("attention_bias", True)
    spec = make_spec(
        config, "GptOssForCausalLM", kv_heads=default_kv_heads(config, 8), eps=1e-5, max_seq_len=max_seq_len,
        windows=windows_of(types, read_window(config, 128)), qkv_bias=bias, o_bias=bias, head_dim=dim,
        positions=Positions((rotary_of(_rope(config), dim, max_seq_len, partial=True),)),
        feed_forwards=lambda layer: experts, defaults=_SIZES,
    )  # fmt: skip
    return replace(spec, layers=tuple(map(_with_sinks, spec.layers)))


def _rope(config: Config) -> dict:
    """Return the config with the family's own rotary parameters where it has none."""
    given = config.content
    if not given.get("rope_scaling") and not given.get("rope_parameters"):
        given = {**given, "rope_parameters": _YARN}
    return {**given, "rope_theta": 150000.0 if given.get("rope_theta") is None else given["rope_theta"]}


def _with_sinks(layer: Layer) -> Layer:
    assert isinstance(layer.mixer, Attention)
    return replace(layer, mixer=replace(layer.mixer, sinks=Vector("self_attn.sinks", layer.mixer.heads)))
