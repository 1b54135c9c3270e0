"""Sections of any shape as the C ABI takes them, of random bytes, and hypothesis strategies for what goes into them."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from edgellm.kernels.abi import constants, ffi
from edgellm.kernels.library import ENCODINGS, weight_bytes
from edgellm.model.native.abi import Fields, Struct, floats, new_layers, new_section
from tests.native_abi import new

KEYS = constants.KEYS
ATTENDS = ["interleaved", "gated", "soft cap", "sinks", "values are keys", "value norm"]
PLAIN, PACKED = ["bf16", "f16", "f32"], ["int4", "int4s", "int8"]


@dataclass(frozen=True)
class Shape:
    """Sizes and features of a section, as in abi.h; those of a layer in lists."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    intermediate: int
    vocab: int
    positions: int
    context: int
    encodings: tuple[str, ...]
    ends: str
    kv: str
    gated: tuple[bool, ...]
    windows: tuple[int, ...]
    layer_norm: bool
    biases: bool
    qk_norm: str
    attends: tuple[str, ...]
    activation: int
    odd: bool
    has_embedding: bool
    has_head: bool
    values: str
    seed: int

    @property
    def kv_bytes(self) -> int:
        padded = -(-self.context // KEYS) * KEYS
        return 2 * len(self.gated) * padded * self.kv_heads * self.head_dim * (2 if self.kv == "f16" else 4)


@st.composite
def shapes(draw) -> Shape:
    """Any shape that the library takes, small."""
    layers = draw(st.integers(1, 3))
    packed = draw(st.booleans())
    group = draw(st.sampled_from([1, 2, 3, 7, 64]))
    kv_heads = draw(st.integers(1, 3)) if group < 64 else 1
    head_dim = 16 * draw(st.integers(1, 3 if group < 64 else 1))
    unit = 32 if packed else 16
    if kv_heads * group * head_dim % unit:
        head_dim = 32
    encoding = st.sampled_from(PACKED + PLAIN if packed else PLAIN)
    each = {"min_size": layers, "max_size": layers}
    has_head = draw(st.booleans())
    return Shape(
        hidden=unit * draw(st.integers(1, 3)), heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim,
        rotary_dim=2 * draw(st.integers(0, head_dim // 2)), intermediate=unit * draw(st.integers(1, 9)),
        vocab=draw(st.integers(1, 40)), positions=draw(st.sampled_from([0, 90])),
        context=draw(st.sampled_from([1, 16, 17, 64, 70])), encodings=tuple(draw(st.lists(encoding, **each))),
        ends=draw(encoding), kv=draw(st.sampled_from(["f16", "f32"])),
        gated=tuple(draw(st.lists(st.booleans(), **each))),
        windows=tuple(draw(st.lists(st.sampled_from([0, 1, 5, 64, 2**64 - 1]), **each))),
        layer_norm=draw(st.booleans()), biases=draw(st.booleans()), qk_norm=draw(st.sampled_from(["", "head", "all"])),
        attends=tuple(draw(st.lists(st.sampled_from(ATTENDS), unique=True))), activation=draw(st.integers(0, 2)),
        odd=draw(st.booleans()),
        has_embedding=draw(st.booleans()), has_head=has_head,
        values=draw(st.sampled_from(["ordinary", "huge", "zeros", "any"])), seed=draw(st.integers(0, 2**32 - 1)),
    )  # fmt: skip


@dataclass
class Made:
    """What describes a section, and the memory that it points to: as long as it says, and no longer."""

    shape: Shape
    spec: Struct = field(default_factory=lambda: new_section({}))
    layers: Struct = None
    kept: list = field(default_factory=list)

    @classmethod
    def of(cls, shape: Shape) -> "Made":
        made = cls(shape)
        made._rng = np.random.default_rng(shape.seed)
        s, spec = shape, made.spec
        for name in ("hidden", "vocab", "positions"):
            setattr(spec, name, getattr(s, name))
        spec.num_layers, spec.eps = len(s.gated), 1e-5
        spec.embed_scale, spec.logit_scale, spec.logit_soft_cap = (1.5, 0.75, 30.0) if s.odd else (1.0, 1.0, 0.0)
        layers = new_layers(len(s.gated))
        for i in range(len(s.gated)):
            layers[i] = made._layer(i)
        spec.layers = made.layers = layers
        if s.has_embedding:
            spec.embedding = made._weight(s.ends, s.vocab, s.hidden)
            if s.positions:
                spec.position_embedding = made._weight(s.ends, s.positions, s.hidden)
        if s.has_head:
            spec.head, spec.final_norm = made._weight(s.ends, s.vocab, s.hidden), made._norm()
        return made

    def floats(self, *shape: int) -> np.ndarray:
        """Values of the shape's kind."""
        if self.shape.values == "any":
            return self._rng.integers(0, 256, (*shape[:-1], 4 * shape[-1]), dtype=np.uint8).view(np.float32)
        scale = {"ordinary": 1, "huge": 1e38, "zeros": 0}[self.shape.values]
        return (self._rng.uniform(-1, 1, shape) * scale).astype(np.float32)

    def step(self, tokens: int, position: int, logits: int, kv: np.ndarray) -> Struct:
        encoding = ENCODINGS[self.shape.kv]
        return new(
            "StepSpec", tokens=tokens, position=position, logits=logits, slot=kv.ctypes.data, slot_bytes=kv.nbytes,
            context=self.shape.context, kv_encoding=encoding,
        )  # fmt: skip

    def slot(self) -> np.ndarray:
        return np.zeros(self.shape.kv_bytes // 4, np.float32)

    def _keep(self, array: np.ndarray) -> np.ndarray:
        self.kept.append(array)
        return array

    def _floats(self, count: int, wanted: bool = True) -> Fields:
        return floats(self._keep(self.floats(count)) if wanted else None)

    def _norm(self) -> Fields:
        bias = self._floats(self.shape.hidden, self.shape.layer_norm)
        return {"weight": self._floats(self.shape.hidden), "bias": bias}

    def _weight(self, encoding: str, out: int, columns: int, biased: bool = False, first: int = 0) -> Fields:
        """Rows from `first` on of one of first + out rows."""
        size = weight_bytes(encoding, (first + out, columns))
        if encoding == "f32":
            data = self.floats(first + out, columns)
        else:
            data = self._rng.integers(0, 256, size, dtype=np.uint8)
            if self.shape.values != "any":
                data &= 0xBB  # no half is infinite
        self._keep(data)
        bias = self._floats(out, biased)
        return {
            "data": ffi.cast("void *", data.ctypes.data), "bytes": size, "out": first + out, "in": columns,
            "first": first, "rows": out, "encoding": ENCODINGS[encoding], "bias": bias,
        }  # fmt: skip

    def _layer(self, index: int) -> Fields:
        s = self.shape
        attention, mlp = self._attention(s.encodings[index], s.windows[index]), self._mlp(s.encodings[index], index)
        layer = dict(
            before_mixer=self._norm(), before_feed_forward=self._norm(), mixer=constants.ATTENTION,
            attention=attention, mlp=mlp, residual_scale=1.0, output_scale=1.0,
        )  # fmt: skip
        if s.odd:
            layer |= dict(after_mixer=self._norm(), residual_scale=0.5, output_scale=1.25)
            del layer["before_feed_forward"]
        return layer

    def _attention(self, encoding: str, window: int) -> Fields:
        s, biased = self.shape, self.shape.biases
        q, kv, has = s.heads * s.head_dim, s.kv_heads * s.head_dim, s.attends.__contains__
        gated = has("gated") and s.qk_norm != "all"
        shared = has("values are keys") and not biased
        counts = (q, kv) if s.qk_norm == "all" else (s.head_dim, s.head_dim)
        q_norm, k_norm = (self._floats(count, bool(s.qk_norm)) for count in counts)
        return dict(
            heads=s.heads, kv_heads=s.kv_heads, head_dim=s.head_dim, rotary_dim=s.rotary_dim,
            rope=0 if s.rotary_dim else constants.NO_ROPE, window=window, interleaved=has("interleaved"), gated=gated,
            scale=0.25, soft_cap=20.0 if has("soft cap") else 0.0,
            q=self._weight(encoding, q * (1 + gated), s.hidden, biased),
            k=self._weight(encoding, kv, s.hidden, biased, 16),
            v={} if shared else self._weight(encoding, kv, s.hidden, biased),
            o=self._weight(encoding, s.hidden, q, biased), q_norm=q_norm, k_norm=k_norm,
            v_norm=self._floats(s.head_dim, has("value norm")), sinks=self._floats(s.heads, has("sinks")),
        )  # fmt: skip

    def _mlp(self, encoding: str, index: int) -> Fields:
        s, biased, gated = self.shape, self.shape.biases, self.shape.gated[index]
        kinds = (constants.SILU, constants.GELU_TANH, constants.SWIGLU_CLAMPED)
        kinds = kinds if gated else (constants.RELU_SQUARED, constants.GELU_TANH, constants.GELU_TANH)
        mlp = dict(
            activation=kinds[s.activation], limit=7.0,
            up=self._weight(encoding, s.intermediate, s.hidden, biased, 32),
            down=self._weight(encoding, s.hidden, s.intermediate, biased),
        )  # fmt: skip
        if gated:
            mlp["gate"] = self._weight(encoding, s.intermediate, s.hidden, biased)
        return mlp
