"""LFM2, dense and with experts: short convolutions, and attention in some layers. Pure."""

from collections.abc import Callable

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.expert_layers import gated_mlp, lfm2_feed_forward
from edgellm.model.families.feed_forwards import FeedForward
from edgellm.model.families.mixers import Attention, Mixer, ShortConv
from edgellm.model.families.parts import Matrix, Vector, rms_norm, whole
from edgellm.model.families.recurrent import conv_of, layer_types
from edgellm.model.families.rotary import Rotary, rotary_of
from edgellm.model.families.spec import Layer, Spec

_FULL, _CONV = "full_attention", "conv"


def lfm2(config: Config) -> Spec:
    """Return the Spec of a config of model_type lfm2; raises UnsupportedError."""
    config = Config({"hidden_size": 2560, **config.content})
    dense = gated_mlp("feed_forward.", config.count("hidden_size"), _inner(config), ("w1", "w3", "w2"))
    return _make_spec(config, "Lfm2ForCausalLM", lambda layer: dense)


def lfm2_moe(config: Config) -> Spec:
    """Return the Spec of a config of model_type lfm2_moe; raises UnsupportedError."""
    config = Config({"hidden_size": 2048, **config.content})
    return _make_spec(config, "Lfm2MoeForCausalLM", lambda layer: lfm2_feed_forward(config, layer))


def _make_spec(config: Config, architecture: str, feed_forwards: Callable[[int], FeedForward]) -> Spec:
    hidden = config.count("hidden_size")
    num_layers = config.layers("num_hidden_layers", default=32)
    vocab = config.count("vocab_size", default=65536)
    max_seq_len = config.count("max_position_embeddings", default=128000)
    heads = config.count("num_attention_heads", default=32)
    kv_heads = config.count("num_key_value_heads", default=8)
    dim = config.count("head_dim", default=max(1, hidden // heads))
    kernel = config.count("conv_L_cache", default=3)
    biased = config.flag("conv_bias", False)
    mixers: dict[str, Mixer] = {
        _FULL: Attention(
            heads, kv_heads, dim, dim**-0.5, 0, whole("self_attn.q_proj", heads * dim, hidden),
            whole("self_attn.k_proj", kv_heads * dim, hidden), whole("self_attn.v_proj", kv_heads * dim, hidden),
            whole("self_attn.out_proj", hidden, heads * dim), rms_norm("self_attn.q_layernorm", dim),
            rms_norm("self_attn.k_layernorm", dim),
        ),
        _CONV: ShortConv(
            channels=hidden, kernel=kernel, inner=whole("conv.in_proj", 3 * hidden, hidden, biased),
            out=whole("conv.out_proj", hidden, hidden, biased), conv=conv_of("conv.conv", hidden, kernel),
            conv_bias=Vector("conv.conv.bias", hidden) if biased else None,
        ),
    }  # fmt: skip
    layers = tuple(
        Layer(
            before_mixer=rms_norm("operator_norm", hidden), mixer=mixers[kind],
            before_feed_forward=rms_norm("ffn_norm", hidden), feed_forward=feed_forwards(i),
        ) for i, kind in enumerate(_kinds(config, num_layers))
    )  # fmt: skip
    tied = config.get("tie_embedding", "tie_word_embeddings")
    return Spec(
        model_type=config.content["model_type"], architecture=architecture, hidden_size=hidden, vocab_size=vocab,
        max_seq_len=max_seq_len, eps=config.number("norm_eps", 1e-5),
        embedding=Matrix("model.embed_tokens.weight", vocab, hidden), position_embedding=None, layers=layers,
        final_norm=rms_norm("model.embedding_norm", hidden), head=Matrix("lm_head.weight", vocab, hidden),
        tied=True if tied is None else bool(tied), rotaries=(_rotary(config, dim, max_seq_len),),
    )  # fmt: skip


def _rotary(config: Config, dim: int, max_seq_len: int) -> Rotary:
    theta = config.number("rope_theta", 1e6)
    return rotary_of({**config.content, "rope_theta": theta}, dim, max_seq_len, partial=False)


def _inner(config: Config) -> int:
    """Return the width of the MLPs: two thirds of the config's, times a factor, up to the next multiple."""
    inner = config.count("block_ff_dim", "intermediate_size", default=12288)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return inner
    inner = int(2 * inner / 3)
    if "block_ffn_dim_multiplier" in config.content and config.content["block_ffn_dim_multiplier"] is None:
        return inner
    multiple = config.count("block_multiple_of", default=256)
    inner = int(config.number("block_ffn_dim_multiplier", 1.0) * inner)
    return -(-inner // multiple) * multiple


def _kinds(config: Config, num_layers: int) -> list[str]:
    """Return each layer's type: as layer_types says, or attention where full_attn_idxs says so, or everywhere."""
    named = layer_types(config, "layer_types", num_layers, (_FULL, _CONV))
    if named:
        return named
    chosen = config.get("full_attn_idxs")
    if chosen is None:
        return [_FULL] * num_layers
    if not isinstance(chosen, list) or not all(type(i) is int for i in chosen):
        raise UnsupportedError("full_attn_idxs is not a list of layers")
    return [_FULL if i in chosen else _CONV for i in range(num_layers)]
