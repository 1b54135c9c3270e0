"""Puts a shard's tensors into an empty model: packed weights in place, all else widened to float32."""

import torch
from torch import nn

from edgellm.errors import ManifestError, ModelError
from edgellm.model.families.pieces import Piece
from edgellm.model.generic.joined import joined
from edgellm.model.generic.packed import PackedEmbedding, PackedLinear
from edgellm.model.generic.shardfile import ShardFile, Stored
from edgellm.model.generic.structure import Key, Structure
from edgellm.shards.manifest import Shard
from edgellm.shards.mapped import PACKED


class _PassedOver(nn.Module):
    """The stand-in for a layer that another board holds, with the plain attributes that a model's loop looks at."""

    def __init__(self, layer: nn.Module, returns_tuple: bool):
        super().__init__()
        for name, value in vars(layer).items():
            if not name.startswith("_") and isinstance(value, (str, int, float, bool, type(None))):
                setattr(self, name, value)
        self._returns_tuple = returns_tuple

    def forward(self, hidden_states, *args, **kwargs):
        return (hidden_states, None) if self._returns_tuple else hidden_states


class _LeftOut(nn.Module):
    """The stand-in for a module that only the first section needs; its result is replaced at the first layer."""

    def forward(self, x=None, *args, **kwargs):
        return x if isinstance(x, torch.Tensor) and x.dim() == 3 and x.is_floating_point() else torch.zeros(1, 1, 1)


class _RescaledEmbedding(nn.Module):
    """An nn.Embedding subclass (Gemma's scales its rows) over a packed weight: it looks up only the rows needed."""

    def __init__(self, inner: nn.Embedding, rows: PackedEmbedding):
        super().__init__()
        self.inner, self.rows = inner, rows
        inner.padding_idx = None  # a place in the vocabulary; `weight` will be the rows of one lookup
        del inner.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., dim] for ids, integers [...]."""
        self.inner.weight = self.rows(ids.reshape(-1))
        return self.inner(torch.arange(ids.numel()).view(ids.shape))


def pass_over(layers: nn.ModuleList, structure: Structure, start: int, end: int) -> None:
    """Replace the layers outside [start, end)."""
    for i in (*range(start), *range(end, len(layers))):
        layers[i] = _PassedOver(layers[i], structure.layers_return_tuples)


def leave_out(model: nn.Module, names: tuple[str, ...]) -> None:
    """Replace the modules that own these tensors."""
    for name in names:
        path = name.rpartition(".")[0]
        if path:
            _replace(model, path, _LeftOut())


def fill(
    model: nn.Module, structure: Structure, file: ShardFile, shard: Shard, pieces: tuple[Piece, ...] = ()
) -> int:
    """Put every tensor of a shard where it belongs, `pieces` of it together first. Return the bytes of RAM that it
    takes, mapped ones included.

    Raises ManifestError, naming the file and the tensor, if one is missing, superfluous or of another shape.
    """
    keys: dict[str, Key]
    if shard.layer is not None:
        names = structure.layer_names[shard.layer]
        keys = {name: (shard.layer, name) for name in names}
        prefix = f"{structure.layers_path}.{shard.layer}."
    else:
        names = structure.embedding_names if shard.kind == "embedding" else structure.head_names
        keys, prefix = {name: name for name in names}, ""
    tensors = joined(file, pieces)
    for name in (*keys, *tensors):
        if name not in tensors:
            raise ManifestError(f"{file.path}: {name} is missing; split the model again")
        if name not in keys:
            raise ManifestError(f"{file.path}: {name[:200]!r} is not a tensor of this model; split the model again")
    ram_bytes, packed = 0, list[tuple[str, Stored, str]]()
    for name, key in keys.items():
        stored, shape = tensors[name], structure.shapes[key]
        if key in structure.packable:
            _check_shape(file, name, stored, shape[::-1] if key in structure.transposed else shape)
            if stored.encoding is None:
                raise ManifestError(f"{file.path}: {name} has dtype {stored.data.dtype}, expected a weight")
            packed.append((name, stored, stored.encoding))
            ram_bytes += stored.data.nbytes
        else:
            _check_shape(file, name, stored, shape)
            if stored.encoding in PACKED:
                raise ManifestError(f"{file.path}: {name} is packed as {stored.encoding}, but isn't a weight")
            data = stored.data.float() if stored.encoding else stored.data
            _set_tensor(model, prefix + name, data)
            ram_bytes += data.nbytes
    for name, stored, encoding in packed:  # last, because a packed linear takes over the bias
        _pack_module(model, prefix, file, name, stored, encoding)
    return ram_bytes


def _check_shape(file: ShardFile, name: str, stored: Stored, shape: tuple[int, ...]) -> None:
    if stored.shape != tuple(shape):
        raise ManifestError(f"{file.path}: {name} has shape {list(stored.shape)}, the model needs {list(shape)}")


def _pack_module(
    model: nn.Module, prefix: str, file: ShardFile, name: str, stored: Stored, encoding: str
) -> None:  # fmt: skip
    path = (prefix + name).removesuffix(".weight")
    module = model.get_submodule(path)
    out, columns = stored.shape
    packed: nn.Module
    try:
        if isinstance(module, nn.Embedding):
            packed = PackedEmbedding(stored.data, encoding, (out, columns))
            if type(module) is not nn.Embedding:
                packed = _RescaledEmbedding(module, packed)
        else:
            packed = PackedLinear(stored.data, encoding, (out, columns), getattr(module, "bias", None))
    except ValueError as e:
        raise ManifestError(f"{file.path}: {name}: {e}") from None
    _replace(model, path, packed)


def _set_tensor(model: nn.Module, name: str, data: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = data
    else:
        module._parameters[leaf] = nn.Parameter(data, requires_grad=False)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    parent = model.get_submodule(parent)
    if isinstance(parent, (nn.ModuleList, nn.Sequential)):
        parent[int(leaf)] = module
    else:
        setattr(parent, leaf, module.eval())


def check_complete(model: nn.Module, structure: Structure, section) -> int:
    """Return the bytes of the buffers that come from no shard. Raises ModelError if a tensor that the section uses has
    no values."""
    shards = {*structure.embedding_names, *structure.head_names}
    held = tuple(f"{structure.layers_path}.{i}." for i in range(section.start, section.end))
    total = 0
    persistent = model.state_dict().keys()
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.is_meta and (name.startswith(held) or name not in persistent and name not in shards):
            raise ModelError(f"{structure.model_type}: {name} is computed in a way that can't be repeated here")
        if name not in persistent and not t.is_meta:
            total += t.nbytes
    return total
