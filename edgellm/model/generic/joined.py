"""A shard's tensors as transformers has them: what shards store apart, such as experts' gate and up, put together."""

from pathlib import Path

import torch

from edgellm.model.families.find import find_spec
from edgellm.model.families.pieces import Piece, assemble
from edgellm.model.generic.build import read_content
from edgellm.model.generic.packed import unpack
from edgellm.model.generic.shardfile import ShardFile, Stored
from edgellm.shards.mapped import PACKED


def read_pieces(folder: Path) -> tuple[tuple[Piece, ...], ...]:
    """Return for each layer of the split in `folder` what its shard stores apart; nothing if no family says so."""
    spec, _ = find_spec(read_content(folder))
    return tuple(layer.pieces for layer in spec.layers) if spec else ()


def joined(file: ShardFile, pieces: tuple[Piece, ...]) -> dict[str, Stored]:
    """Return a shard's tensors by transformers' names; those that are put together are in float32."""
    apart = {piece.name for piece in pieces if piece.name in file.tensors}
    found = {name: stored for name, stored in file.tensors.items() if name not in apart}
    values = {name: widened(file.tensors[name]).numpy() for name in apart}
    for name, whole in assemble(pieces, values).items():
        found[name] = Stored(torch.from_numpy(whole), "f32", whole.shape)
    return found


def widened(stored: Stored) -> torch.Tensor:
    """Return a weight in float32, and integers as they are."""
    if stored.encoding in PACKED:
        return unpack(stored.data, stored.encoding, stored.shape)
    return stored.data.float() if stored.encoding else stored.data
