"""What most families share with Llama: rotary attention, a gated MLP, RMSNorms around them. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgellm.model.families.config import Config
from edgellm.model.families.feed_forwards import FeedForward, GatedMlp
from edgellm.model.families.layer_types import Windows, read_layer_types, read_window, windows_of
from edgellm.model.families.mixers import Attention
from edgellm.model.families.parts import Matrix, Norm, layer_norm, rms_norm, slices, whole
from edgellm.model.families.rotary import Rotary, rotary_of
from edgellm.model.families.spec import Layer, Spec

_ATTENTION, _MLP = "self_attn.", "mlp."


@dataclass(frozen=True)
class Norms:
    """A layer's norms by name, None where there is none. `offset` is added to their weights. `biased` ones are
    LayerNorms. `eps` is what the config calls their epsilon."""

    before_mixer: str | None = "input_layernorm"
    after_mixer: str | None = None
    before_feed_forward: str | None = "post_attention_layernorm"
    after_feed_forward: str | None = None
    offset: float = 0.0
    biased: bool = False
    eps: str = "rms_norm_eps"


@dataclass(frozen=True)
class Positions:
    """How layers know positions: the model's sets of rotary factors, and which of them a layer takes, None for none.
    `interleaved`: neighbours turn together. `query_scales` and `scale_every`: see Attention."""

    rotaries: tuple[Rotary, ...]
    of_layer: Callable[[int], int | None] = lambda layer: 0
    interleaved: bool = False
    query_scales: tuple[float, ...] = ()
    scale_every: int = 0


@dataclass(frozen=True)
class Scales:
    """What is multiplied or bounded: scores by `attention` (None: head_dim^-0.5), embeddings, what a layer adds, and
    logits; caps of 0 bound nothing."""

    attention: float | None = None
    attention_cap: float = 0.0
    embedding: float = 1.0
    residual: float = 1.0
    logits: float = 1.0
    logits_cap: float = 0.0


LLAMA_NORMS, NO_SCALES = Norms(), Scales()


def make_spec(
    config: Config, architecture: str, *, kv_heads: int | None, eps: float, max_seq_len: int, windows: Windows,
    qkv_bias: bool = False, o_bias: bool = False, mlp_bias: bool = False, qk_norm: bool = False,
    qk_norm_whole: bool = False, fused: bool = False, fused_mlp: bool = False, head_dim: int | None = None,
    partial_rotary: bool = False, activation: str = "silu", norms: Norms = LLAMA_NORMS, scales: Scales = NO_SCALES,
    positions: Positions | None = None, feed_forwards: Callable[[int], FeedForward] | None = None,
    defaults: Mapping[str, int] | None = None, tied: bool = False,
) -> Spec:  # fmt: skip
    """Return the Spec of a config.

    `kv_heads`, `eps`, `max_seq_len`, `head_dim`, `tied` and what `defaults` has by name are the family's defaults; None
    is as many as query heads, and hidden_size / heads. `qk_norm`: q and k are normed, each head, or `qk_norm_whole` all
    heads at once. `fused`: q, k and v are one matrix, and so are gate and up; `fused_mlp`: only gate and up.
    `partial_rotary`: the family reads partial_rotary_factor; `positions` replaces what rotary_of makes of the config.
    `feed_forwards` replaces the gated MLP, whose `activation` the caller checks unless it is silu. Raises
    UnsupportedError.
    """
    sizes = {"num_attention_heads": 32, "num_hidden_layers": 32, **(defaults or {})}
    hidden = config.count("hidden_size", default=sizes.get("hidden_size"))
    heads = config.count("num_attention_heads", default=sizes["num_attention_heads"])
    kv_heads = config.count("num_key_value_heads", default=kv_heads or heads)
    dim = config.count("head_dim", default=head_dim or hidden // heads)
    vocab = config.count("vocab_size", default=sizes.get("vocab_size"))
    max_seq_len = config.count("max_position_embeddings", default=max_seq_len)
    if activation == "silu":
        config.expect("hidden_act", "silu", "silu", "swish")
    if feed_forwards is None:
        inner = config.count("intermediate_size", default=sizes.get("intermediate_size"))
        mlp = gated_mlp(hidden, inner, mlp_bias, fused or fused_mlp, activation)
    q_rows, kv_rows = heads * dim, kv_heads * dim
    if fused:
        q, k, v = slices(f"{_ATTENTION}qkv_proj", (q_rows, kv_rows, kv_rows), hidden, qkv_bias)
    else:
        q = whole(f"{_ATTENTION}q_proj", q_rows, hidden, qkv_bias)
        k = whole(f"{_ATTENTION}k_proj", kv_rows, hidden, qkv_bias)
        v = whole(f"{_ATTENTION}v_proj", kv_rows, hidden, qkv_bias)
    o = whole(f"{_ATTENTION}o_proj", hidden, q_rows, o_bias)
    q_norm = k_norm = None
    if qk_norm or qk_norm_whole:
        q_norm = rms_norm(f"{_ATTENTION}q_norm", q_rows if qk_norm_whole else dim, norms.offset)
        k_norm = rms_norm(f"{_ATTENTION}k_norm", kv_rows if qk_norm_whole else dim, norms.offset)
    if positions is None:
        positions = Positions((rotary_of(config.content, dim, max_seq_len, partial=partial_rotary),))
    scale = dim**-0.5 if scales.attention is None else scales.attention

    def norm(name: str) -> Norm:
        return layer_norm(name, hidden) if norms.biased else rms_norm(name, hidden, norms.offset)

    def norm_if(name: str | None) -> Norm | None:
        return norm(name) if name else None

    def layer(i: int) -> Layer:
        return Layer(
            before_mixer=norm_if(norms.before_mixer),
            mixer=Attention(
                heads, kv_heads, dim, scale, windows(i), q, k, v, o, q_norm, k_norm, rope=positions.of_layer(i),
                interleaved=positions.interleaved, soft_cap=scales.attention_cap,
                query_scales=positions.query_scales, scale_every=positions.scale_every,
            ),
            before_feed_forward=norm_if(norms.before_feed_forward),
            feed_forward=feed_forwards(i) if feed_forwards else mlp,
            after_mixer=norm_if(norms.after_mixer),
            after_feed_forward=norm_if(norms.after_feed_forward),
            residual_scale=scales.residual,
        )  # fmt: skip

    num_layers = config.layers("num_hidden_layers", default=sizes["num_hidden_layers"])
    return Spec(
        model_type=config.content["model_type"],
        architecture=architecture,
        hidden_size=hidden,
        vocab_size=vocab,
        max_seq_len=max_seq_len,
        eps=config.number(norms.eps, eps),
        embedding=Matrix("model.embed_tokens.weight", vocab, hidden),
        position_embedding=None,
        layers=tuple(layer(i) for i in range(num_layers)),
        final_norm=norm("model.norm"),
        head=Matrix("lm_head.weight", vocab, hidden),
        tied=bool(config.content.get("tie_word_embeddings", tied)),
        rotaries=positions.rotaries,
        embed_scale=scales.embedding,
        logit_scale=scales.logits,
        logit_soft_cap=scales.logits_cap,
    )


def gated_mlp(hidden: int, inner: int, biased: bool, fused: bool, activation: str) -> GatedMlp:
    """Return an MLP with a gate; `fused`: gate and up are one matrix."""
    if fused:
        gate, up = slices(f"{_MLP}gate_up_proj", (inner, inner), hidden, biased)
    else:
        gate, up = (whole(f"{_MLP}{name}_proj", inner, hidden, biased) for name in ("gate", "up"))
    return GatedMlp(gate, up, whole(f"{_MLP}down_proj", hidden, inner, biased), activation)


def default_kv_heads(config: Config, default: int) -> int | None:
    """Return the default of num_key_value_heads where the family has one: null asks for as many as query heads."""
    return None if config.is_null("num_key_value_heads") else default


def same_window(config: Config, default: int | None) -> Windows:
    """Return the same window for every layer; none where `sliding_window` is null."""
    size = read_window(config, default)
    return lambda layer: size


def layer_windows(config: Config) -> Windows:
    """Return Qwen's windows: of the layers that `layer_types` names, or of those from `max_window_layers` on; none
    unless `use_sliding_window`."""
    size = read_window(config, 4096) if config.flag("use_sliding_window", False) else 0
    first = config.count("max_window_layers", default=28, least=0)
    num_layers = config.layers("num_hidden_layers", default=32)
    return windows_of(read_layer_types(config, num_layers, lambda layer: size > 0 and layer >= first), size)
