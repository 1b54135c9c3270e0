"""The parts of a layer that mix tokens: attention, and recurrent ones that remember a state. Pure.

Each mixer says what it stores by name, what a slot holds for it, and how many weights a token touches.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from edgellm.kernels.abi import constants
from edgellm.model.families.parts import Norm, Projection, Shape, Vector, merged, stored
from edgellm.model.families.pieces import HeadRows, Piece, Tiled
from edgellm.shards.slot_memory import kv_bytes

_LOG_TOKENS: int = constants.LOG_TOKENS
_HEADER_BYTES: int = constants.STATE_HEADER_BYTES
_BEYOND_WINDOW: int = constants.MOST_TOKENS - constants.RING  # a ring has RING more than it is asked for
_LINE = 64  # a layer's part of a slot is a multiple of it


@dataclass(frozen=True)
class Attention:
    """Causal self-attention; `window` is how many tokens a token attends to, itself included, or 0 for all.

    `scale` multiplies scores, and `soft_cap`, where it isn't 0, bounds them: cap * tanh(score / cap). `rope` counts the
    model's sets of rotary factors; None turns nothing. `interleaved`: pairs of neighbours turn, not of halves. `sinks`
    has one score a head that takes its share of the softmax, and no value. `gated`: the rows of `q` are for each head
    its queries and then as many gates, whose sigmoid multiplies what the head gives. Without `v`, values are what `k`
    gives, before its norm. Norms of queries, keys and values go over each head's dimensions if they are as many, else
    over all heads at once; a norm of values needs no weight (`v_norm` says that there is one). Queries of the positions
    from n * `scale_every` on are multiplied by query_scales[n], where there are any.

    With `source`, the number of an earlier layer of the model, queries see that layer's keys and values, and there is
    no `k` or `v`. Layers that others see so are `shared`: they keep a call's tokens beyond their window, because all of
    them are stored before another layer looks back. `received` is the number of a layer before the section whose keys
    and values come with the tokens (Spec.within).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int
    q: Projection
    k: Projection | None
    v: Projection | None
    o: Projection
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    v_norm: bool = False
    rope: int | None = 0
    interleaved: bool = False
    soft_cap: float = 0.0
    sinks: Vector | None = None
    gated: bool = False
    query_scales: tuple[float, ...] = ()
    scale_every: int = 0
    source: int | None = None
    shared: bool = False
    received: int | None = None

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Return which of its tensors transformers has in another way: none."""
        return ()

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with."""
        return tuple(part for part in (self.q, self.k, self.v, self.o) if part)

    @property
    def kept_tokens(self) -> int:
        """How many of the last tokens a slot has to keep, 0 for all or none."""
        if self.source is not None:
            return 0
        return self.window + _BEYOND_WINDOW if self.window and self.shared else self.window

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return merged(*self.projections, self.q_norm, self.k_norm) | stored(self.sinks)

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token's key and value take in a slot."""
        return 2 * self.kv_heads * self.head_dim if self.source is None else 0

    @property
    def kv_scales_per_token(self) -> int:
        """Scales of a token's key and value in 8 bits: one each a head."""
        return 2 * self.kv_heads if self.source is None else 0

    def slot_bytes(self, context: int, kv_dtype: str) -> int:
        """Return the bytes of a slot of `context` tokens that are this mixer's."""
        return kv_bytes(self.kv_elements_per_token, self.kv_scales_per_token, self.kept_tokens, context, kv_dtype)

    @property
    def state_bytes(self) -> int:
        """Bytes that a slot needs at any length: recurrent state, of which attention has none."""
        return 0

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules produce for one token."""
        rows = sum(part.rows for part in self.projections)
        return rows + (self.q.rows if self.q_norm else 0) + (self.k.rows if self.k and self.k_norm else 0)


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2 and V3, GLM-4.7-Flash): arXiv 2405.04434.

    The first `rank` rows of `kv_a`, normed, are a token's latent, which all heads share; the last `rope_dim` ones are
    the part of its key that turns. A slot keeps only these. The rows of `q` are for each head `nope_dim` of its query
    that don't turn, then `rope_dim` that do. With `q_a`, `q` takes q_norm(q_a(x)) in place of x. Each head has its own
    matrices in `k_b` [heads, rank, nope_dim] and `v_b` [heads, value_dim, rank]. The first brings its query into the
    space of latents, and the second brings the weighed sum of latents out of it:
        score = scale * (k_b(q that doesn't turn) . latent + (q that turns) . key),  and o takes v_b(sum p * latent).
    `eps` is that of both norms. transformers has k_b, transposed, and v_b as one tensor `kv_b`.
    """

    heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    rank: int
    scale: float
    q_a: Projection | None
    q: Projection
    kv_a: Projection
    k_b: Projection
    v_b: Projection
    o: Projection
    q_norm: Norm | None
    kv_norm: Norm
    kv_b: str
    eps: float = 1e-6
    rope: int = 0
    interleaved: bool = True

    @property
    def pieces(self) -> tuple[HeadRows, ...]:
        """Return which of its tensors transformers has as one."""
        rows = self.heads * (self.nope_dim + self.value_dim)
        k_b, v_b = self.k_b.weight.name, self.v_b.weight.name
        return (
            HeadRows(k_b, self.kv_b, 0, count=self.nope_dim, step=1, rows=rows, heads=self.heads, transposed=True),
            HeadRows(v_b, self.kv_b, self.nope_dim, count=self.value_dim, step=1, rows=rows, heads=self.heads),
        )

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with, those of all heads among them."""
        return tuple(part for part in (self.q_a, self.q, self.kv_a, self.k_b, self.v_b, self.o) if part)

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return merged(*self.projections, self.q_norm, self.kv_norm)

    @property
    def kept_tokens(self) -> int:
        """How many of the last tokens a slot has to keep, or 0 for all."""
        return 0

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token takes in a slot: its latent, and the part of its key that turns."""
        return self.rank + self.rope_dim

    @property
    def kv_scales_per_token(self) -> int:
        """Scales of a token in 8 bits: one for its latent, one for the part that turns."""
        return 2

    def slot_bytes(self, context: int, kv_dtype: str) -> int:
        """Return the bytes of a slot of `context` tokens that are this mixer's."""
        return kv_bytes(self.kv_elements_per_token, self.kv_scales_per_token, 0, context, kv_dtype)

    @property
    def state_bytes(self) -> int:
        """Bytes that a slot needs at any length: recurrent state, of which attention has none."""
        return 0

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules produce for one token."""
        down = 2 * self.q_a.rows if self.q_a else 0
        each = self.nope_dim + 2 * self.rank + self.rope_dim + self.value_dim
        return down + self.q.rows + self.kv_a.rows + self.heads * each + self.o.rows


@dataclass(frozen=True)
class Recurrent(ABC):
    """What the recurrent mixers share: a causal convolution over the last `kernel` tokens of each of `channels`, and a
    state of `state_elements` floats. A slot keeps both three times (now, at the checkpoint, and where a prompt came
    to a multiple of CHECKPOINT_TOKENS last), and what came in since the checkpoint, up to LOG_TOKENS tokens of
    `log_elements` (kernels/abi.h)."""

    channels: int
    kernel: int

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Return which of its tensors transformers has in another way: none."""
        return ()

    @property
    @abstractmethod
    def state_elements(self) -> int:
        """Floats of the state."""

    @property
    @abstractmethod
    def log_elements(self) -> int:
        """Floats of a token in the log."""

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token takes in a slot: none, because the state has one size."""
        return 0

    @property
    def kv_scales_per_token(self) -> int:
        """Scales of a token's key and value: it has none."""
        return 0

    @property
    def kept_tokens(self) -> int:
        """How many of the last tokens a slot has to keep: it has no window."""
        return 0

    def slot_bytes(self, context: int, kv_dtype: str) -> int:
        """Return the bytes of a slot of `context` tokens that are this mixer's."""
        return self.state_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes that a slot needs at any length, in float32."""
        needed = _HEADER_BYTES + 4 * (3 * self.remembered_elements + _LOG_TOKENS * self.log_elements)
        return -(-needed // _LINE) * _LINE

    @property
    def remembered_elements(self) -> int:
        """Elements of the state and of the convolution's last tokens: what a checkpoint keeps."""
        return self.state_elements + (self.kernel - 1) * self.channels


@dataclass(frozen=True)
class DeltaRule(Recurrent):
    """The gated delta rule (Qwen3-Next, Qwen3.5): arXiv 2412.06464.

    q, k and v of a token are `qkv`'s rows, [key_heads * key_dim] twice, then [value_heads * value_dim], after the
    convolution and silu. With q and k normed to length 1, q scaled by key_dim^-0.5, g = -exp(a_log) * softplus(a +
    dt_bias) and beta = sigmoid(b), a value head's state S [key_dim, value_dim] becomes
    S = e^g S;  S += k (beta (v - k S))^T,  and gives q S; then an RMSNorm over the head, times silu(z), goes to `out`.

    A key head serves value_heads / key_heads value heads, which follow each other; if `tiled`, value head h belongs to
    key head h % key_heads. Without `z` and `a`, rows lie by key head: those of `qkv` are its q, k, values and z, and
    those of `b` its b and a. The convolution's channels are always all q, all k, all v.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    qkv: Projection
    z: Projection | None
    a: Projection | None
    b: Projection
    out: Projection
    conv: Vector  # [channels, 1, kernel]
    a_log: Vector
    dt_bias: Vector
    norm: Norm
    tiled: bool = False

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Return which of its tensors transformers has in another order."""
        if not self.tiled:
            return ()
        assert self.z and self.a, "rows by key head aren't tiled"
        keys, dim = 2 * self.key_heads * self.key_dim, self.value_dim
        gates = (self.a.weight.name, self.b.weight.name, self.a_log.name, self.dt_bias.name)
        rows = {self.qkv.weight.name: (keys, dim), self.z.weight.name: (0, dim), self.conv.name: (keys, dim)}
        rows |= dict.fromkeys(gates, (0, 1))
        heads, out = (self.value_heads, self.key_heads), self.out.weight.name
        return (
            *(Tiled(name, name, first, each, heads[0], key_heads=heads[1]) for name, (first, each) in rows.items()),
            Tiled(out, out, 0, dim, heads[0], transposed=True, key_heads=heads[1]),
        )

    @property
    def interleaved(self) -> bool:
        """Whether rows lie by key head."""
        return self.z is None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with."""
        return tuple(part for part in (self.qkv, self.z, self.a, self.b, self.out) if part)

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return merged(*self.projections, self.norm) | stored(self.conv, self.a_log, self.dt_bias)

    @property
    def state_elements(self) -> int:
        return self.value_heads * self.key_dim * self.value_dim

    @property
    def log_elements(self) -> int:
        return self.channels + 2 * self.value_heads

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules produce for one token."""
        return 2 * sum(part.rows for part in self.projections)


@dataclass(frozen=True)
class ShortConv(Recurrent):
    """LFM2's short convolution: (b, c, x) = inner(x); out(c * conv(b * x)), each of `channels`; no state beside the
    convolution's."""

    inner: Projection  # rows: b, c, x
    out: Projection
    conv: Vector  # [channels, 1, kernel]
    conv_bias: Vector | None = None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with."""
        return (self.inner, self.out)

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return merged(*self.projections) | stored(self.conv, self.conv_bias)

    @property
    def state_elements(self) -> int:
        return 0

    @property
    def log_elements(self) -> int:
        return self.channels

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules produce for one token."""
        return 2 * sum(part.rows for part in self.projections)


@dataclass(frozen=True)
class Mamba2(Recurrent):
    """Mamba-2 (Granite 4, Nemotron-H): arXiv 2405.21060.

    `inner`'s rows are z [heads * head_dim], then x, B and C [channels], then dt [heads]. x, B [groups * state_dim] and
    C come out of the convolution and silu. With dt = softplus(dt + dt_bias) within `dt_limits`, a head's state S
    [head_dim, state_dim] becomes exp(-exp(a_log) dt) S + dt x B^T, and gives S C + d x. Then times silu(z), and an
    RMSNorm over each of `norm_groups` groups; `gate_first` says that silu(z) multiplies before the norm.
    """

    heads: int
    head_dim: int
    groups: int
    state_dim: int
    inner: Projection
    out: Projection
    conv: Vector  # [channels, 1, kernel]
    conv_bias: Vector | None
    a_log: Vector
    dt_bias: Vector
    d: Vector
    norm: Norm
    norm_groups: int = 1
    gate_first: bool = True
    dt_limits: tuple[float, float] = (0.0, float("inf"))

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with."""
        return (self.inner, self.out)

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        vectors = stored(self.conv, self.conv_bias, self.a_log, self.dt_bias, self.d)
        return merged(*self.projections, self.norm) | vectors

    @property
    def state_elements(self) -> int:
        return self.heads * self.head_dim * self.state_dim

    @property
    def log_elements(self) -> int:
        return self.channels + self.heads

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules produce for one token."""
        return 2 * sum(part.rows for part in self.projections)


Mixer = Attention | LatentAttention | DeltaRule | ShortConv | Mamba2
