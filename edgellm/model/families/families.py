"""Which configs the native path can run, and how: a table of families, from config.json to a Spec. Pure.

A config is read as transformers' config class of its model_type reads it: the same keys, the same defaults. Whatever it
says that isn't in the table makes the section generic, with a reason.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass

from edgellm.model.families.rotary import Rotary, UnknownRotary, rotary_of

_MOST = 1 << 24  # of any size
_LANES = 16  # the kernels take sizes that are multiples of it (ops.h: LANE_COUNT)
_MOST_HEAD_DIM = _MOST_HEADS = 1024
_MOST_GROUP = 64  # query heads that share a kv head (ops.h: MOST_ROWS)


class _Unknown(Exception):
    """Says why a config the native path can't run a config."""


@dataclass(frozen=True)
class Part:
    """Rows [first, first + rows) of a layer's weight `name`; its bias is in the tensor `bias`, if it has one."""

    name: str
    first: int
    rows: int
    columns: int
    bias: str | None = None


@dataclass(frozen=True)
class NormPart:
    """A norm's tensors; with a bias it is a LayerNorm, without an RMSNorm."""

    weight: str
    bias: str | None = None


@dataclass(frozen=True)
class Spec:
    """What the native section needs to know of a model. Names are those in the shards.

    `gate` is None for a plain MLP, `down(gelu(up(x)))`. `windows` and `attention_scales` have one entry a layer; a
    window of 0 is none. `positions` counts GPT-2's learned positions. `shapes` has every tensor of a layer.
    """

    model_type: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    num_layers: int
    max_seq_len: int
    eps: float
    q: Part
    k: Part
    v: Part
    o: Part
    gate: Part | None
    up: Part
    down: Part
    before_attention: NormPart
    before_mlp: NormPart
    q_norm: str | None
    k_norm: str | None
    final_norm: NormPart
    embedding: str
    position_embedding: str | None
    head: str
    rotary: Rotary | None
    windows: tuple[int, ...]
    attention_scales: tuple[float, ...]

    @property
    def kv_elements_per_token(self) -> tuple[int, ...]:
        return (2 * self.kv_heads * self.head_dim,) * self.num_layers

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(p for p in (self.q, self.k, self.v, self.o, self.gate, self.up, self.down) if p)

    @property
    def layer_weights(self) -> dict[str, tuple[int, int]]:
        """Shape [out, in] of each matrix of a layer."""
        rows: dict[str, int] = {}
        for part in self.parts:
            rows[part.name] = max(rows.get(part.name, 0), part.first + part.rows)
        return {part.name: (rows[part.name], part.columns) for part in self.parts}

    @property
    def layer_vectors(self) -> dict[str, int]:
        """Length of each vector of a layer: norms and biases."""
        found = {}
        for norm in (self.before_attention, self.before_mlp):
            found |= {name: self.hidden for name in (norm.weight, norm.bias) if name}
        found |= {name: self.head_dim for name in (self.q_norm, self.k_norm) if name}
        for part in self.parts:
            if part.bias:
                found[part.bias] = max(found.get(part.bias, 0), part.first + part.rows)
        return found


def find_spec(config) -> tuple[Spec | None, str]:
    """The Spec of the content of a config.json, or None and why it has to be the generic path."""
    if not isinstance(config, dict):
        return None, "its config is no JSON object"
    model_type = config.get("model_type")
    make = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if make is None:
        return None, f"{str(model_type)[:60]} is none of {', '.join(_FAMILIES)}"
    try:
        spec = make(_Config(config))
        _check(spec)
    except (_Unknown, UnknownRotary) as e:
        return None, f"{model_type}: {e}"
    return spec, ""


def _check(spec: Spec) -> None:
    for name in ("hidden", "head_dim", "intermediate"):
        if getattr(spec, name) % _LANES:
            raise _Unknown(f"{name} is {getattr(spec, name)}, no multiple of {_LANES}")
    if spec.head_dim > _MOST_HEAD_DIM:
        raise _Unknown(f"head_dim is {spec.head_dim}, at most {_MOST_HEAD_DIM}")
    if spec.heads > _MOST_HEADS:
        raise _Unknown(f"{spec.heads} heads, at most {_MOST_HEADS}")
    if spec.heads % spec.kv_heads or spec.heads // spec.kv_heads > _MOST_GROUP:
        raise _Unknown(f"{spec.heads} heads over {spec.kv_heads} of keys and values")


class _Config:
    """A config's values by name, checked; a missing one or null is the default."""

    def __init__(self, content: dict):
        self.content = content

    def get(self, *names: str):
        """The first of these that is there and not null."""
        return next((self.content[n] for n in names if self.content.get(n) is not None), None)

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        value = self.get(*names)
        value = default if value is None else value
        if type(value) is not int or not least <= value < _MOST:
            raise _Unknown(f"{names[0]} is {reprlib.repr(value)}, expected a number from {least} on")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.get(name)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 <= value < 1e30:
            raise _Unknown(f"{name} is {reprlib.repr(value)}, expected a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.content.get(name, default)
        if type(value) is not bool:
            raise _Unknown(f"{name} is {reprlib.repr(value)}, expected true or false")
        return value

    def expect(self, name: str, default, *allowed) -> None:
        value = self.content.get(name, default)
        if value not in allowed or type(value) is bool and value is not default:
            raise _Unknown(f"{name} is {reprlib.repr(value)}, the native path knows {', '.join(map(repr, allowed))}")


def _llama_like(
    config: _Config, *, layers: int, kv_heads: int | None, eps: float, max_len: int, window: Callable,
    qkv_bias: bool = False, o_bias: bool = False, mlp_bias: bool = False, qk_norm: bool = False, fused: bool = False,
    head_dim: int | None = None, takes_head_dim: bool = True, partial_rotary: bool = False,
) -> Spec:  # fmt: skip
    hidden = config.count("hidden_size", default=None)
    heads = config.count("num_attention_heads", default=32)
    kv_heads = config.count("num_key_value_heads", default=kv_heads or heads)
    own = config.get("head_dim") if takes_head_dim else None
    dim = config.count("head_dim") if own is not None else head_dim or hidden // heads
    inner = config.count("intermediate_size", default=None)
    config.expect("hidden_act", "silu", "silu", "swish")
    num_layers = config.count("num_hidden_layers", default=layers)
    max_len = config.count("max_position_embeddings", default=max_len)
    attention, mlp = "self_attn.", "mlp."

    def part(name: str, rows: int, columns: int, biased: bool, first: int = 0) -> Part:
        return Part(f"{name}.weight", first, rows, columns, f"{name}.bias" if biased else None)

    q_rows, kv_rows = heads * dim, kv_heads * dim
    if fused:
        name = attention + "qkv_proj"
        q = part(name, q_rows, hidden, qkv_bias)
        k = part(name, kv_rows, hidden, qkv_bias, q_rows)
        v = part(name, kv_rows, hidden, qkv_bias, q_rows + kv_rows)
        gate = part(mlp + "gate_up_proj", inner, hidden, mlp_bias)
        up = part(mlp + "gate_up_proj", inner, hidden, mlp_bias, inner)
    else:
        q = part(attention + "q_proj", q_rows, hidden, qkv_bias)
        k = part(attention + "k_proj", kv_rows, hidden, qkv_bias)
        v = part(attention + "v_proj", kv_rows, hidden, qkv_bias)
        gate = part(mlp + "gate_proj", inner, hidden, mlp_bias)
        up = part(mlp + "up_proj", inner, hidden, mlp_bias)
    return Spec(
        model_type=config.content["model_type"], hidden=hidden, heads=heads, kv_heads=kv_heads, head_dim=dim,
        intermediate=inner, vocab=config.count("vocab_size", default=None), num_layers=num_layers, max_seq_len=max_len,
        eps=config.number("rms_norm_eps", eps),
        q=q, k=k, v=v, o=part(attention + "o_proj", hidden, q_rows, o_bias),
        gate=gate, up=up, down=part(mlp + "down_proj", hidden, inner, mlp_bias),
        before_attention=NormPart("input_layernorm.weight"), before_mlp=NormPart("post_attention_layernorm.weight"),
        q_norm=attention + "q_norm.weight" if qk_norm else None,
        k_norm=attention + "k_norm.weight" if qk_norm else None,
        final_norm=NormPart("model.norm.weight"), embedding="model.embed_tokens.weight", position_embedding=None,
        head="lm_head.weight", rotary=rotary_of(config.content, dim, max_len, partial=partial_rotary),
        windows=tuple(window(i) for i in range(num_layers)), attention_scales=(dim**-0.5,) * num_layers,
    )  # fmt: skip


def _one_window(config: _Config, default: int | None) -> Callable:
    """The same window in every layer; 0 where `sliding_window` is null."""
    value = config.content.get("sliding_window", default)
    size = 0 if value is None else config.count("sliding_window", default=default)
    return lambda layer: size


def _layer_windows(config: _Config) -> Callable:
    """Qwen's: `layer_types`, or from `max_window_layers` on; none unless `use_sliding_window`."""
    if not config.flag("use_sliding_window", False):
        size = 0
    else:
        size = 0 if config.content.get("sliding_window", 4096) is None else config.count("sliding_window", default=4096)
    first = config.count("max_window_layers", default=28, least=0)
    types = config.get("layer_types")
    if types is None:
        return lambda layer: size if layer >= first else 0
    names = {"full_attention": 0, "sliding_attention": size}
    num_layers = config.count("num_hidden_layers", default=32)
    if not isinstance(types, list) or len(types) < num_layers or not all(isinstance(t, str) for t in types):
        raise _Unknown("layer_types is no list with an entry a layer")
    for name in types:
        if name not in names:
            raise _Unknown(f"a layer is of type {name[:60]!r}, the native path knows {', '.join(names)}")
    if not size and "sliding_attention" in types:
        raise _Unknown("layers have a sliding window, but its size isn't given")
    return lambda layer: names[types[layer]]


def _llama(config: _Config) -> Spec:
    bias = config.flag("attention_bias", False)
    return _llama_like(
        config, layers=32, kv_heads=None, eps=1e-6, max_len=2048, window=lambda layer: 0,
        qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False),
    )  # fmt: skip


def _mistral(config: _Config) -> Spec:
    # An explicit null asks for as many as query heads.
    kv_heads = None if config.content.get("num_key_value_heads", 8) is None else 8
    return _llama_like(
        config, layers=32, kv_heads=kv_heads, eps=1e-6, max_len=131072, window=_one_window(config, 4096)
    )


def _qwen2(config: _Config) -> Spec:
    kv_heads = None if config.content.get("num_key_value_heads", 32) is None else 32
    return _llama_like(
        config, layers=32, kv_heads=kv_heads, eps=1e-6, max_len=32768, window=_layer_windows(config), qkv_bias=True,
    )


def _qwen3(config: _Config) -> Spec:
    kv_heads = None if config.content.get("num_key_value_heads", 32) is None else 32
    bias = config.flag("attention_bias", False)
    return _llama_like(
        config, layers=32, kv_heads=kv_heads, eps=1e-6, max_len=32768, window=_layer_windows(config),
        qkv_bias=bias, o_bias=bias, qk_norm=True, head_dim=128,
    )  # fmt: skip


def _phi3(config: _Config) -> Spec:
    return _llama_like(
        config, layers=32, kv_heads=None, eps=1e-5, max_len=4096, window=_one_window(config, None), fused=True,
        partial_rotary=True,
    )


def _gpt2(config: _Config) -> Spec:
    hidden = config.count("n_embd", "hidden_size", default=768)
    heads = config.count("n_head", "num_attention_heads", default=12)
    num_layers = config.count("n_layer", "num_hidden_layers", default=12)
    positions = config.count("n_positions", "max_position_embeddings", default=1024)
    inner = config.count("n_inner", default=4 * hidden)
    config.expect("activation_function", "gelu_new", "gelu_new", "gelu_pytorch_tanh")
    if config.flag("add_cross_attention", False):
        raise _Unknown("add_cross_attention is true")
    if hidden % heads:
        raise _Unknown(f"{hidden} dimensions for {heads} heads")
    dim = hidden // heads
    scale = dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    inverse = config.flag("scale_attn_by_inverse_layer_idx", False)

    def part(name: str, rows: int, columns: int, first: int = 0) -> Part:
        return Part(f"{name}.weight", first, rows, columns, f"{name}.bias")

    def norm(name: str) -> NormPart:
        return NormPart(f"{name}.weight", f"{name}.bias")

    return Spec(
        model_type="gpt2", hidden=hidden, heads=heads, kv_heads=heads, head_dim=dim, intermediate=inner,
        vocab=config.count("vocab_size", default=50257), num_layers=num_layers, max_seq_len=positions,
        eps=config.number("layer_norm_epsilon", 1e-5),
        q=part("attn.c_attn", hidden, hidden), k=part("attn.c_attn", hidden, hidden, hidden),
        v=part("attn.c_attn", hidden, hidden, 2 * hidden), o=part("attn.c_proj", hidden, hidden),
        gate=None, up=part("mlp.c_fc", inner, hidden), down=part("mlp.c_proj", hidden, inner),
        before_attention=norm("ln_1"), before_mlp=norm("ln_2"), q_norm=None, k_norm=None,
        final_norm=norm("transformer.ln_f"), embedding="transformer.wte.weight",
        position_embedding="transformer.wpe.weight", head="lm_head.weight", rotary=None, windows=(0,) * num_layers,
        attention_scales=tuple(scale / (layer + 1 if inverse else 1) for layer in range(num_layers)),
    )  # fmt: skip


_FAMILIES = {
    "gpt2": _gpt2, "llama": _llama, "mistral": _mistral, "phi3": _phi3, "qwen2": _qwen2, "qwen3": _qwen3,
}  # fmt: skip
