"""From mapped shards to native structures: each tensor checked against the Spec, matrices left in place."""

from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgellm.errors import ManifestError
from edgellm.kernels.library import ENCODINGS, stored_shape
from edgellm.model.families.mixers import Attention
from edgellm.model.families.mtp import LAYER_PREFIX, Mtp
from edgellm.model.families.parts import Matrix, Norm, Projection, Shape, Vector
from edgellm.model.families.spec import Layer, Spec
from edgellm.model.native import abi
from edgellm.model.native.layers import layer_fields
from edgellm.model.protocols import Progress
from edgellm.shards.manifest import Manifest
from edgellm.shards.mapped import PACKED, MappedShard, MappedTensor

Weight: TypeAlias = tuple[np.ndarray, str, tuple[int, int]]  # bytes, encoding and shape, as kernels.library takes it


@dataclass
class Loaded:
    """A section's native structures, and the memory they point to."""

    spec: abi.Struct
    ram_bytes: int = 0
    kept: list = field(default_factory=list)
    final_norm: tuple[np.ndarray, np.ndarray | None] | None = None  # weight and bias, where there is the head
    mtp: "LoadedMtp | None" = None  # there, too


@dataclass
class LoadedMtp:
    """What drafts: a section of one layer, whose head is the model's, and what makes its input."""

    spec: abi.Struct
    embedding: Weight
    fc: Weight
    embedding_norm: np.ndarray
    hidden_norm: np.ndarray
    norm: np.ndarray


class Tensors:
    """A shard's tensors: `weights` as mapped, by name, and `vectors` in float32. `kept` holds what was computed from
    them."""

    def __init__(self, file: MappedShard, shapes: dict[str, Shape], matrices: dict[str, Matrix]):
        for name in (*shapes, *file.tensors):
            if name not in file.tensors:
                raise ManifestError(f"{file.path}: {name} is missing; split the model again")
            if name not in shapes:
                raise ManifestError(f"{file.path}: {name[:200]!r} is not a tensor of this model; split the model again")
        self.weights = {name: _weight(file, name, shape) for name, shape in shapes.items() if name in matrices}
        self.vectors = {name: _vector(file, name, shape) for name, shape in shapes.items() if name not in matrices}
        self.kept: list[np.ndarray] = []

    @property
    def ram_bytes(self) -> int:
        """Bytes of what is mapped, widened and computed."""
        mapped = sum(tensor.data.nbytes for tensor in self.weights.values())
        return mapped + sum(values.nbytes for values in (*self.vectors.values(), *self.kept))

    def under(self, prefix: str) -> "Tensors":
        """Return those tensors whose names begin with `prefix`, by what follows it."""
        part = copy(self)
        part.weights = {name.removeprefix(prefix): x for name, x in self.weights.items() if name.startswith(prefix)}
        part.vectors = {name.removeprefix(prefix): x for name, x in self.vectors.items() if name.startswith(prefix)}
        return part

    def norm(self, norm: Norm | None) -> abi.Fields:
        """Return the fields of a NormSpec; without a norm its weight is null."""
        if norm is None:
            return {}
        return {"weight": abi.floats(self.norm_weight(norm)), "bias": self.floats(norm.bias)}

    def norm_weight(self, norm: Norm) -> np.ndarray:
        """Return a norm's weight as it is multiplied with, float32 [size]."""
        weight = self.vectors[norm.weight.name]
        return self.keep(weight + np.float32(norm.offset)) if norm.offset else weight

    def weight(self, matrix: Matrix) -> Weight:
        """Return a matrix as it is mapped."""
        tensor = self.weights[matrix.name]
        assert tensor.encoding is not None  # integers are no weights
        return tensor.data, tensor.encoding, (matrix.rows, matrix.columns)

    def projection(self, part: Projection | None) -> abi.Fields:
        """Return the fields of a ProjectionSpec; without a projection its data is null."""
        if part is None:
            return {}
        bias = None
        if part.bias:
            bias = self.vectors[part.bias.name][..., part.first : part.first + part.rows]
            bias = bias if bias.flags.c_contiguous else self.keep(np.ascontiguousarray(bias))
        return abi.projection(self.weights[part.weight.name], part.first, part.rows, bias)

    def floats(self, vector: Vector | None) -> abi.Fields:
        """Return the fields of a FloatsSpec; without a vector its data is null."""
        return abi.floats(self.vectors[vector.name] if vector else None)

    def keep(self, values: np.ndarray) -> np.ndarray:
        """Keep computed values as long as the tensors; returns them."""
        self.kept.append(values)
        return values


def load(
    spec: Spec, manifest: Manifest, folder: Path, start: int, end: int, *,
    ends: bool = True, swaps: bool = False, verify_sha256: bool = True, progress: Progress | None = None,
) -> Loaded:  # fmt: skip
    """Map the shards of layers [start, end), with embedding and head where they belong to the section unless `ends` is
    False. With `swaps`, experts don't all fit into RAM. `progress(shard name, bytes done, bytes in all)` is called
    after each shard.

    Raises ManifestError naming file and tensor.
    """
    shards = [s for s in manifest.section_shards(start, end) if s.kind == "layer" or ends]
    done, total = 0, sum(s.bytes for s in shards)
    layers = abi.new_layers(end - start)
    described = spec.within(start, end)
    row_in = spec.hidden_size if ends and start == 0 else spec.row_size(start)
    loaded = Loaded(_section(spec, layers, (row_in, spec.row_size(end))), kept=[layers])
    loaded.spec.swaps = swaps
    for shard in shards:
        kind, number = shard.kind, shard.layer
        shapes, matrices = spec.shard_tensors(kind, number), spec.matrices(kind, number)
        file = MappedShard(folder, shard, verify_sha256)
        tensors = Tensors(file, shapes, matrices)
        for name in (name for name, matrix in matrices.items() if swaps and matrix.experts):
            file.read_alone(tensors.weights[name])
        if number is not None:
            layers[number - start] = layer_fields(spec, described[number - start], tensors)
        elif shard.kind == "embedding":
            loaded.spec.embedding = abi.projection(tensors.weights[spec.embedding.name])
            if spec.position_embedding:
                positions = tensors.weights[spec.position_embedding.name]
                loaded.spec.position_embedding = abi.projection(positions)
        else:
            loaded.spec.final_norm = tensors.norm(spec.final_norm)
            bias = spec.final_norm.bias
            weight = tensors.norm_weight(spec.final_norm)
            loaded.final_norm = weight, tensors.vectors[bias.name] if bias else None
            loaded.spec.head = abi.projection(tensors.weights[spec.head.name])
            if spec.mtp:
                loaded.mtp = _mtp(spec, spec.mtp, tensors, loaded.kept)
        loaded.ram_bytes += tensors.ram_bytes
        loaded.kept.append(tensors)
        done += shard.bytes
        if progress:
            progress(shard.name, done, total)
    _pass_on(spec, described, layers, (start, end))
    return loaded


def _pass_on(spec: Spec, described: tuple[Layer, ...], layers: abi.Struct, section: tuple[int, int]) -> None:
    """Say where in rows keys and values are that layers have from another section, or that another one needs."""
    came, go = map(spec.kv_offsets, section)
    for number, layer in enumerate(described):
        source = layer.mixer.received if isinstance(layer.mixer, Attention) else None
        if source is not None:
            layers[number].attention.received = came[source]
        layers[number].attention.sent = go.get(section[0] + number, 0)


def _mtp(spec: Spec, mtp: Mtp, tensors: Tensors, kept: list) -> LoadedMtp:
    layers = abi.new_layers(1)
    kept.append(layers)
    layers[0] = layer_fields(spec, mtp.layer, tensors.under(LAYER_PREFIX))
    section = _section(spec, layers, (spec.hidden_size, spec.hidden_size))
    section.final_norm = tensors.norm(mtp.norm)
    section.head = abi.projection(tensors.weights[spec.head.name])
    return LoadedMtp(
        section, tensors.weight(mtp.embedding or spec.head), tensors.weight(mtp.fc.weight),
        tensors.norm_weight(mtp.embedding_norm), tensors.norm_weight(mtp.hidden_norm), tensors.norm_weight(mtp.norm),
    )  # fmt: skip


def _section(spec: Spec, layers: abi.Struct, rows: tuple[int, int]) -> abi.Struct:
    """Return what the library takes once for all layers; `rows` are the floats of a token that come in and go out."""
    return abi.new_section(dict(
        hidden=spec.hidden_size, vocab=spec.vocab_size,
        positions=spec.position_embedding.rows if spec.position_embedding else 0, num_layers=len(layers),
        eps=spec.eps, embed_scale=spec.embed_scale, logit_scale=spec.logit_scale, logit_soft_cap=spec.logit_soft_cap,
        row_in=rows[0], row_out=rows[1], layers=layers,
    ))  # fmt: skip


def _check_shape(file: MappedShard, name: str, tensor: MappedTensor, shape: Shape) -> None:
    if tensor.shape != shape:
        raise ManifestError(f"{file.path}: {name} has shape {list(tensor.shape)}, the model needs {list(shape)}")


def _weight(file: MappedShard, name: str, shape: Shape) -> MappedTensor:
    tensor = file.tensors[name]
    _check_shape(file, name, tensor, shape)
    if tensor.encoding not in ENCODINGS:
        raise ManifestError(f"{file.path}: {name} has dtype {tensor.dtype}, expected a weight")
    try:
        expected = (*shape[:-2], *stored_shape(tensor.encoding, (shape[-2], shape[-1])))
    except ValueError as e:
        raise ManifestError(f"{file.path}: {name}: {e}") from None
    if tensor.encoding in PACKED and (tensor.dtype != "U8" or tensor.stored_shape != expected):
        raise ManifestError(
            f"{file.path}: {name}: an {tensor.encoding} weight of shape {list(shape)} is U8 {list(expected)}, "
            f"not {tensor.dtype} {list(tensor.stored_shape)}"
        )
    return tensor


def _vector(file: MappedShard, name: str, shape: Shape) -> np.ndarray:
    """Return a norm or bias of `shape` in float32: the file's own pages if they hold float32."""
    tensor = file.tensors[name]
    _check_shape(file, name, tensor, shape)
    if tensor.encoding == "f32":
        return tensor.data.view(np.float32).reshape(shape)
    if tensor.encoding == "f16":
        return tensor.data.view(np.float16).astype(np.float32).reshape(shape)
    if tensor.encoding == "bf16":
        return (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    raise ManifestError(f"{file.path}: {name} is {tensor.encoding or tensor.dtype}, expected float values")
