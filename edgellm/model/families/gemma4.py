"""Gemma 4's text: heads of another size in layers that see every token, and four odd parts that models have or don't.

Layers may see the keys and values of an earlier one; values may be what keys are before their norm; experts may stand
beside an MLP, apart from it; and layers may add something of each token's id.
"""

from dataclasses import dataclass

import numpy as np

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.expert_layers import experts_of, packed_experts
from edgellm.model.families.feed_forwards import Apart, Experts, FeedForward, GatedMlp, Router
from edgellm.model.families.layer_types import FULL, SLIDING, read_layer_types, read_window, windows_of
from edgellm.model.families.llama_like import gated_mlp
from edgellm.model.families.mixers import Attention
from edgellm.model.families.parts import Matrix, Vector, rms_norm, whole
from edgellm.model.families.per_layer import PerLayer
from edgellm.model.families.pieces import Slice
from edgellm.model.families.rotary import Rotary, rotary_of
from edgellm.model.families.spec import Layer, Spec

_GELU, _ACTIVATION = "gelu_pytorch_tanh", "gelu_tanh"
_APART = "pre_feedforward_layernorm_2", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2"
_ROPE = {
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}


@dataclass(frozen=True)
class _Sizes:
    hidden: int
    heads: int
    layers: int
    vocab: int
    inner: int


def gemma4(config: Config) -> Spec:
    """Return the Spec of a config of model_type gemma4_text; raises UnsupportedError."""
    config.expect("hidden_activation", _GELU, _GELU)
    if config.get("use_bidirectional_attention") not in (None, "vision"):  # "vision" is of images, which aren't read
        raise UnsupportedError("use_bidirectional_attention isn't \"vision\": it doesn't write text from left to right")
    sizes = _Sizes(
        config.count("hidden_size", default=2304), config.count("num_attention_heads", default=8),
        config.layers("num_hidden_layers", default=30), config.count("vocab_size", default=262144),
        config.count("intermediate_size", default=9216),
    )  # fmt: skip
    types = read_layer_types(config, sizes.layers, lambda layer: (layer + 1) % 6 != 0)
    types[-1] = FULL  # whatever the config says
    windows = windows_of(types, read_window(config, 512))
    sources = _sources(config, types)
    shared = set(sources) - {None}
    wide = config.flag("use_double_wide_mlp", False)
    heads = {name: _heads_of(config, types, name) for name in set(types)}
    max_seq_len = config.count("max_position_embeddings", default=131072)
    rotaries = {name: _rotary(config, name, heads[name][0], max_seq_len) for name in sorted(heads)}

    def layer(i: int) -> Layer:
        inner = sizes.inner * (2 if wide and sources[i] is not None else 1)
        mlp = gated_mlp(sizes.hidden, inner, False, False, _ACTIVATION)
        return Layer(
            before_mixer=rms_norm("input_layernorm", sizes.hidden),
            mixer=_attention(config, sizes, types[i], heads[types[i]], windows(i), sorted(heads).index(types[i]),
                             sources[i], i in shared),
            after_mixer=rms_norm("post_attention_layernorm", sizes.hidden),
            before_feed_forward=rms_norm("pre_feedforward_layernorm", sizes.hidden),
            feed_forward=_feed_forward(config, sizes, mlp),
            after_feed_forward=rms_norm("post_feedforward_layernorm", sizes.hidden),
            output_scale=Vector("layer_scalar", 1),
            per_layer=_per_layer(config, sizes, i),
        )  # fmt: skip

    return Spec(
        model_type=config.content["model_type"],
        architecture="Gemma4ForCausalLM",
        hidden_size=sizes.hidden,
        vocab_size=sizes.vocab,
        max_seq_len=max_seq_len,
        eps=config.number("rms_norm_eps", 1e-6),
        embedding=Matrix("model.embed_tokens.weight", sizes.vocab, sizes.hidden),
        position_embedding=None,
        layers=tuple(layer(i) for i in range(sizes.layers)),
        final_norm=rms_norm("model.norm", sizes.hidden),
        head=Matrix("lm_head.weight", sizes.vocab, sizes.hidden),
        tied=bool(config.content.get("tie_word_embeddings", True)),
        rotaries=tuple(rotaries.values()),
        embed_scale=_root(sizes.hidden),
        logit_soft_cap=config.number("final_logit_softcapping", 0.0),
    )


def _sources(config: Config, types: list[str]) -> list[int | None]:
    """Return for each layer the one whose keys and values it sees: for the last `num_kv_shared_layers` the last one of
    its type before them. Raises UnsupportedError."""
    count = config.count("num_kv_shared_layers", default=0, least=0)
    own = types[: max(0, len(types) - count)]
    if missing := set(types) - set(own):
        raise UnsupportedError(f"num_kv_shared_layers is {count}, so no layer of type {min(missing)} has keys to share")
    last = {name: len(own) - 1 - own[::-1].index(name) for name in set(own)}
    return [None] * len(own) + [last[name] for name in types[len(own) :]]


def _heads_of(config: Config, types: list[str], name: str) -> tuple[int, int]:
    """Return the size of the heads, and how many of keys there are, in layers of a type: what `per_layer_config` says,
    or for layers that see every token `global_head_dim` and `num_global_key_value_heads`. Raises UnsupportedError."""
    base = {"head_dim": config.count("head_dim", default=256),
            "num_key_value_heads": config.count("num_key_value_heads", default=4)}  # fmt: skip
    stated = config.get("per_layer_config")
    if stated is None:
        if name == FULL:
            base["head_dim"] = config.count("global_head_dim", default=512)
            if config.flag("attention_k_eq_v", False):
                kv_heads = base["num_key_value_heads"]
                base["num_key_value_heads"] = config.count("num_global_key_value_heads", default=kv_heads)
        return base["head_dim"], base["num_key_value_heads"]
    if not isinstance(stated, dict) or not all(isinstance(entry, dict) for entry in stated.values()):
        raise UnsupportedError("per_layer_config has no settings by layer")
    found = set()
    for i, of in enumerate(types):
        entry = stated.get(str(i), {})
        if unknown := entry.keys() - base.keys():
            raise UnsupportedError(f"per_layer_config has {min(unknown)} of its own for layer {i}")
        if of == name:
            own = Config({**base, **entry})
            found.add((own.count("head_dim"), own.count("num_key_value_heads")))
    if len(found) > 1:
        raise UnsupportedError(f"layers of type {name} have heads of {len(found)} kinds")
    return found.pop()


def _rotary(config: Config, name: str, head_dim: int, max_seq_len: int) -> Rotary:
    given = config.get("rope_parameters")
    given = _ROPE if given is None else given
    parameters = given.get(name) if isinstance(given, dict) else None
    if not isinstance(parameters, dict):
        raise UnsupportedError(f"rope_parameters has no set for {name}")
    found = rotary_of({"rope_parameters": parameters}, head_dim, max_seq_len, partial=False)
    if found.switch_len is not None:
        raise UnsupportedError(f"LongRoPE in layers of type {name}")
    return found


def _attention(
    config: Config, sizes: _Sizes, of_type: str, heads: tuple[int, int], window: int, rope: int, source: int | None,
    shared: bool,
) -> Attention:  # fmt: skip
    (dim, kv_heads), hidden = heads, sizes.hidden
    bias, same = config.flag("attention_bias", False), config.flag("attention_k_eq_v", False) and of_type == FULL
    if bias and same:
        raise UnsupportedError("attention_bias with attention_k_eq_v")

    def kv(name: str) -> dict:
        return {name: whole(f"self_attn.{name}_proj", kv_heads * dim, hidden, bias)}

    own: dict = {"k": None, "v": None}
    if source is None:
        own |= kv("k") | ({} if same else kv("v"))
    return Attention(
        sizes.heads, kv_heads, dim, 1.0, window, whole("self_attn.q_proj", sizes.heads * dim, hidden, bias),
        o=whole("self_attn.o_proj", hidden, sizes.heads * dim, bias), q_norm=rms_norm("self_attn.q_norm", dim),
        k_norm=rms_norm("self_attn.k_norm", dim) if source is None else None, v_norm=source is None, rope=rope,
        source=source, shared=shared, **own,
    )  # fmt: skip


def _feed_forward(config: Config, sizes: _Sizes, mlp: GatedMlp) -> FeedForward:
    if not config.flag("enable_moe_block", False):
        return mlp
    count, hidden = config.count("num_experts"), sizes.hidden
    router = Router(
        whole("router.proj", count, hidden), count, config.count("top_k_experts", most=count), normalise=True,
        expert_scales=Vector("router.per_expert_scale", count),
    )  # fmt: skip
    norms = (rms_norm(name, hidden) for name in _APART)
    packed = packed_experts("experts.", count, hidden, config.count("moe_intermediate_size"))
    apart = Apart(Vector("router.scale", hidden), hidden**-0.5, *norms)
    found: Experts = experts_of(packed, router, activation=_ACTIVATION, shared=mlp, apart=apart)
    return found


def _per_layer(config: Config, sizes: _Sizes, layer: int) -> PerLayer | None:
    """Return what a layer adds of each token's id, if `hidden_size_per_layer_input` isn't 0. Raises
    UnsupportedError."""
    width = 0 if config.is_null("hidden_size_per_layer_input") else config.count(
        "hidden_size_per_layer_input", default=256, least=0)  # fmt: skip
    if not width:
        return None
    rows, hidden, every = config.count("vocab_size_per_layer_input", default=262144), sizes.hidden, sizes.layers * width
    if rows != sizes.vocab:
        raise UnsupportedError(f"vocab_size_per_layer_input is {rows}, and vocab_size {sizes.vocab}")
    names = ("embed_tokens_per_layer.weight", "per_layer_model_projection.weight", "per_layer_projection_norm.weight")
    table, model, norm = names
    return PerLayer(
        table=Matrix(table, rows, width), model=whole("per_layer_model_projection", width, hidden),
        norm=rms_norm("per_layer_projection_norm", width), gate=whole("per_layer_input_gate", width, hidden),
        projection=whole("per_layer_projection", hidden, width), after=rms_norm("post_per_layer_input_norm", hidden),
        table_scale=_root(width), model_scale=hidden**-0.5, scale=2.0**-0.5, activation=_ACTIVATION,
        slices=(
            Slice(table, f"model.{table}", (rows, every), 1, layer * width),
            Slice(model, f"model.{model}", (every, hidden), 0, layer * width),
            Slice(norm, f"model.{norm}", (width,)),
        ),
    )  # fmt: skip


def _root(size: int) -> float:
    """Return what embeddings are multiplied by, rounded as transformers' buffer is."""
    return float(np.float32(size**0.5))
