"""Granite 4: Mamba-2 and attention without positions, dense or with experts, with multipliers. Pure."""

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.feed_forwards import FeedForward
from edgellm.model.families.granite import granite_scales
from edgellm.model.families.granite_moe import granite_experts, granite_shared_mlp
from edgellm.model.families.mixers import Attention, Mamba2
from edgellm.model.families.parts import Matrix, rms_norm, whole
from edgellm.model.families.recurrent import layer_types, mamba2
from edgellm.model.families.rotary import Rotary, rotary_of
from edgellm.model.families.spec import Layer, Spec

_FULL, _LINEAR = "full_attention", "linear_attention"


def granitemoehybrid(config: Config) -> Spec:
    """Return the Spec of a config of model_type granitemoehybrid; raises UnsupportedError."""
    hidden = config.count("hidden_size", default=4096)
    vocab = config.count("vocab_size", default=32000)
    num_layers = config.layers("num_hidden_layers", default=32)
    max_seq_len = config.count("max_position_embeddings", default=2048)
    config.expect("hidden_act", "silu", "silu", "swish")
    rotaries: tuple[Rotary, ...] = ()
    if config.content.get("position_embedding_type") == "rope":
        rotaries = (rotary_of(config.content, _head_dim(config, hidden), max_seq_len, partial=False),)
    kinds = layer_types(config, "layer_types", num_layers, (_FULL, _LINEAR))
    kinds = kinds or layer_types(config, "layers_block_type", num_layers, (_FULL, _LINEAR)) or [_LINEAR] * num_layers
    mixers: dict[str, Attention | Mamba2] = {}
    if _FULL in kinds:
        mixers[_FULL] = _attention(config, hidden, 0 if rotaries else None)
    if _LINEAR in kinds:
        mixers[_LINEAR] = _mamba(config, hidden)
    feed_forward, scales = _feed_forward(config, hidden), granite_scales(config)
    layers = tuple(
        Layer(
            before_mixer=rms_norm("input_layernorm", hidden), mixer=mixers[kind],
            before_feed_forward=rms_norm("post_attention_layernorm", hidden), feed_forward=feed_forward,
            residual_scale=scales.residual,
        ) for kind in kinds
    )  # fmt: skip
    return Spec(
        model_type=config.content["model_type"], architecture="GraniteMoeHybridForCausalLM", hidden_size=hidden,
        vocab_size=vocab, max_seq_len=max_seq_len, eps=config.number("rms_norm_eps", 1e-6),
        embedding=Matrix("model.embed_tokens.weight", vocab, hidden), position_embedding=None, layers=layers,
        final_norm=rms_norm("model.norm", hidden), head=Matrix("lm_head.weight", vocab, hidden),
        tied=bool(config.content.get("tie_word_embeddings", False)), rotaries=rotaries,
        embed_scale=scales.embedding, logit_scale=scales.logits,
    )  # fmt: skip


def _head_dim(config: Config, hidden: int) -> int:
    heads = config.count("num_attention_heads", default=32)
    return config.count("head_dim", default=max(1, hidden // heads))


def _attention(config: Config, hidden: int, rope: int | None) -> Attention:
    heads, dim = config.count("num_attention_heads", default=32), _head_dim(config, hidden)
    kv_heads = config.count("num_key_value_heads", default=heads)
    biased = config.flag("attention_bias", False)
    at = "self_attn."
    return Attention(
        heads, kv_heads, dim, config.number("attention_multiplier", 1.0), 0,
        whole(f"{at}q_proj", heads * dim, hidden, biased), whole(f"{at}k_proj", kv_heads * dim, hidden, biased),
        whole(f"{at}v_proj", kv_heads * dim, hidden, biased), whole(f"{at}o_proj", hidden, heads * dim, biased),
        rope=rope,
    )  # fmt: skip


def _mamba(config: Config, hidden: int) -> Mamba2:
    heads = config.count("mamba_n_heads", default=128)
    inner = config.count("mamba_expand", default=2) * hidden
    head_dim = inner // heads
    if config.content.get("mamba_d_head", "auto") not in ("auto", head_dim) or heads * head_dim != inner:
        raise UnsupportedError(f"mamba_n_heads is {heads} and mamba_d_head {config.content.get('mamba_d_head')!r}, "
                               f"which isn't {inner} together")  # fmt: skip
    return mamba2(
        "mamba", hidden, heads=heads, head_dim=head_dim, groups=config.count("mamba_n_groups", default=1),
        state_dim=config.count("mamba_d_state", default=256), kernel=config.count("mamba_d_conv", default=4),
        biased=config.flag("mamba_proj_bias", False), conv_bias=config.flag("mamba_conv_bias", True),
        dt_limits=_limits(config),
    )  # fmt: skip


def _limits(config: Config) -> tuple[float, float]:
    limits = config.get("time_step_limit")
    limits = [0.0, float("inf")] if limits is None else limits
    if isinstance(limits, list):  # transformers writes JSON without Infinity
        limits = [float("inf") if v == {"__float__": "Infinity"} else v for v in limits]
    numbers = isinstance(limits, list | tuple) and all(type(v) in (int, float) for v in limits)
    if not numbers or len(limits) != 2 or not 0 <= limits[0] <= limits[1]:
        raise UnsupportedError(f"time_step_limit is {str(limits)[:60]}, expected two numbers")
    return float(limits[0]), float(limits[1])


def _feed_forward(config: Config, hidden: int) -> FeedForward:
    inner = config.count("shared_intermediate_size", default=1024)
    if config.count("num_local_experts", default=8, least=0):
        return granite_experts(config, inner)
    return granite_shared_mlp(hidden, inner)
