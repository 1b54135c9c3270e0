"""What families with recurrent layers share: their parts by the names that transformers gives them. Pure."""

from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.mixers import DeltaRule, Mamba2
from edgellm.model.families.parts import Vector, rms_norm, whole

_RENAMED = {"mamba": "linear_attention", "attention": "full_attention"}  # in configs older than transformers 5


def layer_types(config: Config, name: str, num_layers: int, known: tuple[str, ...]) -> list[str] | None:
    """Return the type of each layer by its present name, or None where the config names none. Raises UnsupportedError
    for a type that isn't one of those `known`."""
    types = config.get(name)
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != num_layers or not all(isinstance(t, str) for t in types):
        raise UnsupportedError(f"{name} is not a list with an entry for each of the {num_layers} layers")
    types = [_RENAMED.get(t, t) for t in types]
    for found in types:
        if found not in known:
            raise UnsupportedError(f"a layer is of type {found[:60]!r}, the native path knows {', '.join(known)}")
    return types


def conv_of(name: str, channels: int, kernel: int) -> Vector:
    """Return the weight of a convolution of one channel each."""
    return Vector(f"{name}.weight", channels * kernel, (channels, 1, kernel))


def delta_rule(config: Config, hidden: int, *, interleaved: bool) -> DeltaRule:
    """Return the gated delta rule that Qwen3-Next (`interleaved`: rows by key head) and Qwen3.5 call linear_attn."""
    key_heads = config.count("linear_num_key_heads", default=16)
    value_heads = config.count("linear_num_value_heads", default=32)
    key_dim = config.count("linear_key_head_dim", default=128)
    value_dim = config.count("linear_value_head_dim", default=128)
    kernel = config.count("linear_conv_kernel_dim", default=4)
    if value_heads % key_heads:
        raise UnsupportedError(f"{value_heads} heads of values over {key_heads} of keys")
    tiled = config.flag("linear_value_heads_tiled", False)  # so in a GGUF; transformers knows no such thing
    if tiled and interleaved:
        raise UnsupportedError("heads of values that are tiled, in rows by key head")
    inner = value_heads * value_dim
    channels, at = 2 * key_heads * key_dim + inner, "linear_attn."
    if interleaved:
        qkv, z = whole(f"{at}in_proj_qkvz", channels + inner, hidden), None
        b, a = whole(f"{at}in_proj_ba", 2 * value_heads, hidden), None
    else:
        qkv, z = whole(f"{at}in_proj_qkv", channels, hidden), whole(f"{at}in_proj_z", inner, hidden)
        b, a = whole(f"{at}in_proj_b", value_heads, hidden), whole(f"{at}in_proj_a", value_heads, hidden)
    return DeltaRule(
        channels=channels, kernel=kernel, key_heads=key_heads, value_heads=value_heads, key_dim=key_dim,
        value_dim=value_dim, qkv=qkv, z=z, a=a, b=b, out=whole(f"{at}out_proj", hidden, inner),
        conv=conv_of(f"{at}conv1d", channels, kernel), a_log=Vector(f"{at}A_log", value_heads),
        dt_bias=Vector(f"{at}dt_bias", value_heads), norm=rms_norm(f"{at}norm", value_dim), tiled=tiled,
    )  # fmt: skip


def mamba2(
    name: str, hidden: int, *, heads: int, head_dim: int, groups: int, state_dim: int, kernel: int, biased: bool,
    conv_bias: bool, dt_limits: tuple[float, float],
) -> Mamba2:  # fmt: skip
    """Return the Mamba-2 mixer `name` with transformers' names. In its gated norm, silu(z) comes first, then a norm
    over each group."""
    if heads % groups:
        raise UnsupportedError(f"{heads} heads in {groups} groups")
    inner = heads * head_dim
    channels = inner + 2 * groups * state_dim
    return Mamba2(
        channels=channels, kernel=kernel, heads=heads, head_dim=head_dim, groups=groups, state_dim=state_dim,
        inner=whole(f"{name}.in_proj", inner + channels + heads, hidden, biased),
        out=whole(f"{name}.out_proj", hidden, inner, biased), conv=conv_of(f"{name}.conv1d", channels, kernel),
        conv_bias=Vector(f"{name}.conv1d.bias", channels) if conv_bias else None,
        a_log=Vector(f"{name}.A_log", heads), dt_bias=Vector(f"{name}.dt_bias", heads), d=Vector(f"{name}.D", heads),
        norm=rms_norm(f"{name}.norm", inner), norm_groups=groups, dt_limits=dt_limits,
    )  # fmt: skip
