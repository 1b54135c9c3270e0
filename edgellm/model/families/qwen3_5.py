"""Qwen3.5's text model, dense and with experts, and Qwen3-Next: three layers of the gated delta rule to one of
attention with gates. Pure."""

from collections.abc import Callable

from edgellm.model.families.config import Config
from edgellm.model.families.expert_layers import gated_mlp, is_sparse, qwen_experts
from edgellm.model.families.feed_forwards import FeedForward
from edgellm.model.families.mixers import Attention, Mixer
from edgellm.model.families.mtp import with_mtp
from edgellm.model.families.parts import Matrix, rms_norm, whole
from edgellm.model.families.recurrent import delta_rule, layer_types
from edgellm.model.families.rotary import Rotary, rotary_of
from edgellm.model.families.spec import Layer, Spec

_FULL, _LINEAR = "full_attention", "linear_attention"


def qwen3_5_text(config: Config) -> Spec:
    """Return the Spec of a config of model_type qwen3_5_text; raises UnsupportedError."""
    config = Config({"hidden_size": 4096, **config.content})
    dense = gated_mlp("mlp.", config.count("hidden_size"), config.count("intermediate_size", default=12288))
    return _make_spec(
        config, "Qwen3_5ForCausalLM", lambda layer: dense, dense, vocab=248320, layers=32, kv_heads=4
    )  # fmt: skip


def qwen3_5_moe_text(config: Config) -> Spec:
    """Return the Spec of a config of model_type qwen3_5_moe_text; raises UnsupportedError."""
    config = Config({"hidden_size": 2048, **config.content})
    experts = qwen_experts(config, top_k=8, count=256, inner=512, normalises=None, shared_inner=512)
    return _make_spec(
        config, "Qwen3_5MoeForCausalLM", lambda layer: experts, experts, vocab=248320, layers=40, kv_heads=2
    )  # fmt: skip


def qwen3_next(config: Config) -> Spec:
    """Return the Spec of a config of model_type qwen3_next; raises UnsupportedError."""
    config = Config({"hidden_size": 2048, **config.content})
    dense = gated_mlp("mlp.", config.count("hidden_size"), config.count("intermediate_size", default=5632))
    experts = qwen_experts(config, top_k=10, count=512, inner=512, normalises=True, shared_inner=512)
    return _make_spec(
        config, "Qwen3NextForCausalLM", lambda layer: experts if is_sparse(config, layer) else dense, experts,
        vocab=151936, layers=48, kv_heads=2, interleaved=True,
    )  # fmt: skip


def _make_spec(
    config: Config, architecture: str, feed_forwards: Callable[[int], FeedForward], of_mtp: FeedForward, *, vocab: int,
    layers: int, kv_heads: int, interleaved: bool = False,
) -> Spec:  # fmt: skip
    """Return the Spec of a config; numbers are the family's defaults. `of_mtp` is the feed-forward of the layer that
    drafts, whose mixer is attention."""
    hidden = config.count("hidden_size")
    vocab = config.count("vocab_size", default=vocab)
    num_layers = config.layers("num_hidden_layers", default=layers)
    max_seq_len = config.count("max_position_embeddings", default=32768)
    config.expect("hidden_act", "silu", "silu", "swish")
    mixers: dict[str, Mixer] = {
        _FULL: gated_attention(config, hidden, kv_heads), _LINEAR: delta_rule(config, hidden, interleaved=interleaved)
    }  # fmt: skip

    def layer(kind: str, feed_forward: FeedForward) -> Layer:
        return Layer(
            before_mixer=rms_norm("input_layernorm", hidden, 1.0), mixer=mixers[kind],
            before_feed_forward=rms_norm("post_attention_layernorm", hidden, 1.0), feed_forward=feed_forward,
        )  # fmt: skip

    spec = Spec(
        model_type=config.content["model_type"], architecture=architecture, hidden_size=hidden,
        vocab_size=vocab, max_seq_len=max_seq_len, eps=config.number("rms_norm_eps", 1e-6),
        embedding=Matrix("model.embed_tokens.weight", vocab, hidden), position_embedding=None,
        layers=tuple(layer(kind, feed_forwards(i)) for i, kind in enumerate(kinds_of_layers(config, num_layers))),
        final_norm=rms_norm("model.norm", hidden, 1.0), head=Matrix("lm_head.weight", vocab, hidden),
        tied=bool(config.content.get("tie_word_embeddings", False)), rotaries=(quarter_rotary(config, max_seq_len),),
    )  # fmt: skip
    return with_mtp(spec, config, layer(_FULL, of_mtp))


def kinds_of_layers(config: Config, num_layers: int) -> list[str]:
    """Return each layer's type: as layer_types says, or attention in every full_attention_interval-th layer."""
    interval = config.count("full_attention_interval", default=4)
    named = layer_types(config, "layer_types", num_layers, (_FULL, _LINEAR))
    return named or [_LINEAR if (i + 1) % interval else _FULL for i in range(num_layers)]


def gated_attention(config: Config, hidden: int, kv_heads: int) -> Attention:
    """Return attention whose query heads each have as many gates; norms of q and k are stored as their distance from
    1."""
    heads = config.count("num_attention_heads", default=16)
    kv_heads = config.count("num_key_value_heads", default=kv_heads)
    dim = config.count("head_dim", default=256)
    biased = config.flag("attention_bias", False)
    at = "self_attn."
    return Attention(
        heads, kv_heads, dim, dim**-0.5, 0, whole(f"{at}q_proj", 2 * heads * dim, hidden, biased),
        whole(f"{at}k_proj", kv_heads * dim, hidden, biased), whole(f"{at}v_proj", kv_heads * dim, hidden, biased),
        whole(f"{at}o_proj", hidden, heads * dim, biased), rms_norm(f"{at}q_norm", dim, 1.0),
        rms_norm(f"{at}k_norm", dim, 1.0), gated=True,
    )  # fmt: skip


def quarter_rotary(config: Config, max_seq_len: int) -> Rotary:
    """Return rotary factors of a quarter of each head, unless the config says another part. Sections of positions, for
    images (mrope), are all the same for text."""
    dim = config.count("head_dim", default=256)
    return rotary_of({"partial_rotary_factor": 0.25, **config.content}, dim, max_seq_len, partial=True)
