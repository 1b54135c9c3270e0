"""Sections of any shape as the C ABI takes them, of random bytes, and hypothesis strategies for what goes into them."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from edgellm.kernels.abi import constants, ffi
from edgellm.kernels.library import ENCODINGS, weight_bytes
from edgellm.model.native.abi import Fields, Struct, floats, new_layers, new_section
from tests.native_abi import new

KEYS = constants.KEYS
ATTENDS = ["interleaved", "gated", "soft cap", "sinks", "values are keys", "value norm", "query scales"]
PLAIN, PACKED = ["bf16", "f16", "f32"], ["int4", "int4s", "int8", "q5_0", "q5_1", "iq4_nl", "mxfp4"]


RECURRENT = [constants.DELTA_RULE, constants.SHORT_CONV, constants.MAMBA2]


@dataclass(frozen=True)
class Recurrent:
    """Sizes and features of a recurrent mixer, as in abi.h."""

    kind: int
    kernel: int
    key_heads: int
    each: int  # value heads of a key head
    key_dim: int
    value_dim: int
    order: str  # of a delta rule's heads: "tiled", "interleaved" or ""
    norm_groups: int
    gate_first: bool
    conv_bias: bool

    @property
    def value_heads(self) -> int:
        return self.key_heads * self.each

    @property
    def inner(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        return self.inner + (0 if self.kind == constants.SHORT_CONV else 2 * self.key_heads * self.key_dim)

    @property
    def bytes(self) -> int:
        """Of a slot: the header, three times what is remembered, and the log, filled up to lines."""
        gates = {constants.DELTA_RULE: 2, constants.MAMBA2: 1}.get(self.kind, 0) * self.value_heads
        state = self.value_heads * self.key_dim * self.value_dim if gates else 0
        floats = 3 * ((self.kernel - 1) * self.channels + state) + constants.LOG_TOKENS * (self.channels + gates)
        return -(-(constants.STATE_HEADER_BYTES + 4 * floats) // 64) * 64


@st.composite
def recurrents(draw, unit: int) -> Recurrent:
    """Any recurrent mixer that the library takes, small."""
    return Recurrent(
        kind=draw(st.sampled_from(RECURRENT)), kernel=draw(st.integers(1, constants.MOST_KERNEL)),
        key_heads=draw(st.integers(1, 3)), each=draw(st.integers(1, 3)), key_dim=16 * draw(st.integers(1, 2)),
        value_dim=unit * draw(st.integers(1, 3)), order=draw(st.sampled_from(["", "tiled", "interleaved"])),
        norm_groups=draw(st.sampled_from([1, 2])), gate_first=draw(st.booleans()), conv_bias=draw(st.booleans()),
    )  # fmt: skip


@dataclass(frozen=True)
class Experts:
    """How many experts there are in place of an MLP, or beside it, and how they are chosen, as in abi.h."""

    groups: int
    each: int  # experts of a group
    top_groups: int
    top_k: int
    scoring: int
    normalise: bool
    corrected: bool
    shared: bool
    shared_gate: bool
    router: str  # its encoding

    @property
    def count(self) -> int:
        return self.groups * self.each


@st.composite
def experts(draw, encoding) -> Experts:
    """Any experts that the library takes, few; `encoding` draws the router's."""
    groups = draw(st.integers(1, 4))
    each, top_groups = draw(st.integers(2 if groups > 1 else 1, 6)), draw(st.integers(1, groups))
    return Experts(
        groups, each, top_groups, draw(st.integers(1, each * top_groups)), draw(st.integers(0, constants.SCORINGS - 1)),
        *(draw(st.booleans()) for _ in range(4)), draw(encoding),
    )  # fmt: skip


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
    recurrent: tuple[Recurrent | None, ...] = ()  # in place of attention; none at all if it is empty
    experts: tuple[Experts | None, ...] = ()

    def is_recurrent(self, layer: int) -> bool:
        return bool(self.recurrent) and self.recurrent[layer] is not None

    def slot_bytes(self, layer: int) -> int:
        """Bytes that a slot has for a layer."""
        if self.is_recurrent(layer):
            return self.recurrent[layer].bytes
        kept, window = -(-self.context // KEYS) * KEYS, self.windows[layer]
        if 0 < window < self.context:
            kept = min(kept, -(-(window + constants.RING) // constants.RING) * constants.RING)
        each, scale = {"f16": (2, 0), "f32": (4, 0), "int8": (1, 4)}[self.kv]
        return 2 * kept * self.kv_heads * (self.head_dim * each + scale)


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
        vocab=draw(st.integers(1, 40)), positions=draw(st.sampled_from([0, 160])),
        context=draw(st.sampled_from([1, 16, 17, 64, 70, 150])), encodings=tuple(draw(st.lists(encoding, **each))),
        ends=draw(encoding), kv=draw(st.sampled_from(["f16", "f32", "int8"])),
        gated=tuple(draw(st.lists(st.booleans(), **each))),
        windows=tuple(draw(st.lists(st.sampled_from([0, 1, 5, 64, 2**64 - 1]), **each))),
        layer_norm=draw(st.booleans()), biases=draw(st.booleans()), qk_norm=draw(st.sampled_from(["", "head", "all"])),
        attends=tuple(draw(st.lists(st.sampled_from(ATTENDS), unique=True))), activation=draw(st.integers(0, 2)),
        odd=draw(st.booleans()),
        has_embedding=draw(st.booleans()), has_head=has_head,
        values=draw(st.sampled_from(["ordinary", "huge", "zeros", "any"])), seed=draw(st.integers(0, 2**32 - 1)),
        recurrent=tuple(draw(st.lists(st.none() | recurrents(unit), **each))),
        experts=tuple(draw(st.lists(st.none() | experts(encoding), **each))),
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

    def slot(self, num_layers: int | None = None) -> np.ndarray:
        """Return a slot for the first layers, all by default."""
        layers = range(len(self.shape.gated) if num_layers is None else num_layers)
        size = sum(self.shape.slot_bytes(i) for i in layers if self.layers[i].mixer != constants.NO_MIXER)
        return np.zeros(max(1, size // 4), np.float32)[: size // 4]

    def _keep(self, array: np.ndarray) -> np.ndarray:
        self.kept.append(array)
        return array

    def _floats(self, count: int, wanted: bool = True) -> Fields:
        return floats(self._keep(self.floats(count)) if wanted else None)

    def _norm(self) -> Fields:
        bias = self._floats(self.shape.hidden, self.shape.layer_norm)
        return {"weight": self._floats(self.shape.hidden), "bias": bias}

    def _weight(
        self, encoding: str, out: int, columns: int, biased: bool = False, first: int = 0, experts: int = 0
    ) -> Fields:
        """Rows from `first` on of one of first + out rows, or of each expert's."""
        size = weight_bytes(encoding, (first + out, columns)) * max(1, experts)
        if encoding == "f32":
            data = self.floats(max(1, experts) * (first + out), columns)
        else:
            data = self._rng.integers(0, 256, size, dtype=np.uint8)
            if self.shape.values != "any":
                data &= 0xBB  # no half is infinite
        self._keep(data)
        bias = self._floats(out * max(1, experts), biased)
        return {
            "data": ffi.cast("void *", data.ctypes.data), "bytes": size, "out": first + out, "in": columns,
            "first": first, "rows": out, "experts": experts, "encoding": ENCODINGS[encoding], "bias": bias,
        }  # fmt: skip

    def _layer(self, index: int) -> Fields:
        s = self.shape
        layer = dict(
            before_mixer=self._norm(), before_feed_forward=self._norm(), mixer=constants.ATTENTION,
            residual_scale=1.0, output_scale=1.0,
        )  # fmt: skip
        chosen = s.experts[index] if s.experts else None
        if chosen is None or chosen.shared:
            layer["mlp"] = self._mlp(s.encodings[index], index)
        if chosen:
            layer["experts"] = self._experts(s.encodings[index], index, chosen)
        if s.is_recurrent(index):
            recurrent = s.recurrent[index]
            layer |= dict(mixer=recurrent.kind, recurrent=self._recurrent(s.encodings[index], recurrent))
        else:
            layer["attention"] = self._attention(s.encodings[index], s.windows[index])
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
            query_scales=self._floats(-(-s.context // 16), has("query scales")),
            scale_every=16 if has("query scales") else 0,
        )  # fmt: skip

    def _recurrent(self, encoding: str, r: Recurrent) -> Fields:
        s, biased = self.shape, self.shape.biases
        common = dict(
            channels=r.channels, kernel=r.kernel, conv=self._floats(r.kernel * r.channels),
            out=self._weight(encoding, s.hidden, r.inner, biased),
        )  # fmt: skip
        if r.kind == constants.SHORT_CONV:
            projections = {"in": self._weight(encoding, 3 * r.channels, s.hidden, biased)}
            return common | projections | {"conv_bias": self._floats(r.channels, r.conv_bias)}
        common |= dict(
            key_heads=r.key_heads, value_heads=r.value_heads, key_dim=r.key_dim, value_dim=r.value_dim,
            rate=self._floats(r.value_heads), dt_bias=self._floats(r.value_heads),
        )  # fmt: skip
        if r.kind == constants.MAMBA2:
            rows = r.inner + r.channels + r.value_heads
            groups = r.norm_groups if r.inner % (16 * r.norm_groups) == 0 else 1
            return common | {
                "in": self._weight(encoding, rows, s.hidden, biased), "d": self._floats(r.value_heads),
                "conv_bias": self._floats(r.channels, r.conv_bias), "norm": self._floats(r.inner),
                "norm_groups": groups, "gate_first": r.gate_first, "least_dt": 0.1, "most_dt": 0.9,
            }  # fmt: skip
        common |= dict(norm=self._floats(r.value_dim), tiled=r.order == "tiled", interleaved=r.order == "interleaved")
        if r.order == "interleaved":
            return common | {"in": self._weight(encoding, r.channels + r.inner, s.hidden),
                             "b": self._weight(encoding, 2 * r.value_heads, s.hidden)}  # fmt: skip
        return common | {
            "in": self._weight(encoding, r.channels, s.hidden),
            "z": self._weight(encoding, r.inner, s.hidden, first=16),
            "a": self._weight(encoding, r.value_heads, s.hidden), "b": self._weight(encoding, r.value_heads, s.hidden),
        }  # fmt: skip

    def _experts(self, encoding: str, index: int, e: Experts) -> Fields:
        s, biased = self.shape, self.shape.biases
        gate = self._weight(e.router, 1, s.hidden, biased) if e.shared and e.shared_gate else {}
        return dict(
            count=e.count, top_k=e.top_k, groups=e.groups, top_groups=e.top_groups, normalise=e.normalise,
            scoring=e.scoring, scale=1.5, router=self._weight(e.router, e.count, s.hidden, biased),
            correction=self._floats(e.count, e.corrected), experts=self._mlp(encoding, index, e.count),
            shared_gate=gate,
        )  # fmt: skip

    def _mlp(self, encoding: str, index: int, experts: int = 0) -> Fields:
        s, biased, gated = self.shape, self.shape.biases, self.shape.gated[index]
        kinds = (constants.SILU, constants.GELU_TANH, constants.SWIGLU_CLAMPED)
        kinds = kinds if gated else (constants.RELU_SQUARED, constants.GELU_TANH, constants.GELU_TANH)
        mlp = dict(
            activation=kinds[s.activation], limit=7.0,
            up=self._weight(encoding, s.intermediate, s.hidden, biased, 32, experts),
            down=self._weight(encoding, s.hidden, s.intermediate, biased, 0, experts),
        )  # fmt: skip
        if gated:
            mlp["gate"] = self._weight(encoding, s.intermediate, s.hidden, biased, 0, experts)
        return mlp
