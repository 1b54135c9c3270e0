"""What llama, mistral, qwen2, qwen3 and phi3 share: RMSNorm, rotary attention, a gated MLP. Pure."""

from collections.abc import Callable

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.feed_forwards import GatedMlp
from edgellm.model.families.mixers import Attention
from edgellm.model.families.parts import Matrix, rms_norm, slices, whole
from edgellm.model.families.rotary import rotary_of
from edgellm.model.families.spec import Layer, Spec

Windows = Callable[[int], int]  # a layer's number → how many tokens its attention reaches, 0 for all
_ATTENTION, _MLP = "self_attn.", "mlp."


def make_spec(
    config: Config, architecture: str, *, kv_heads: int | None, eps: float, max_seq_len: int, windows: Windows,
    qkv_bias: bool = False, o_bias: bool = False, mlp_bias: bool = False, qk_norm: bool = False, fused: bool = False,
    head_dim: int | None = None, partial_rotary: bool = False,
) -> Spec:  # fmt: skip
    """Return the Spec of a config.

    `kv_heads`, `eps`, `max_seq_len` and `head_dim` are the family's defaults; None is as many as query heads, and
    hidden_size / heads. `fused`: q, k and v are one matrix, and so are gate and up. `partial_rotary`: the family reads
    partial_rotary_factor. Raises UnsupportedError.
    """
    hidden = config.count("hidden_size")
    heads = config.count("num_attention_heads", default=32)
    kv_heads = config.count("num_key_value_heads", default=kv_heads or heads)
    dim = config.count("head_dim", default=head_dim or hidden // heads)
    inner = config.count("intermediate_size")
    config.expect("hidden_act", "silu", "silu", "swish")
    vocab = config.count("vocab_size")
    max_seq_len = config.count("max_position_embeddings", default=max_seq_len)
    q_rows, kv_rows = heads * dim, kv_heads * dim
    if fused:
        q, k, v = slices(f"{_ATTENTION}qkv_proj", (q_rows, kv_rows, kv_rows), hidden, qkv_bias)
        gate, up = slices(f"{_MLP}gate_up_proj", (inner, inner), hidden, mlp_bias)
    else:
        q = whole(f"{_ATTENTION}q_proj", q_rows, hidden, qkv_bias)
        k = whole(f"{_ATTENTION}k_proj", kv_rows, hidden, qkv_bias)
        v = whole(f"{_ATTENTION}v_proj", kv_rows, hidden, qkv_bias)
        gate = whole(f"{_MLP}gate_proj", inner, hidden, mlp_bias)
        up = whole(f"{_MLP}up_proj", inner, hidden, mlp_bias)
    feed_forward = GatedMlp(gate, up, whole(f"{_MLP}down_proj", hidden, inner, mlp_bias))
    o = whole(f"{_ATTENTION}o_proj", hidden, q_rows, o_bias)
    q_norm = rms_norm(f"{_ATTENTION}q_norm", dim) if qk_norm else None
    k_norm = rms_norm(f"{_ATTENTION}k_norm", dim) if qk_norm else None

    def layer(i: int) -> Layer:
        return Layer(
            before_mixer=rms_norm("input_layernorm", hidden),
            mixer=Attention(heads, kv_heads, dim, dim**-0.5, windows(i), q, k, v, o, q_norm, k_norm),
            before_feed_forward=rms_norm("post_attention_layernorm", hidden),
            feed_forward=feed_forward,
        )

    return Spec(
        model_type=config.content["model_type"],
        architecture=architecture,
        hidden_size=hidden,
        vocab_size=vocab,
        max_seq_len=max_seq_len,
        eps=config.number("rms_norm_eps", eps),
        embedding=Matrix("model.embed_tokens.weight", vocab, hidden),
        position_embedding=None,
        layers=tuple(layer(i) for i in range(config.layers("num_hidden_layers", default=32))),
        final_norm=rms_norm("model.norm", hidden),
        head=Matrix("lm_head.weight", vocab, hidden),
        tied=bool(config.content.get("tie_word_embeddings", False)),
        rotaries=(rotary_of(config.content, dim, max_seq_len, partial=partial_rotary),),
    )


def default_kv_heads(config: Config, default: int) -> int | None:
    """Return the default of num_key_value_heads where the family has one: null asks for as many as query heads."""
    return None if config.is_null("num_key_value_heads") else default


def same_window(config: Config, default: int | None) -> Windows:
    """Return the same window for every layer; none where `sliding_window` is null."""
    size = 0
    if config.content.get("sliding_window", default) is not None:
        size = config.count("sliding_window", default=default)
    return lambda layer: size


def layer_windows(config: Config) -> Windows:
    """Return Qwen's windows: of the layers that `layer_types` names, or of those from `max_window_layers` on; none
    unless `use_sliding_window`."""
    size = 0
    if config.flag("use_sliding_window", False) and config.content.get("sliding_window", 4096) is not None:
        size = config.count("sliding_window", default=4096)
    first = config.count("max_window_layers", default=28, least=0)
    types = config.get("layer_types")
    if types is None:
        return lambda layer: size if layer >= first else 0
    sizes = {"full_attention": 0, "sliding_attention": size}
    num_layers = config.layers("num_hidden_layers", default=32)
    if not isinstance(types, list) or len(types) < num_layers or not all(isinstance(t, str) for t in types):
        raise UnsupportedError(f"layer_types is not a list with an entry for each of the {num_layers} layers")
    for name in types:
        if name not in sizes:
            raise UnsupportedError(f"a layer is of type {name[:60]!r}, the native path knows {', '.join(sizes)}")
    if not size and "sliding_attention" in types:
        raise UnsupportedError("layers have a sliding window, but its size isn't given")
    return lambda layer: sizes[types[layer]]

