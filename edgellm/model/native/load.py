"""From mapped shards to native structures: each tensor checked against the Spec, matrices left in place."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgellm.errors import ManifestError
from edgellm.kernels.library import ENCODINGS, stored_shape
from edgellm.model.families.spec import GatedMlp, Layer, Norm, Projection, Shape, Spec
from edgellm.model.native import abi
from edgellm.model.protocols import Progress
from edgellm.shards.manifest import Manifest
from edgellm.shards.mapped import PACKED, MappedShard, MappedTensor


@dataclass
class Loaded:
    """A section's native structures, and the memory they point to."""

    spec: abi.Struct
    ram_bytes: int = 0
    kept: list = field(default_factory=list)
    final_norm: tuple[np.ndarray, np.ndarray | None] | None = None  # weight and bias, where there is the head


class _Tensors:
    """A shard's tensors: `weights` as mapped, by name, and `vectors` in float32."""

    def __init__(self, file: MappedShard, shapes: dict[str, Shape]):
        for name in (*shapes, *file.tensors):
            if name not in file.tensors:
                raise ManifestError(f"{file.path}: {name} is missing; split the model again")
            if name not in shapes:
                raise ManifestError(f"{file.path}: {name[:200]!r} is not a tensor of this model; split the model again")
        self.weights = {name: _weight(file, name, shape) for name, shape in shapes.items() if len(shape) > 1}
        self.vectors = {name: _vector(file, name, shape) for name, shape in shapes.items() if len(shape) == 1}
        self.ram_bytes = sum(t.data.nbytes for t in self.weights.values())
        self.ram_bytes += sum(v.nbytes for v in self.vectors.values())

    def norm(self, norm: Norm) -> abi.Fields:
        bias = self.vectors[norm.bias.name] if norm.bias else None
        return {"weight": abi.floats(self.vectors[norm.weight.name]), "bias": abi.floats(bias)}

    def projection(self, part: Projection) -> abi.Fields:
        bias = self.vectors[part.bias.name][part.first : part.first + part.rows] if part.bias else None
        return abi.projection(self.weights[part.weight.name], part.first, part.rows, bias)

    def norm_weight(self, norm: Norm | None) -> abi.Fields:
        return abi.floats(self.vectors[norm.weight.name] if norm else None)


def load(
    spec: Spec, manifest: Manifest, folder: Path, start: int, end: int, *,
    ends: bool = True, verify_sha256: bool = True, progress: Progress | None = None,
) -> Loaded:  # fmt: skip
    """Map the shards of layers [start, end), with embedding and head where they belong to the section unless `ends` is
    False. `progress(shard name, bytes done, bytes in all)` is called after each shard.

    Raises ManifestError naming file and tensor.
    """
    shards = [s for s in manifest.section_shards(start, end) if s.kind == "layer" or ends]
    done, total = 0, sum(s.bytes for s in shards)
    layers = abi.new_layers(end - start)
    loaded = Loaded(_section(spec, layers), kept=[layers])
    for shard in shards:
        tensors = _Tensors(MappedShard(folder, shard, verify_sha256), spec.shard_tensors(shard.kind, shard.layer))
        if shard.layer is not None:
            layers[shard.layer - start] = _layer(spec.layers[shard.layer], tensors)
        elif shard.kind == "embedding":
            loaded.spec.embedding = abi.projection(tensors.weights[spec.embedding.name])
            if spec.position_embedding:
                positions = tensors.weights[spec.position_embedding.name]
                loaded.spec.position_embedding = abi.projection(positions)
        else:
            loaded.spec.final_norm = tensors.norm(spec.final_norm)
            weight, bias = spec.final_norm.weight, spec.final_norm.bias
            loaded.final_norm = tensors.vectors[weight.name], tensors.vectors[bias.name] if bias else None
            loaded.spec.head = abi.projection(tensors.weights[spec.head.name])
        loaded.ram_bytes += tensors.ram_bytes
        loaded.kept.append(tensors)
        done += shard.bytes
        if progress:
            progress(shard.name, done, total)
    return loaded


def _section(spec: Spec, layers: abi.Struct) -> abi.Struct:
    """Return the sizes of a section, which the library takes once for all layers."""
    attention = spec.layers[0].mixer
    return abi.new_section(dict(
        hidden=spec.hidden_size, heads=attention.heads, kv_heads=attention.kv_heads, head_dim=attention.head_dim,
        rotary_dim=spec.rotary.rotary_dim if spec.rotary else 0,
        intermediate=spec.layers[0].feed_forward.intermediate_size, vocab=spec.vocab_size,
        positions=spec.position_embedding.rows if spec.position_embedding else 0, num_layers=len(layers),
        eps=spec.eps, layers=layers,
    ))  # fmt: skip


def _layer(layer: Layer, tensors: _Tensors) -> abi.Fields:
    attention, mlp = layer.mixer, layer.feed_forward
    return dict(
        before_attention=tensors.norm(layer.before_mixer), before_mlp=tensors.norm(layer.before_feed_forward),
        q=tensors.projection(attention.q), k=tensors.projection(attention.k), v=tensors.projection(attention.v),
        o=tensors.projection(attention.o),
        gate=tensors.projection(mlp.gate) if isinstance(mlp, GatedMlp) else {},
        up=tensors.projection(mlp.up), down=tensors.projection(mlp.down),
        q_norm=tensors.norm_weight(attention.q_norm), k_norm=tensors.norm_weight(attention.k_norm),
        attention_scale=attention.scale, window=attention.window,
    )  # fmt: skip


def _check_shape(file: MappedShard, name: str, tensor: MappedTensor, shape: Shape) -> None:
    if tensor.shape != shape:
        raise ManifestError(f"{file.path}: {name} has shape {list(tensor.shape)}, the model needs {list(shape)}")


def _weight(file: MappedShard, name: str, shape: Shape) -> MappedTensor:
    tensor = file.tensors[name]
    _check_shape(file, name, tensor, shape)
    if tensor.encoding not in ENCODINGS:
        raise ManifestError(f"{file.path}: {name} has dtype {tensor.dtype}, expected a weight")
    try:
        expected = stored_shape(tensor.encoding, (shape[0], shape[1]))
    except ValueError as e:
        raise ManifestError(f"{file.path}: {name}: {e}") from None
    if tensor.encoding in PACKED and (tensor.dtype != "U8" or tensor.stored_shape != expected):
        raise ManifestError(
            f"{file.path}: {name}: an {tensor.encoding} weight of shape {list(shape)} is U8 {list(expected)}, "
            f"not {tensor.dtype} {list(tensor.stored_shape)}"
        )
    return tensor


def _vector(file: MappedShard, name: str, shape: Shape) -> np.ndarray:
    """Return a norm or bias in float32: the file's own pages if they hold float32."""
    tensor = file.tensors[name]
    _check_shape(file, name, tensor, shape)
    if tensor.encoding == "f32":
        return tensor.data.view(np.float32)
    if tensor.encoding == "f16":
        return tensor.data.view(np.float16).astype(np.float32)
    if tensor.encoding == "bf16":
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    raise ManifestError(f"{file.path}: {name} is {tensor.encoding or tensor.dtype}, expected float values")
