"""The layout of a folder whose family the native path stores in its own way: names and shapes from its Spec.

Other folders' tensors have the same names in their shards as in transformers' model (traced.py).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgellm.checkpoint.layout import Layout, ShardContent, StoredTensor, check_shape, layout_of, unexpected
from edgellm.checkpoint.tensors import Rows, SourceTensor, sliced
from edgellm.errors import CheckpointError
from edgellm.model.families.mtp import LAYER_PREFIX, PREFIX
from edgellm.model.families.pieces import HeadRows, Piece, Slice
from edgellm.model.families.spec import Spec
from edgellm.shards.tiles import BLOCK_BYTES


def needs_description(spec: Spec) -> bool:
    """Return whether shards of this family have other tensors than transformers' model, or layers that can't be
    traced."""
    return any(layer.pieces or layer.state_bytes or layer.output_scale for layer in spec.layers)


def described_layout(
    spec: Spec, config: Any, tensors: Mapping[str, SourceTensor], where: str, further_layers: int = 0
) -> Layout:
    """Return the layout of a model with `spec`, of which `config` is transformers' and `tensors` are a checkpoint's, by
    its own names; `where` is its path for errors. The checkpoint may have `further_layers` behind the model's, which
    predict further tokens, and are left out.

    Raises CheckpointError for a tensor that is missing, one too many, or of another shape.
    """
    from edgellm.checkpoint.names import map_names
    from edgellm.model.generic.build import build_empty, find_layers

    spec, of_mtp, tensors = _take_mtp(spec, tensors)
    model = build_empty(config, real_buffers=False)
    known, path = model.state_dict(), find_layers(model)[0]
    stored = [f"{path}.{i}.{name}" for i, layer in enumerate(spec.layers) for name in layer.matrices]
    beyond = tuple(f"{path}.{spec.num_layers + i}." for i in range(further_layers))
    needed = {name: tensor for name, tensor in tensors.items() if not name.startswith(beyond)}
    stacked, rest = stack_experts(needed, frozenset(stored))
    named = map_names(model, rest, where)
    for name, tensor in named.items():
        if name not in known:
            raise unexpected(tensor.origin, spec.architecture, len(named), len(known))
    reader = _Reader(spec, {**named, **stacked, **of_mtp}, path, where)
    shards = [reader.shard("embedding", None)]
    shards += [reader.shard("layer", i) for i in range(spec.num_layers)]
    shards.append(reader.shard("head", None))
    return layout_of(spec, tuple(shards))


def _take_mtp(
    spec: Spec, tensors: Mapping[str, SourceTensor]
) -> tuple[Spec, dict[str, SourceTensor], dict[str, SourceTensor]]:
    """Return (`spec`, the tensors of its head for multi-token prediction by their names in the shard, all others).

    Many checkpoints lack such a head, though their configs don't say so, and models can do without: unless it is whole,
    the spec that is returned has none.
    """
    mtp = spec.mtp
    if mtp is None:
        return spec, {}, dict(tensors)
    own = tuple(theirs for _, theirs in mtp.checkpoint_names)
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith((PREFIX, *own))}
    stacked, single = stack_experts(
        {name: tensor for name, tensor in tensors.items() if name not in rest},
        frozenset(mtp.checkpoint_name(name) for name in mtp.matrices),
    )
    there = single | stacked
    pieces = {LAYER_PREFIX + piece.name: piece for piece in mtp.layer.pieces}
    found = dict[str, SourceTensor]()
    for name, shape in mtp.tensors.items():
        piece = pieces.get(name)
        if mtp.embedding and name == mtp.embedding.name:
            tensor = tensors.get(spec.embedding.name)
        elif (tensor := there.get(mtp.checkpoint_name(name))) is None and piece is not None:
            tensor = there.get(mtp.checkpoint_name(LAYER_PREFIX + piece.tensor))
            if tensor is not None and tensor.encoding in BLOCK_BYTES:
                piece = replace(piece, transposed=False)
            if tensor is not None and tensor.shape == piece.whole_shape(shape):
                tensor = _cut(tensor, piece, shape)
        if tensor is None or tensor.shape != shape:
            return replace(spec, mtp=None), {}, rest
        found[name] = tensor
    return spec, found, rest


class _Reader:
    """Tensors by transformers' names, or for experts by a shard's, as shards have them."""

    def __init__(self, spec: Spec, tensors: dict[str, SourceTensor], layers_path: str, where: str):
        self.spec, self.tensors, self.layers_path, self.where = spec, tensors, layers_path, where
        if spec.tied and spec.head.name not in tensors and spec.embedding.name in tensors:
            self.tensors[spec.head.name] = tensors[spec.embedding.name]

    def shard(self, kind: str, layer: int | None) -> ShardContent:
        matrices, pieces = self.spec.matrices(kind, layer), dict[str, Piece]()
        kept = self.spec.kept(kind, layer)
        prefix = "" if layer is None else f"{self.layers_path}.{layer}."
        if layer is not None:
            pieces = {piece.name: piece for piece in self.spec.layers[layer].pieces}
        slices = {} if layer is None else {part.name: part for part in self.spec.layers[layer].slices}
        stored = []
        for name, shape in self.spec.shard_tensors(kind, layer).items():
            piece = None if prefix + name in self.tensors else pieces.get(name)
            if name in slices:
                tensor = self._find_slice(slices[name], shape)
            elif piece is None:
                tensor = self._find(prefix + name, shape)
            else:
                tensor = self._find_piece(prefix + piece.tensor, piece, shape)
            stored.append(StoredTensor(name, tensor, name in matrices, kept=name in kept))
        return ShardContent(kind, layer, tuple(stored))

    def _find_piece(self, name: str, piece: Piece, shape: tuple[int, ...]) -> SourceTensor:
        if name in self.tensors and self.tensors[name].encoding in BLOCK_BYTES:
            piece = replace(piece, transposed=False)  # packed weights lie by rows, whatever others do
        return _cut(self._find(name, piece.whole_shape(shape)), piece, shape)

    def _find_slice(self, part: Slice, shape: tuple[int, ...]) -> SourceTensor:
        whole = self._find(part.tensor, part.shape)
        return whole if part.shape == shape else sliced(whole, part.axis, part.first, shape)

    def _find(self, name: str, shape: tuple[int, ...]) -> SourceTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{self.where}: tensor {name} is missing; {self.spec.architecture} needs it with shape "
                f"{list(shape)}"
            )
        check_shape(tensor, shape, name)
        return tensor


class _CutRows(Rows):
    """Rows of a piece of a larger tensor."""

    def __init__(self, whole: Rows, piece: Piece, shape: tuple[int, ...]):
        super().__init__(shape, whole.encoding)
        self._whole, self._piece = whole, piece

    def read(self, start: int, stop: int) -> np.ndarray:
        piece = self._piece
        if len(self.shape) == 2 and not piece.is_bias and not piece.transposed:  # its rows are the first dimension
            first = piece.first + start * piece.step
            return self._whole.read(first, first + (stop - start - 1) * piece.step + 1)[:: piece.step]
        if isinstance(piece, HeadRows):
            each = piece.rows // piece.heads
            return piece.cut(self._whole.read(start * each, stop * each), piece.count)
        return piece.cut(self._whole.read(start, stop), self.shape[-1 if piece.is_bias else -2])


def _cut(whole: SourceTensor, piece: Piece, shape: tuple[int, ...]) -> SourceTensor:
    return SourceTensor(shape, whole.encoding, whole.origin, lambda transposed: _CutRows(whole.rows(), piece, shape))


class _StackedRows(Rows):
    """Experts of which each is a tensor of its own."""

    def __init__(self, experts: list[SourceTensor], encoding: str):
        super().__init__((len(experts), *experts[0].shape), encoding)
        self._experts = experts

    def read(self, start: int, stop: int) -> np.ndarray:
        same = [expert.rows() for expert in self._experts[start:stop]]
        return np.stack([r.read_all() if r.encoding == self.encoding else r.read_all_f32() for r in same])


# What checkpoints call the matrices of one expert, and what a shard calls those of all.
_NAMES = {
    "gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj", "w1": "gate_proj", "w3": "up_proj",
    "w2": "down_proj",
}  # fmt: skip
_ONE_EXPERT = re.compile(
    rf"(?P<prefix>.*\.experts\.)(?P<number>0|[1-9]\d{{0,3}})\.(?P<name>{'|'.join(_NAMES)})\.weight"
)


def stack_experts(
    tensors: Mapping[str, SourceTensor], wanted: frozenset[str]
) -> tuple[dict[str, SourceTensor], dict[str, SourceTensor]]:
    """Return (the tensors of single experts stacked, by those names of a shard that are `wanted`; all other tensors).

    Stacked experts are read one by one, so that no tensor of all of them is ever in memory. Those of different shapes
    stay among the others.
    """
    groups: dict[str, dict[int, str]] = {}
    for name in tensors:
        if match := _ONE_EXPERT.fullmatch(name):
            stacked = f"{match['prefix']}{_NAMES[match['name']]}.weight"
            if stacked in wanted:
                groups.setdefault(stacked, {})[int(match["number"])] = name
    found, rest = {}, dict(tensors)
    for stacked, names in groups.items():
        experts = [tensors[names[i]] for i in sorted(names)]
        if sorted(names) != list(range(len(names))) or len({expert.shape for expert in experts}) > 1:
            continue
        encodings = {expert.encoding for expert in experts}
        encoding = encodings.pop() if len(encodings) == 1 else "f32"
        origin = f"{experts[0].origin} and {len(experts) - 1} more"
        shape = len(experts), *experts[0].shape
        found[stacked] = SourceTensor(shape, encoding, origin, _stacked_rows(experts, encoding))
        for name in names.values():
            del rest[name]
    return found, rest


def _stacked_rows(experts: list[SourceTensor], encoding: str) -> Callable[[bool], Rows]:
    return lambda transposed: _StackedRows(experts, encoding)
