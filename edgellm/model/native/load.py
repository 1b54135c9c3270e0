"""From mapped shards to what the native section takes: each tensor checked against the Spec, matrices left in place."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgellm.errors import ManifestError
from edgellm.kernels.library import ENCODINGS, stored_shape
from edgellm.model.families.families import NormPart, Part, Spec
from edgellm.model.native import abi
from edgellm.shards.manifest import Manifest, Shard
from edgellm.shards.mapped import PACKED, MappedShard, MappedTensor


@dataclass
class Loaded:
    """A section's native structures, and what they point to."""

    spec: abi.Section
    ram_bytes: int = 0
    kept: list = field(default_factory=list)


class _Tensors:
    """A shard's tensors: `weights` as mapped, by name, and `vectors` in float32."""

    def __init__(self, file: MappedShard, weights: dict[str, tuple[int, int]], vectors: dict[str, int]):
        for name in (*weights, *vectors, *file.tensors):
            if name not in file.tensors:
                raise ManifestError(f"{file.path}: {name} is missing; split the model again")
            if name not in weights and name not in vectors:
                raise ManifestError(f"{file.path}: {name[:200]!r} is no tensor of this model; split the model again")
        self.weights = {name: _weight(file, name, shape) for name, shape in weights.items()}
        self.vectors = {name: _vector(file, name, length) for name, length in vectors.items()}
        self.ram_bytes = sum(t.data.nbytes for t in self.weights.values())
        self.ram_bytes += sum(v.nbytes for v in self.vectors.values())

    def norm(self, part: NormPart) -> abi.Norm:
        bias = self.vectors[part.bias] if part.bias else None
        return abi.Norm(abi.Floats.of(self.vectors[part.weight]), abi.Floats.of(bias))

    def projection(self, part: Part | None) -> abi.Projection:
        if part is None:
            return abi.Projection()
        bias = self.vectors[part.bias][part.first : part.first + part.rows] if part.bias else None
        return abi.Projection.of(self.weights[part.name], part.first, part.rows, bias)

    def floats(self, name: str | None) -> abi.Floats:
        return abi.Floats.of(self.vectors[name] if name else None)


def load(
    spec: Spec, manifest: Manifest, folder: Path, start: int, end: int, *,
    ends: bool = True, verify_sha256: bool = True, progress=None,
) -> Loaded:  # fmt: skip
    """Map the shards of layers [start, end), with embedding and head where they belong to the section unless `ends` is
    False. Raises ManifestError naming file and tensor; `progress(name, bytes_done, bytes_total)` as in Section.load."""
    shards = [s for s in manifest.section_shards(start, end) if s.kind == "layer" or ends]
    done, total = 0, sum(s.bytes for s in shards)
    layers = (abi.Layer * (end - start))()
    section = abi.Section(
        hidden=spec.hidden, heads=spec.heads, kv_heads=spec.kv_heads, head_dim=spec.head_dim,
        rotary_dim=spec.rotary.rotary_dim if spec.rotary else 0, intermediate=spec.intermediate, vocab=spec.vocab,
        positions=spec.max_seq_len if spec.position_embedding else 0, num_layers=end - start, eps=spec.eps,
        layers=layers,
    )  # fmt: skip
    loaded = Loaded(section)
    for shard in shards:
        tensors = _read(spec, shard, MappedShard(folder, shard, verify_sha256))
        if shard.kind == "layer":
            layers[shard.layer - start] = _layer(spec, tensors, shard.layer)
        elif shard.kind == "embedding":
            section.embedding = abi.Projection.of(tensors.weights[spec.embedding])
            if spec.position_embedding:
                section.position_embedding = abi.Projection.of(tensors.weights[spec.position_embedding])
        else:
            section.final_norm = tensors.norm(spec.final_norm)
            section.head = abi.Projection.of(tensors.weights[spec.head])
        loaded.ram_bytes += tensors.ram_bytes
        loaded.kept.append(tensors)
        done += shard.bytes
        if progress:
            progress(shard.name, done, total)
    return loaded


def _read(spec: Spec, shard: Shard, file: MappedShard) -> _Tensors:
    if shard.kind == "layer":
        return _Tensors(file, spec.layer_weights, spec.layer_vectors)
    if shard.kind == "embedding":
        weights = {spec.embedding: (spec.vocab, spec.hidden)}
        if spec.position_embedding:
            weights[spec.position_embedding] = (spec.max_seq_len, spec.hidden)
        return _Tensors(file, weights, {})
    norm = {name: spec.hidden for name in (spec.final_norm.weight, spec.final_norm.bias) if name}
    return _Tensors(file, {spec.head: (spec.vocab, spec.hidden)}, norm)


def _layer(spec: Spec, tensors: _Tensors, layer: int) -> abi.Layer:
    parts = {name: tensors.projection(getattr(spec, name)) for name in ("q", "k", "v", "o", "gate", "up", "down")}
    return abi.Layer(
        before_attention=tensors.norm(spec.before_attention), before_mlp=tensors.norm(spec.before_mlp), **parts,
        q_norm=tensors.floats(spec.q_norm), k_norm=tensors.floats(spec.k_norm),
        attention_scale=spec.attention_scales[layer], window=spec.windows[layer],
    )  # fmt: skip


def _check_shape(file: MappedShard, name: str, tensor: MappedTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ManifestError(f"{file.path}: {name} has shape {list(tensor.shape)}, the model needs {list(shape)}")


def _weight(file: MappedShard, name: str, shape: tuple[int, int]) -> MappedTensor:
    tensor = file.tensors[name]
    _check_shape(file, name, tensor, shape)
    if tensor.encoding not in ENCODINGS:
        raise ManifestError(f"{file.path}: {name} has dtype {tensor.dtype}, expected a weight")
    try:
        expected = stored_shape(tensor.encoding, shape)
    except ValueError as e:
        raise ManifestError(f"{file.path}: {name}: {e}") from None
    if tensor.encoding in PACKED and (tensor.dtype != "U8" or tensor.stored_shape != expected):
        raise ManifestError(
            f"{file.path}: {name}: an {tensor.encoding} weight of shape {list(shape)} is U8 {list(expected)}, "
            f"not {tensor.dtype} {list(tensor.stored_shape)}"
        )
    return tensor


def _vector(file: MappedShard, name: str, length: int) -> np.ndarray:
    """A norm or bias in float32: the file's own pages if that is what they hold."""
    tensor = file.tensors[name]
    _check_shape(file, name, tensor, (length,))
    if tensor.encoding == "f32":
        return tensor.data.view(np.float32)
    if tensor.encoding == "f16":
        return tensor.data.view(np.float16).astype(np.float32)
    if tensor.encoding == "bf16":
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    raise ManifestError(f"{file.path}: {name} is {tensor.encoding or tensor.dtype}, expected float values")
