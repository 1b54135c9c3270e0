"""Qwen3.5's text model: three layers of the gated delta rule to one of attention with gates. Pure."""

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.feed_forwards import GatedMlp
from edgellm.model.families.mixers import Attention
from edgellm.model.families.parts import Matrix, rms_norm, whole
from edgellm.model.families.recurrent import delta_rule, layer_types
from edgellm.model.families.rotary import rotary_of
from edgellm.model.families.spec import Layer, Spec

_FULL, _LINEAR = "full_attention", "linear_attention"


def qwen3_5(config: Config) -> Spec:
    """Return the Spec of a config of model_type qwen3_5, which has the text model's in text_config; raises
    UnsupportedError."""
    inner = config.content.get("text_config")
    if not isinstance(inner, dict):
        raise UnsupportedError("it has no text_config")
    tied = config.content.get("tie_word_embeddings", False)
    return qwen3_5_text(Config({"tie_word_embeddings": tied, **inner, "model_type": config.content["model_type"]}))


def qwen3_5_text(config: Config) -> Spec:
    """Return the Spec of a config of model_type qwen3_5_text; raises UnsupportedError."""
    hidden = config.count("hidden_size", default=4096)
    vocab = config.count("vocab_size", default=248320)
    num_layers = config.layers("num_hidden_layers", default=32)
    max_seq_len = config.count("max_position_embeddings", default=32768)
    inner = config.count("intermediate_size", default=12288)
    config.expect("hidden_act", "silu", "silu", "swish")
    feed_forward = GatedMlp(
        whole("mlp.gate_proj", inner, hidden), whole("mlp.up_proj", inner, hidden),
        whole("mlp.down_proj", hidden, inner),
    )  # fmt: skip
    mixers = {_FULL: gated_attention(config, hidden), _LINEAR: delta_rule(config, hidden, interleaved=False)}
    layers = tuple(
        Layer(
            before_mixer=rms_norm("input_layernorm", hidden, 1.0), mixer=mixers[kind],
            before_feed_forward=rms_norm("post_attention_layernorm", hidden, 1.0), feed_forward=feed_forward,
        ) for kind in kinds_of_layers(config, num_layers)
    )  # fmt: skip
    return Spec(
        model_type=config.content["model_type"], architecture="Qwen3_5ForCausalLM", hidden_size=hidden,
        vocab_size=vocab, max_seq_len=max_seq_len, eps=config.number("rms_norm_eps", 1e-6),
        embedding=Matrix("model.embed_tokens.weight", vocab, hidden), position_embedding=None, layers=layers,
        final_norm=rms_norm("model.norm", hidden, 1.0), head=Matrix("lm_head.weight", vocab, hidden),
        tied=bool(config.content.get("tie_word_embeddings", False)), rotaries=(quarter_rotary(config, max_seq_len),),
    )  # fmt: skip


def kinds_of_layers(config: Config, num_layers: int) -> list[str]:
    """Return each layer's type: as layer_types says, or attention in every full_attention_interval-th layer."""
    interval = config.count("full_attention_interval", default=4)
    named = layer_types(config, "layer_types", num_layers, (_FULL, _LINEAR))
    return named or [_LINEAR if (i + 1) % interval else _FULL for i in range(num_layers)]


def gated_attention(config: Config, hidden: int) -> Attention:
    """Return attention whose query heads each have as many gates; norms of q and k are stored as their distance from
    1."""
    heads = config.count("num_attention_heads", default=16)
    kv_heads = config.count("num_key_value_heads", default=4)
    dim = config.count("head_dim", default=256)
    biased = config.flag("attention_bias", False)
    at = "self_attn."
    return Attention(
        heads, kv_heads, dim, dim**-0.5, 0, whole(f"{at}q_proj", 2 * heads * dim, hidden, biased),
        whole(f"{at}k_proj", kv_heads * dim, hidden, biased), whole(f"{at}v_proj", kv_heads * dim, hidden, biased),
        whole(f"{at}o_proj", hidden, heads * dim, biased), rms_norm(f"{at}q_norm", dim, 1.0),
        rms_norm(f"{at}k_norm", dim, 1.0), gated=True,
    )  # fmt: skip


def quarter_rotary(config: Config, max_seq_len: int):
    """Return rotary factors of a quarter of each head, unless the config says another part. Sections of positions, for
    images (mrope), are all the same for text."""
    dim = config.count("head_dim", default=256)
    return rotary_of({"partial_rotary_factor": 0.25} | config.content, dim, max_seq_len, partial=True)
