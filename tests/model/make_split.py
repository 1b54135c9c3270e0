"""A split folder written straight from a state dict: what edgellm split produces, without the code under test there."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from edgellm.kernels.library import BLOCK_COLUMNS
from edgellm.model.families.find import find_spec
from edgellm.model.families.spec import Spec
from edgellm.model.generic import packed
from edgellm.model.generic.shardfile import FORMAT
from edgellm.model.generic.structure import Structure, trace
from edgellm.shards import tiles
from edgellm.shards.manifest import Manifest, ModelFile, Shard
from edgellm.shards.mapped import PACKED
from edgellm.shards.quantize import LEVELS
from tests.blocks import random_blocks


def make_split(model, folder: Path, encoding: str = "f32", head_encoding: str | None = None) -> Manifest:
    """Write shards, config.json and manifest.json of `model`; packable weights in `encoding`, those outside of the
    layers in `head_encoding` if given. Rows that can't be packed stay float32."""
    structure, state = trace(model.config), model.state_dict()
    if structure.tied:
        state[structure.tied_head] = state[structure.tied]
    folder.mkdir(parents=True, exist_ok=True)
    layers = [
        (f"layer-{i:04}.safetensors", "layer", i, [((i, n), f"{structure.layers_path}.{i}.{n}", n) for n in names])
        for i, names in enumerate(structure.layer_names)
    ]
    ends = [
        (f"{kind}.safetensors", kind, None, [(n, n, n) for n in names])
        for kind, names in (("embedding", structure.embedding_names), ("head", structure.head_names))
    ]
    shards = []
    for file, kind, layer, entries in (ends[0], *layers, ends[1]):
        chosen = encoding if kind == "layer" else head_encoding or encoding
        tensors, encodings = {}, {}
        for key, full_name, name in entries:
            tensors[name], packed_as = _encode(structure, key, state[full_name], chosen)
            if packed_as:
                encodings[name] = packed_as
        save_file(tensors, folder / file, {"format": FORMAT, "encodings": json.dumps(encodings)})
        size = (folder / file).stat().st_size
        shards.append(Shard(file, kind, layer, size, size, _sha256(folder / file)))
    model.config.save_pretrained(folder)
    config = folder / "config.json"
    manifest = Manifest(
        model="test",
        architecture=structure.architecture,
        model_type=structure.model_type,
        quantization=encoding,
        num_layers=structure.num_layers,
        hidden_size=structure.hidden_size,
        vocab_size=structure.vocab_size,
        max_seq_len=structure.max_seq_len,
        eos_token_ids=(),
        kv_elements_per_token=structure.kv_elements_per_token,
        activation_elements_per_token=structure.activation_elements_per_token,
        rope_switch_len=structure.rope_switch_len,
        shards=tuple(shards),
        files=(ModelFile(config.name, config.stat().st_size, _sha256(config)),),
        **_kept(find_spec(model.config.to_dict())[0]),
    )
    manifest.write(folder)
    return manifest


def make_spec_split(
    spec: Spec, config: dict, folder: Path, read: Callable[[int | None, str], np.ndarray], encoding: str = "f32"
) -> Manifest:
    """Write shards, config.json and manifest.json of a model with `spec`.

    `read` gives its tensors in float32, for a layer's number, or None, and a name in the shard. Matrices whose rows can
    be packed are in `encoding`.
    """
    spec = replace(spec, mtp=None)
    folder.mkdir(parents=True, exist_ok=True)
    layers = [(f"layer-{i:04}.safetensors", "layer", i) for i in range(spec.num_layers)]
    first, last = (("embedding.safetensors", "embedding", None), ("head.safetensors", "head", None))
    shards = []
    for file, kind, layer in (first, *layers, last):
        tensors, encodings = {}, {}
        for name, shape in spec.shard_tensors(kind, layer).items():
            tensor = torch.from_numpy(np.ascontiguousarray(read(layer, name), np.float32)).reshape(shape)
            if name not in spec.matrices(kind, layer) or encoding == "f32":
                tensors[name] = tensor
            else:
                tensors[name], chosen = _pack_all(tensor, encoding)
                if chosen in PACKED:
                    encodings[name] = [chosen, list(shape)]
        save_file(tensors, folder / file, {"format": FORMAT, "encodings": json.dumps(encodings)})
        size = (folder / file).stat().st_size
        shards.append(Shard(file, kind, layer, size, size, _sha256(folder / file)))
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    manifest = Manifest(
        model="test", architecture=spec.architecture, model_type=spec.model_type, quantization=encoding,
        num_layers=spec.num_layers, hidden_size=spec.hidden_size, vocab_size=spec.vocab_size,
        max_seq_len=spec.max_seq_len, eos_token_ids=(), kv_elements_per_token=spec.kv_elements_per_token,
        activation_elements_per_token=spec.activation_elements_per_token, rope_switch_len=spec.rope_switch_len,
        shards=tuple(shards), files=(ModelFile(path.name, path.stat().st_size, _sha256(path)),),
        **_kept(spec),
    )  # fmt: skip
    manifest.write(folder)
    return manifest


def _kept(spec: Spec | None) -> dict:
    """Return what a manifest says that slots keep, if sections are native."""
    return {} if spec is None else {
        "kv_scales_per_token": tuple(layer.kv_scales_per_token for layer in spec.layers),
        "kv_window_tokens": tuple(layer.kv_window_tokens for layer in spec.layers),
        "state_bytes": tuple(layer.state_bytes for layer in spec.layers),
        "kv_sources": spec.kv_sources, "row_elements": spec.row_elements,
    }  # fmt: skip


def packable(columns: int, encoding: str) -> bool:
    """Return whether rows of so many columns can be in this encoding."""
    return encoding not in PACKED or columns % BLOCK_COLUMNS[encoding] == 0


def _pack_all(weight: torch.Tensor, encoding: str) -> tuple[torch.Tensor, str]:
    """Return a matrix, or each of several, in `encoding`, and what that is: rows that can't be packed stay float32."""
    if not packable(weight.shape[-1], encoding):
        return weight, "f32"
    if weight.ndim == 2:
        return pack(weight, encoding), encoding
    return torch.stack([pack(one, encoding) for one in weight]), encoding


def pack(weight: torch.Tensor, encoding: str) -> torch.Tensor:
    """As packed.pack; to int4s too, which is what GGUF's Q4_0 becomes. Other encodings of GGUF get random weights, the
    same for a shape, about as large as these."""
    if encoding in LEVELS or encoding not in PACKED:
        return packed.pack(weight, encoding)
    if encoding == "int4s":
        blocks = gguf.quants.quantize(weight.detach().numpy(), gguf.GGMLQuantizationType.Q4_0)
    else:
        blocks = random_blocks(encoding, *weight.shape, scale=float(weight.abs().mean()) / 2)
    return torch.from_numpy(tiles.from_blocks(blocks, encoding))


def _encode(structure: Structure, key, tensor, encoding: str):
    if key not in structure.packable:
        return tensor.contiguous().clone(), None
    weight = (tensor.T if key in structure.transposed else tensor).contiguous()
    if encoding == "f32" or (encoding in PACKED and weight.shape[1] % BLOCK_COLUMNS[encoding]):
        return weight.clone(), None
    shape = list(weight.shape)
    return pack(weight, encoding), [encoding, shape] if encoding in PACKED else None


def round_weights(model, structure: Structure, encoding: str, head_encoding: str | None = None) -> None:
    """Replace the model's packable weights by what their encoding makes of them, in float32."""
    for key in structure.packable:
        name = key if isinstance(key, str) else f"{structure.layers_path}.{key[0]}.{key[1]}"
        if name == structure.tied_head:
            continue
        p = model.get_parameter(name)
        weight = p.T if key in structure.transposed else p
        chosen = head_encoding or encoding if isinstance(key, str) else encoding
        if chosen in PACKED and weight.shape[1] % BLOCK_COLUMNS[chosen]:
            continue
        weight.copy_(packed.unpack(pack(weight.contiguous(), chosen), chosen, tuple(weight.shape)))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
