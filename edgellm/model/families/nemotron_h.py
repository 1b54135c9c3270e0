"""Nemotron-H: blocks of one part each, Mamba-2, attention without positions, an MLP, or experts. Pure."""

from edgellm.model.families.config import MAX_LAYERS, Config, UnsupportedError
from edgellm.model.families.expert_layers import check_groups
from edgellm.model.families.feed_forwards import Experts, FeedForward, PlainMlp, Router
from edgellm.model.families.mixers import Attention, Mamba2
from edgellm.model.families.parts import Matrix, Projection, Vector, rms_norm, whole
from edgellm.model.families.pieces import Piece
from edgellm.model.families.recurrent import layer_types, mamba2
from edgellm.model.families.spec import Layer, Spec

_FULL, _LINEAR, _MLP, _MOE = "full_attention", "linear_attention", "mlp", "moe"
_LETTERS = {"M": _LINEAR, "*": _FULL, "-": _MLP, "E": _MOE}


def nemotron_h(config: Config) -> Spec:
    """Return the Spec of a config of model_type nemotron_h; raises UnsupportedError."""
    hidden = config.count("hidden_size", default=4096)
    vocab = config.count("vocab_size", default=131072)
    mixers: dict[str, Attention | Mamba2] = {}
    feed_forwards: dict[str, FeedForward] = {}
    kinds = _kinds(config)
    for kind in sorted(set(kinds)):
        if kind == _FULL:
            mixers[kind] = _attention(config, hidden)
        elif kind == _LINEAR:
            mixers[kind] = _mamba(config, hidden)
        else:
            feed_forwards[kind] = _mlp(config, hidden) if kind == _MLP else _experts(config, hidden)
    norm = rms_norm("norm", hidden)
    layers = tuple(
        Layer(
            before_mixer=norm if kind in mixers else None, mixer=mixers.get(kind),
            before_feed_forward=norm if kind in feed_forwards else None, feed_forward=feed_forwards.get(kind),
        ) for kind in kinds
    )  # fmt: skip
    return Spec(
        model_type=config.content["model_type"], architecture="NemotronHForCausalLM", hidden_size=hidden,
        vocab_size=vocab, max_seq_len=config.count("max_position_embeddings", default=4096),
        eps=config.number("layer_norm_epsilon", 1e-5), embedding=Matrix("model.embeddings.weight", vocab, hidden),
        position_embedding=None, layers=layers, final_norm=rms_norm("model.norm_f", hidden),
        head=Matrix("lm_head.weight", vocab, hidden), tied=bool(config.content.get("tie_word_embeddings", False)),
        rotaries=(),
    )  # fmt: skip


def _kinds(config: Config) -> list[str]:
    """Return each block's type: from a list, or from a pattern with a letter each."""
    for name in ("layers_block_type", "layer_types"):
        named = config.get(name)
        if named is not None:
            count = len(named) if isinstance(named, list) else 0
            found = layer_types(config, name, count, (_FULL, _LINEAR, _MLP, _MOE)) or []
            break
    else:
        pattern = config.get("hybrid_override_pattern")
        pattern = "ME*-" if pattern is None else pattern
        if not isinstance(pattern, str) or not set(pattern) <= _LETTERS.keys():
            raise UnsupportedError(f"hybrid_override_pattern is {str(pattern)[:60]!r}")
        found = [_LETTERS[letter] for letter in pattern]
    if not 1 <= len(found) <= MAX_LAYERS:
        raise UnsupportedError(f"{len(found)} layers, expected 1 to {MAX_LAYERS}")
    return found


def _attention(config: Config, hidden: int) -> Attention:
    heads = config.count("num_attention_heads", default=32)
    kv_heads = config.count("num_key_value_heads", default=heads if config.is_null("num_key_value_heads") else 8)
    dim = config.count("head_dim", default=128)
    return Attention(
        heads, kv_heads, dim, dim**-0.5, 0, whole("mixer.q_proj", heads * dim, hidden),
        whole("mixer.k_proj", kv_heads * dim, hidden), whole("mixer.v_proj", kv_heads * dim, hidden),
        whole("mixer.o_proj", hidden, heads * dim), rope=None,
    )  # fmt: skip


def _mamba(config: Config, hidden: int) -> Mamba2:
    config.expect("mamba_hidden_act", "silu", "silu", "swish")
    conv_bias = "mamba_conv_bias" if "mamba_conv_bias" in config.content else "use_conv_bias"
    least = config.number("mamba_dt_min" if "mamba_dt_min" in config.content else "time_step_min", 0.001)
    return mamba2(
        "mixer", hidden, heads=config.count("mamba_num_heads", default=128),
        head_dim=config.count("mamba_head_dim", default=64), state_dim=config.count("ssm_state_size", default=128),
        groups=config.count("mamba_n_groups", "n_groups", default=8),
        kernel=config.count("mamba_d_conv", "conv_kernel", default=4), biased=config.flag("use_bias", False),
        conv_bias=config.flag(conv_bias, True), dt_limits=(least, float("inf")),
    )  # fmt: skip


def _mlp(config: Config, hidden: int) -> PlainMlp:
    return _plain(config, "mixer.", hidden, config.count("intermediate_size", default=21504))


def _plain(config: Config, at: str, hidden: int, inner: int) -> PlainMlp:
    config.expect("mlp_hidden_act", "relu2", "relu2")
    biased = config.flag("mlp_bias", False)
    up, down = whole(f"{at}up_proj", inner, hidden, biased), whole(f"{at}down_proj", hidden, inner, biased)
    return PlainMlp(up, down, "relu_squared")


def _experts(config: Config, hidden: int) -> Experts:
    """Return plain MLPs in groups, chosen by sigmoids with a correction, beside a shared one."""
    if config.get("moe_latent_size") is not None:
        raise UnsupportedError("its experts compute in a latent space (moe_latent_size)")
    count = config.count("n_routed_experts", "num_local_experts", default=8)
    top_k = config.count("num_experts_per_tok", default=2, most=count)
    router = Router(
        whole("mixer.gate", count, hidden), count, top_k, "sigmoid", config.flag("norm_topk_prob", True),
        config.number("routed_scaling_factor", 1.0),
        Vector("mixer.gate.e_score_correction_bias", count), config.count("n_group", default=1),
        config.count("topk_group", default=1),
    )  # fmt: skip
    check_groups(router)
    inner = config.count("moe_intermediate_size", default=7688)
    up, down = (
        Projection(Matrix(f"mixer.experts.{name}_proj.weight", rows, columns, count), 0, rows)
        for name, rows, columns in (("up", inner, hidden), ("down", hidden, inner))
    )
    pieces = tuple(
        Piece(part.weight.name, part.weight.name.removesuffix(".weight"), 0, 1, part.rows) for part in (up, down)
    )
    shared = config.count("moe_shared_expert_intermediate_size", default=7688)
    return Experts(
        router, None, up, down, "relu_squared", shared=_plain(config, "mixer.shared_experts.", hidden, shared),
        pieces=pieces,
    )  # fmt: skip
