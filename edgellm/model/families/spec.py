"""The native path's description of a model: one description per layer, and every tensor's name and shape. Pure.

A splitter needs no more than a Spec to write a model's shards. parts.py, mixers.py and feed_forwards.py have what
layers are made of.
"""

from dataclasses import dataclass, replace

from edgellm.model.families.feed_forwards import Experts, FeedForward
from edgellm.model.families.mixers import Attention, Mixer
from edgellm.model.families.mtp import Mtp
from edgellm.model.families.parts import Matrix, Norm, Projection, Shape, Vector, merged, stored
from edgellm.model.families.per_layer import PerLayer
from edgellm.model.families.pieces import Piece, Slice
from edgellm.model.families.rotary import Rotary


@dataclass(frozen=True)
class Layer:
    """x += residual_scale * after_mixer(mixer(before_mixer(x))), then the same with the feed-forward; either may be
    missing, and so may each norm. Then what `per_layer` has of the token's id is added, if anything. Last, x is
    multiplied by `output_scale`, a stored value, where there is one. Tensor names are relative to the layer."""

    before_mixer: Norm | None
    mixer: Mixer | None
    before_feed_forward: Norm | None
    feed_forward: FeedForward | None
    after_mixer: Norm | None = None
    after_feed_forward: Norm | None = None
    residual_scale: float = 1.0
    output_scale: Vector | None = None
    per_layer: PerLayer | None = None

    @property
    def norms(self) -> tuple[Norm, ...]:
        norms = (self.before_mixer, self.after_mixer, self.before_feed_forward, self.after_feed_forward)
        return tuple(norm for norm in norms if norm)

    @property
    def tensors(self) -> dict[str, Shape]:
        """Return the shape of each tensor of the layer's shard by name; matrices may be packed."""
        found = merged(*self.norms) | stored(self.output_scale)
        for part in (self.mixer, self.feed_forward, self.per_layer):
            found |= part.tensors if part else {}
        return found

    @property
    def source(self) -> int | None:
        """The number of the layer whose keys and values this one sees in place of its own, if there is one."""
        return self.mixer.source if isinstance(self.mixer, Attention) else None

    @property
    def kv_elements_per_token(self) -> int:
        """Elements that a token's key and value take in a slot."""
        return self.mixer.kv_elements_per_token if self.mixer else 0

    @property
    def state_bytes(self) -> int:
        """Bytes of recurrent state in a slot, independent of its length."""
        return self.mixer.state_bytes if self.mixer else 0

    @property
    def kv_scales_per_token(self) -> int:
        """Scales that a token's key and value have in a slot of 8 bits."""
        return self.mixer.kv_scales_per_token if self.mixer else 0

    @property
    def kv_window_tokens(self) -> int:
        """How many of the last tokens a slot has to keep, or 0 for all."""
        return self.mixer.kept_tokens if self.mixer else 0

    def slot_bytes(self, context: int, kv_dtype: str) -> int:
        """Return the bytes of a slot of `context` tokens that are this layer's."""
        return self.mixer.slot_bytes(context, kv_dtype) if self.mixer else 0

    @property
    def projections(self) -> tuple[Projection, ...]:
        """The matrices that every token is multiplied with: all but experts' own."""
        parts = (self.mixer, self.feed_forward, self.per_layer)
        return tuple(projection for part in parts if part for projection in part.projections)

    @property
    def experts(self) -> Experts | None:
        return self.feed_forward if isinstance(self.feed_forward, Experts) else None

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Return which of its tensors transformers holds as parts of others."""
        parts = (self.mixer, self.feed_forward)
        return tuple(piece for part in parts if part for piece in part.pieces)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Return which of its tensors transformers has for all layers in one."""
        return self.per_layer.slices if self.per_layer else ()

    @property
    def kept(self) -> frozenset[str]:
        """Return the names of matrices that aren't to be quantized: routers, and shared experts' gates. They are small,
        and an expert that is chosen wrongly is a large error."""
        if self.experts is None:
            return frozenset()
        parts = (self.experts.router.weight, self.experts.shared_gate)
        return frozenset(part.weight.name for part in parts if part)

    @property
    def matrices(self) -> dict[str, Matrix]:
        """Return the layer's matrices by name: what may be packed."""
        experts = self.experts.expert_projections if self.experts else ()
        found = {part.weight.name: part.weight for part in (*self.projections, *experts)}
        return found | ({self.per_layer.table.name: self.per_layer.table} if self.per_layer else {})

    @property
    def activation_elements_per_token(self) -> int:
        """Elements that the layer's modules produce for one token: a bound of what a pass needs at once."""
        parts = (self.mixer, self.feed_forward, self.per_layer)
        norms = sum(norm.weight.size for norm in self.norms)
        return norms + sum(part.activation_elements_per_token for part in parts if part)


@dataclass(frozen=True)
class Spec:
    """A model of a family that the native path knows. Tensors outside the layers have their names in transformers'
    model. `max_seq_len` is in tokens, `eps` that of all norms; GPT-2 has learned positions in place of rotary ones.

    Embeddings are multiplied by `embed_scale`, logits by `logit_scale`, and then, where `logit_soft_cap` isn't 0,
    bounded: cap * tanh(logit / cap). `tied` says that the config ties the head to the embedding: then a source has one
    tensor for both, and the head's shard stores it again. Attention's `rope` counts `rotaries`. `mtp` is what drafts,
    in the head's shard; a split may lack it.
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
    rotaries: tuple[Rotary, ...]
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float = 0.0
    mtp: Mtp | None = None

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
        layers = (*self.layers, self.mtp.layer) if self.mtp else self.layers
        return max(layer.activation_elements_per_token for layer in layers)

    @property
    def rope_switch_len(self) -> int | None:
        """LongRoPE: sequences longer than this many tokens use other rotary factors from position 0 on; else None."""
        return next((rotary.switch_len for rotary in self.rotaries if rotary.switch_len is not None), None)

    def takes_long(self, pass_len: int) -> bool:
        """Return whether a pass that ends at `pass_len` tokens takes the long rotary factors."""
        return self.rope_switch_len is not None and pass_len > self.rope_switch_len

    @property
    def embeds_per_layer(self) -> bool:
        """Whether layers add something of each token's id."""
        return any(layer.per_layer for layer in self.layers)

    def sources(self, cut: int) -> tuple[int, ...]:
        """Return the layers before `cut` whose keys and values those from there on see, in ascending order."""
        found = {layer.source for layer in self.layers[cut:] if layer.source is not None}
        return tuple(sorted(source for source in found if source < cut))

    def kv_offsets(self, cut: int) -> dict[int, int]:
        """Return where a row has the key and value of each of `sources`, in floats."""
        found, at = {}, self.hidden_size * (2 if self.embeds_per_layer and cut < self.num_layers else 1)
        for source in self.sources(cut):
            found[source] = at
            mixer = self.layers[source].mixer
            assert mixer is not None
            at += mixer.kv_elements_per_token
        return found

    def row_size(self, cut: int) -> int:
        """Return how many floats of a token go from layer `cut` - 1 to the next one, if another section has it: the
        hidden state; where layers add something of the token's id, its embedding; the keys and values of `sources`;
        and last the id, if the embedding is there."""
        if cut == self.num_layers:
            return self.hidden_size
        embedded = self.hidden_size + 1 if self.embeds_per_layer else 0
        sources = (self.layers[source].kv_elements_per_token for source in self.sources(cut))
        return self.hidden_size + embedded + sum(sources)

    @property
    def kv_sources(self) -> tuple[int, ...]:
        """The number of the layer whose keys and values each layer sees; nothing if all see their own."""
        found = tuple(i if layer.source is None else layer.source for i, layer in enumerate(self.layers))
        return () if found == tuple(range(self.num_layers)) else found

    @property
    def row_elements(self) -> tuple[int, ...]:
        """The floats of a token that come into each layer if another section has the one before; nothing if they always
        are as many as the hidden state's."""
        found = (self.hidden_size, *map(self.row_size, range(1, self.num_layers)))
        return () if max(found) == self.hidden_size else found

    def within(self, start: int, end: int) -> tuple[Layer, ...]:
        """Return layers [start, end) as one section has them: a `source` counts from the section's first layer, and the
        first layer that sees one before the section keeps its keys and values, which come with the tokens."""
        keepers: dict[int, int] = {}
        found = []
        for i, layer in enumerate(self.layers[start:end]):
            mixer, source = layer.mixer, layer.source
            if isinstance(mixer, Attention) and source is not None:
                if source >= start:
                    mixer = replace(mixer, source=source - start)
                elif source in keepers:
                    mixer = replace(mixer, source=keepers[source])
                else:
                    keepers[source] = i
                    mixer = replace(mixer, source=None, shared=True, received=source)
                layer = replace(layer, mixer=mixer)
            found.append(layer)
        return tuple(found)

    @property
    def embedding_tensors(self) -> dict[str, Shape]:
        """Return the shape of each tensor of the embedding's shard by name."""
        return {m.name: m.shape for m in (self.embedding, self.position_embedding) if m}

    @property
    def head_tensors(self) -> dict[str, Shape]:
        """Return the shape of each tensor of the head's shard by name."""
        mtp = self.mtp.tensors if self.mtp else {}
        return self.final_norm.tensors | {self.head.name: self.head.shape} | mtp

    def shard_tensors(self, kind: str, layer: int | None = None) -> dict[str, Shape]:
        """Return the shape of each tensor by name in the shard of this `kind`, "embedding", "layer" or "head", and
        `layer`."""
        if kind == "layer":
            assert layer is not None
            return self.layers[layer].tensors
        return self.embedding_tensors if kind == "embedding" else self.head_tensors

    def matrices(self, kind: str, layer: int | None = None) -> dict[str, Matrix]:
        """Return what may be packed of a shard, by name."""
        if kind == "layer":
            assert layer is not None
            return self.layers[layer].matrices
        ends = (self.embedding, self.position_embedding) if kind == "embedding" else (self.head,)
        mtp = self.mtp.matrices if self.mtp and kind == "head" else {}
        return {matrix.name: matrix for matrix in ends if matrix} | mtp

    def kept(self, kind: str, layer: int | None = None) -> frozenset[str]:
        """Return which of a shard's matrices are stored as the source has them, whatever others are quantized to."""
        if kind == "layer":
            assert layer is not None
            return self.layers[layer].kept
        return self.mtp.kept if self.mtp and kind == "head" else frozenset()
