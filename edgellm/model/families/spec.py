"""The native path's description of a model: one description per layer, and every tensor's name and shape. Pure.

A splitter needs no more than a Spec to write a model's shards. A later kind of mixer (gated delta rule, short
convolution, Mamba-2) or of feed-forward (experts) is a dataclass with the properties of `Attention` or `GatedMlp`, and
joins the union `Mixer` or `FeedForward`.
"""

from dataclasses import dataclass

from edgellm.model.families.rotary import Rotary

Shape = tuple[int, ...]  # [out, in] of a matrix, [size] of a vector


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns], stored as [out, in]."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True)
class Vector:
    """A norm's weight, or a bias."""

    name: str
    size: int


@dataclass(frozen=True)
class Projection:
    """Rows [first, first + rows) of `weight` and of `bias`: several projections may share one stored matrix."""

    weight: Matrix
    first: int
    rows: int
    bias: Vector | None = None

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        found: dict[str, Shape] = {self.weight.name: (self.weight.rows, self.weight.columns)}
        return found | ({self.bias.name: (self.bias.size,)} if self.bias else {})


@dataclass(frozen=True)
class Norm:
    """A LayerNorm if it has a bias, else an RMSNorm."""

    weight: Vector
    bias: Vector | None = None

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return {vector.name: (vector.size,) for vector in (self.weight, self.bias) if vector}


@dataclass(frozen=True)
class Attention:
    """Causal self-attention; `window` is how many tokens a token attends to, itself included, or 0 for all."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    q_norm: Norm | None = None  # over each head's dimensions, as k_norm
    k_norm: Norm | None = None

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return _merged(self.q, self.k, self.v, self.o, self.q_norm, self.k_norm)

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token's key and value take in a slot."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def state_bytes(self) -> int:
        """Bytes that a slot needs at any length: recurrent state, of which attention has none."""
        return 0

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules produce for one token."""
        rows = sum(part.rows for part in (self.q, self.k, self.v, self.o))
        return rows + (self.q.rows if self.q_norm else 0) + (self.k.rows if self.k_norm else 0)


@dataclass(frozen=True)
class GatedMlp:
    """down(silu(gate(x)) * up(x))."""

    gate: Projection
    up: Projection
    down: Projection

    @property
    def intermediate_size(self) -> int:
        return self.up.rows

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return _merged(self.gate, self.up, self.down)

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules, the activation function among them, produce for one token."""
        return self.gate.rows + 2 * self.up.rows + self.down.rows


@dataclass(frozen=True)
class PlainMlp:
    """down(gelu(up(x))), with GELU's tanh approximation."""

    up: Projection
    down: Projection

    @property
    def intermediate_size(self) -> int:
        return self.up.rows

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each stored tensor by name."""
        return _merged(self.up, self.down)

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that its modules, the activation function among them, produce for one token."""
        return 2 * self.up.rows + self.down.rows


Mixer = Attention
FeedForward = GatedMlp | PlainMlp


@dataclass(frozen=True)
class Layer:
    """x + mixer(before_mixer(x)), then the same with the feed-forward. Tensor names are relative to the layer."""

    before_mixer: Norm
    mixer: Mixer
    before_feed_forward: Norm
    feed_forward: FeedForward

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each tensor of the layer's shard by name; those of two dimensions may be packed."""
        return _merged(self.before_mixer, self.mixer, self.before_feed_forward, self.feed_forward)

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token's key and value take in a slot."""
        return self.mixer.kv_elements_per_token

    @property
    def state_bytes(self) -> int:
        """Bytes of recurrent state in a slot, independent of its length."""
        return self.mixer.state_bytes

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that the layer's modules produce for one token: a bound of what a pass needs at once."""
        norms = self.before_mixer.weight.size + self.before_feed_forward.weight.size
        return norms + self.mixer.activation_elements_per_token + self.feed_forward.activation_elements_per_token


@dataclass(frozen=True)
class Spec:
    """A model of a family that the native path knows. Tensors outside the layers have their names in transformers'
    model. `max_seq_len` is in tokens, `eps` that of all norms; GPT-2 has learned positions in place of rotary ones.

    `tied` says that the config ties the head to the embedding: then a source has one tensor for both, and the head's
    shard stores it again.
    """

    model_type: str
    architecture: str  # transformers' class
    hidden_size: int
    vocab_size: int
    max_seq_len: int
    eps: float
    embedding: Matrix
    position_embedding: Matrix | None
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Matrix
    tied: bool
    rotary: Rotary | None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def kv_elements_per_token(self) -> tuple[int, ...]:
        """Elements that a token's key and value take in a slot, one entry per layer."""
        return tuple(layer.kv_elements_per_token for layer in self.layers)

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that one layer's modules produce for one token, of the layer that produces most."""
        return max(layer.activation_elements_per_token for layer in self.layers)

    @property
    def rope_switch_len(self) -> int | None:
        """LongRoPE: sequences longer than this many tokens use other rotary factors from position 0 on; else None."""
        return self.rotary.switch_len if self.rotary else None

    @property
    def embedding_tensors(self) -> dict[str, Shape]:
        """Return the shape of each tensor of the embedding's shard by name."""
        return {m.name: (m.rows, m.columns) for m in (self.embedding, self.position_embedding) if m}

    @property
    def head_tensors(self) -> dict[str, Shape]:
        """Return the shape of each tensor of the head's shard by name."""
        return self.final_norm.tensors | {self.head.name: (self.head.rows, self.head.columns)}

    def shard_tensors(self, kind: str, layer: int | None = None) -> dict[str, Shape]:
        """Return the shape of each tensor by name in the shard of this `kind`, "embedding", "layer" or "head", and
        `layer`."""
        if kind == "layer":
            assert layer is not None
            return self.layers[layer].tensors
        return self.embedding_tensors if kind == "embedding" else self.head_tensors


def _merged(*parts: Projection | Norm | Attention | GatedMlp | PlainMlp | None) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for part in parts:
        found |= part.tensors if part else {}
    return found
