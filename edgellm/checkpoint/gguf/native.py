"""The layout of a GGUF whose family the native path knows: names and shapes from its Spec, without transformers."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from edgellm.checkpoint.gguf.file import GGUFTensor
from edgellm.checkpoint.gguf.rope import FACTOR_TENSORS
from edgellm.checkpoint.gguf.rows import (
    as_row,
    decay_log,
    head_rows,
    matrix,
    origin_of,
    reshaped,
    rotary_order,
    shifted,
    vector,
    zeros,
)
from edgellm.checkpoint.layout import Layout, ShardContent, StoredTensor, check_shape, layout_of, unexpected
from edgellm.checkpoint.tensors import SourceTensor, sliced
from edgellm.errors import CheckpointError
from edgellm.model.families.feed_forwards import Experts, GatedMlp, PlainMlp
from edgellm.model.families.mixers import Attention, DeltaRule, LatentAttention, Mamba2, Recurrent, ShortConv
from edgellm.model.families.mtp import LAYER_PREFIX, Mtp
from edgellm.model.families.parts import Norm, Projection
from edgellm.model.families.pieces import Slice
from edgellm.model.families.spec import Layer, Spec

# Architectures whose rows of q and k llama.cpp's converters reorder, so that what turns together lies side by side.
PERMUTED = ("granite", "granitehybrid", "granitemoe", "llama", "mistral3", "nemotron_h", "nemotron_h_moe", "smollm3")
# What all layers have a slice of, by its name in a shard.
_OF_ALL = {
    "embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}
_FUSED = "ffn_gate_up_exps"  # gate and up of all experts in one, gate first
# Inverse frequencies, which old converters stored and nothing reads.
_UNREAD = re.compile(r"blk\.\d+\.attn_rot_embd(\.weight)?")


def native_layout(
    spec: Spec, tensors: Mapping[str, GGUFTensor], where: str, *, permuted: bool, num_blocks: int = 0
) -> Layout:
    """Return the layout of a model with `spec`; reads headers only.

    `permuted` says that q and k have llama.cpp's order of rows, and that biases may be missing. `num_blocks` is how
    many layers the file says that it has: those beyond the model's predict further tokens, and are left out. Raises
    CheckpointError for a tensor that is missing, one too many, or of another shape.
    """
    reader = _Reader(tensors, where, spec, permuted, num_blocks)
    embedding = [reader.read("token_embd.weight", spec.embedding.name, spec.embedding_tensors)]
    if spec.position_embedding:
        embedding.append(reader.read("position_embd.weight", spec.position_embedding.name, spec.embedding_tensors))
    shards = [ShardContent("embedding", None, tuple(embedding))]
    for i, layer in enumerate(spec.layers):
        names = _layer_names(layer, _ffn_norm(tensors, i) if layer.mixer else "attn_norm")
        fused = _fused_experts(layer) if f"blk.{i}.{_FUSED}.weight" in tensors else {}
        stored = [
            reader.read(f"blk.{i}.{theirs}", ours, layer.tensors, layer) for theirs, ours in names if ours not in fused
        ]
        stored += [reader.read_slice(f"blk.{i}.{_FUSED}.weight", part, layer) for part in fused.values()]
        stored += [reader.read_slice(_OF_ALL[part.name], part, layer) for part in layer.slices]
        shards.append(ShardContent("layer", i, tuple(stored)))
    head = "token_embd.weight" if spec.tied and "output.weight" not in tensors else "output.weight"
    final_norm = "output_norm" if "output_norm.weight" in tensors else "token_embd_norm"  # so for LFM2
    names = [*_norm_names(spec.final_norm, final_norm), (head, spec.head.name)]
    of_head = [reader.read(theirs, ours, spec.head_tensors) for theirs, ours in names]
    if spec.mtp:
        try:
            of_head += _mtp(reader, spec.mtp, spec.num_layers)
        except CheckpointError:  # answers are the same without it
            spec = replace(spec, mtp=None)
    shards.append(ShardContent("head", None, tuple(of_head)))
    reader.check_rest()
    return layout_of(spec, tuple(shards))


def _mtp(reader: "_Reader", mtp: Mtp, block: int) -> list[StoredTensor]:
    """Return the tensors of the head for multi-token prediction, which is the file's layer `block`. Where the file has
    no norm of its own behind it, it is the model's."""
    at, layer = f"blk.{block}.", mtp.layer
    norm = f"{at}nextn.shared_head_norm" if f"{at}nextn.shared_head_norm.weight" in reader.tensors else "output_norm"
    names = [
        *_norm_names(mtp.embedding_norm, f"{at}nextn.enorm"), *_norm_names(mtp.hidden_norm, f"{at}nextn.hnorm"),
        *_projection_names(mtp.fc, f"{at}nextn.eh_proj"), *_norm_names(mtp.norm, norm),
    ]  # fmt: skip
    names += [("token_embd.weight", mtp.embedding.name)] if mtp.embedding else []
    found = [reader.read(theirs, ours, mtp.tensors) for theirs, ours in names]
    for theirs, ours in _layer_names(layer, _ffn_norm(reader.tensors, block)):
        tensor = reader.read(f"{at}{theirs}", ours, layer.tensors, layer)
        found.append(replace(tensor, name=LAYER_PREFIX + ours))
    return found


def _ffn_norm(tensors: Mapping[str, GGUFTensor], layer: int) -> str:
    """Return the name of the norm before the feed-forward: some of llama.cpp's converters call it the one after
    attention."""
    names = "ffn_norm", "post_attention_norm"
    return next((name for name in names if f"blk.{layer}.{name}.weight" in tensors), names[0])


def _norm_names(norm: Norm | None, theirs: str) -> Iterator[tuple[str, str]]:
    if norm:
        yield f"{theirs}.weight", norm.weight.name
        if norm.bias:
            yield f"{theirs}.bias", norm.bias.name


def _projection_names(projection: Projection, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.weight", projection.weight.name
    if projection.bias:
        yield f"{theirs}.bias", projection.bias.name


def _layer_names(layer: Layer, ffn_norm: str) -> list[tuple[str, str]]:
    """Return (name in the GGUF, name in the shard) of each tensor of a layer, both without the layer's number.

    `ffn_norm` is what the GGUF calls the norm before the feed-forward.
    """
    names = [*_norm_names(layer.before_mixer, "attn_norm"), *_norm_names(layer.before_feed_forward, ffn_norm)]
    names += _norm_names(layer.after_mixer, "post_attention_norm")
    names += _norm_names(layer.after_feed_forward, "post_ffw_norm")
    if isinstance(layer.mixer, Attention):
        names += _attention_names(layer.mixer)
    elif isinstance(layer.mixer, LatentAttention):
        names += _latent_names(layer.mixer)
    elif layer.mixer:
        names += _recurrent_names(layer.mixer)
    if isinstance(layer.feed_forward, Experts):
        names += _experts_names(layer.feed_forward)
    elif layer.feed_forward:
        names += _mlp_names(layer.feed_forward)
    if layer.output_scale:
        names.append(("layer_output_scale.weight", layer.output_scale.name))
    if part := layer.per_layer:
        names += [*_projection_names(part.gate, "inp_gate"), *_projection_names(part.projection, "proj"),
                  *_norm_names(part.after, "post_norm")]  # fmt: skip
    return names


def _fused_experts(layer: Layer) -> dict[str, Slice]:
    """Return which rows of each expert's fused matrix are its gate, and which are up."""
    if not isinstance(layer.feed_forward, Experts) or layer.feed_forward.gate is None:
        return {}
    gate, up = (part.weight for part in (layer.feed_forward.gate, layer.feed_forward.up))
    shape = (gate.experts, gate.rows + up.rows, gate.columns)
    return {part.name: Slice(part.name, _FUSED, shape, 1, first) for part, first in ((gate, 0), (up, gate.rows))}


def _attention_names(attention: Attention) -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = []
    if attention.k and attention.q.weight == attention.k.weight:
        names += _projection_names(attention.q, "attn_qkv")
    else:
        for projection, theirs in ((attention.q, "attn_q"), (attention.k, "attn_k"), (attention.v, "attn_v")):
            names += _projection_names(projection, theirs) if projection else ()
    names += _projection_names(attention.o, "attn_output")
    if attention.sinks:
        names.append(("attn_sinks.weight", attention.sinks.name))
    return [*names, *_norm_names(attention.q_norm, "attn_q_norm"), *_norm_names(attention.k_norm, "attn_k_norm")]


def _latent_names(attention: LatentAttention) -> list[tuple[str, str]]:
    named = {"attn_kv_a_mqa": attention.kv_a, "attn_k_b": attention.k_b, "attn_v_b": attention.v_b,
             "attn_output": attention.o}  # fmt: skip
    named |= {"attn_q_a": attention.q_a, "attn_q_b": attention.q} if attention.q_a else {"attn_q": attention.q}
    names = [pair for theirs, projection in named.items() for pair in _projection_names(projection, theirs)]
    names += _norm_names(attention.q_norm, "attn_q_a_norm")
    return [*names, *_norm_names(attention.kv_norm, "attn_kv_a_norm")]


def _recurrent_names(mixer: DeltaRule | ShortConv | Mamba2) -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = []
    if isinstance(mixer, ShortConv):
        named = {"shortconv.in_proj": mixer.inner, "shortconv.out_proj": mixer.out}
        conv = "shortconv.conv"
    elif isinstance(mixer, Mamba2):
        named, conv = {"ssm_in": mixer.inner, "ssm_out": mixer.out}, "ssm_conv1d"
        names.append(("ssm_d", mixer.d.name))
    else:
        assert mixer.z and mixer.a, "no GGUF has rows by key head"
        named = {"attn_qkv": mixer.qkv, "attn_gate": mixer.z, "ssm_alpha": mixer.a, "ssm_beta": mixer.b,
                 "ssm_out": mixer.out}  # fmt: skip
        conv = "ssm_conv1d"
    for theirs, projection in named.items():
        names += _projection_names(projection, theirs)
    names.append((f"{conv}.weight", mixer.conv.name))
    if not isinstance(mixer, DeltaRule) and mixer.conv_bias:
        names.append((f"{conv}.bias", mixer.conv_bias.name))
    if not isinstance(mixer, ShortConv):
        names += [("ssm_a", mixer.a_log.name), ("ssm_dt.bias", mixer.dt_bias.name),
                  *_norm_names(mixer.norm, "ssm_norm")]  # fmt: skip
    return names


def _mlp_names(mlp: GatedMlp | PlainMlp | Experts, suffix: str = "") -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = []
    if not isinstance(mlp, PlainMlp) and mlp.gate and mlp.gate.weight != mlp.up.weight:
        names += _projection_names(mlp.gate, f"ffn_gate{suffix}")
    names += _projection_names(mlp.up, f"ffn_up{suffix}")
    return [*names, *_projection_names(mlp.down, f"ffn_down{suffix}")]


def _experts_names(experts: Experts) -> list[tuple[str, str]]:
    names = [*_projection_names(experts.router.weight, "ffn_gate_inp"), *_mlp_names(experts, "_exps")]
    if experts.router.correction:
        names.append(("exp_probs_b.bias", experts.router.correction.name))
    if experts.router.expert_scales:
        names.append(("ffn_down_exps.scale", experts.router.expert_scales.name))
    if part := experts.apart:
        names += [("ffn_gate_inp.scale", part.router_scale.name), *_norm_names(part.before, "pre_ffw_norm_2"),
                  *_norm_names(part.after_shared, "post_ffw_norm_1"), *_norm_names(part.after, "post_ffw_norm_2")]
    if experts.shared:
        names += _mlp_names(experts.shared, "" if experts.apart else "_shexp")
    if experts.shared_gate:
        names += _projection_names(experts.shared_gate, "ffn_gate_inp_shexp")
    return names


def _offsets(spec: Spec) -> dict[str, float]:
    """Return what the model adds to the weights of its norms, by name in the shard: a GGUF has them with it."""
    mtp, layers = spec.mtp, spec.layers
    norms = [spec.final_norm]
    if mtp:
        norms += [mtp.embedding_norm, mtp.hidden_norm, mtp.norm]
        layers += (mtp.layer,)
    for layer in layers:
        parts = vars(layer.mixer).values() if layer.mixer else ()
        norms += [*layer.norms, *(part for part in parts if isinstance(part, Norm))]
    return {norm.weight.name: norm.offset for norm in norms}


def _of_state(
    tensor: SourceTensor, ours: str, shape: tuple[int, ...], mixer: DeltaRule | ShortConv | Mamba2
) -> SourceTensor:
    """Return one of a recurrent mixer's vectors, which a GGUF has in another shape, and decays as what they are."""
    if math.prod(tensor.shape) == math.prod(shape) and tensor.shape != shape:
        tensor = reshaped(tensor, shape)
    return decay_log(tensor) if not isinstance(mixer, ShortConv) and ours == mixer.a_log.name else tensor


class _Reader:
    """Takes tensors by name, and knows which were taken."""

    def __init__(self, tensors: Mapping[str, GGUFTensor], where: str, spec: Spec, permuted: bool, num_blocks: int):
        self.tensors, self.where, self.spec, self.permuted = tensors, where, spec, permuted
        self.num_blocks = num_blocks
        self.offsets = _offsets(spec)
        self.taken: set[str] = set()

    def read(
        self, theirs: str, ours: str, shapes: Mapping[str, tuple[int, ...]], layer: Layer | None = None
    ) -> StoredTensor:
        """Return the tensor `theirs` of the file under the name `ours` of the shard."""
        shape = shapes[ours]
        tensor = self._tensor(theirs, ours, shape, layer)
        if layer and isinstance(layer.mixer, Recurrent) and ours not in layer.matrices:
            tensor = _of_state(tensor, ours, shape, layer.mixer)
        check_shape(tensor, shape, ours)
        if offset := self.offsets.get(ours):
            tensor = shifted(tensor, -offset)
        if layer is None:
            return StoredTensor(ours, tensor, packable=len(shape) == 2)
        return StoredTensor(ours, tensor, packable=ours in layer.matrices, kept=ours in layer.kept)

    def read_slice(self, theirs: str, part: Slice, layer: Layer) -> StoredTensor:
        """Return what a layer, or its experts, have of a tensor that they share."""
        info = self.tensors.get(theirs)
        if info is None:
            raise self._missing(theirs, part.shape)
        self.taken.add(theirs)
        shape = layer.tensors[part.name]
        whole = matrix(theirs, info) if part.name in layer.matrices else vector(theirs, info)
        check_shape(whole, part.shape, part.name)
        tensor = whole if part.shape == shape else sliced(whole, part.axis, part.first, shape)
        return StoredTensor(part.name, tensor, packable=part.name in layer.matrices)

    def _missing(self, name: str, shape: tuple[int, ...]) -> CheckpointError:
        return CheckpointError(
            f"{self.where}: tensor {name} is missing; {self.spec.architecture} needs it with shape {list(shape)}"
        )

    def _tensor(self, name: str, ours: str, shape: tuple[int, ...], layer: Layer | None) -> SourceTensor:
        info = self.tensors.get(name)
        if info is None and layer and isinstance(layer.mixer, LatentAttention):
            piece = next((p for p in layer.mixer.pieces if p.name == ours), None)
            together = re.sub(r"attn_[kv]_b\.", "attn_kv_b.", name)
            if piece and together in self.tensors:  # older files have k_b and v_b as transformers has them
                info = self.tensors[together]
                self.taken.add(together)
                if info.shape != piece.whole_shape(shape):
                    return matrix(together, info)
                return head_rows(together, info, piece, shape)
        if info is None:
            if self.permuted and name.endswith(".bias"):
                return zeros(shape[0], f"{self.where}: tensor {name}")
            raise self._missing(name, shape)
        self.taken.add(name)
        order = None
        if self.permuted and layer and (heads := self._rotated_heads(name, layer)) and info.shape[0] == shape[0]:
            order = rotary_order(shape[0], heads)
        if layer is not None and ours in layer.matrices and info.shape == shape[1:]:
            return as_row(vector(name, info))  # a projection to one value, which llama.cpp has as a vector
        is_matrix = ours in layer.matrices if layer else len(shape) == 2
        return matrix(name, info, order) if is_matrix else vector(name, info, order)

    def _rotated_heads(self, name: str, layer: Layer) -> int:
        if not isinstance(layer.mixer, Attention):
            return 0
        if ".attn_q." in name:
            return layer.mixer.heads
        return layer.mixer.kv_heads if ".attn_k." in name else 0

    def _is_beyond(self, name: str) -> bool:
        block = re.match(r"blk\.(\d{1,5})\.", name)
        return block is not None and self.spec.num_layers <= int(block[1]) < self.num_blocks

    def _is_unseen(self, name: str) -> bool:
        """Whether it is of keys or values that no query sees, because its layer sees another's: files have them."""
        found = re.fullmatch(r"blk\.(\d{1,5})\.attn_(k|v|k_norm)\.(weight|bias)", name)
        number = int(found[1]) if found else self.spec.num_layers
        return number < self.spec.num_layers and self.spec.layers[number].source is not None

    def check_rest(self) -> None:
        """Raise CheckpointError for a tensor that the model doesn't have."""
        for name, info in self.tensors.items():
            if self._is_beyond(name):
                continue  # of layers that predict further tokens
            if self._is_unseen(name):
                continue
            if name not in self.taken and name not in FACTOR_TENSORS and not _UNREAD.fullmatch(name):
                origin = origin_of(name, info=info)
                raise unexpected(origin, self.spec.architecture, len(self.tensors), len(self.taken))
