"""The reference: plain transformers over a split's weights, widened to float32, with one layer in memory at a time.

It shares only the shard files with a section: no packed modules, no kernels, no KV slots.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from edgellm.model.families.pieces import Piece
from edgellm.model.generic.build import build_empty, find_layers, read_config
from edgellm.model.generic.joined import joined, read_pieces, widened
from edgellm.model.generic.shardfile import ShardFile
from edgellm.model.generic.structure import trace
from edgellm.shards.manifest import Manifest, Shard


class Reference:
    """A split model that whole sequences run through. Peak memory is about its largest shard in float32."""

    def __init__(self, manifest: Manifest, folder: Path):
        config = read_config(folder)
        self.manifest, self._folder = manifest, folder
        self._pieces = read_pieces(folder)
        recurrent = any(manifest.state_bytes)  # can't be traced; no such family has transposed weights
        self._transposed = frozenset() if recurrent else trace(config).transposed
        self._model = build_empty(config, real_buffers=True)
        self._layers = find_layers(self._model)[1]
        self._filled: dict[str, list[str]] = {}  # tensors by shard
        self._outputs: list[torch.Tensor] = []
        self._progress: Callable[[int], None] = lambda layer: None
        for i, layer in enumerate(self._layers):
            layer.register_forward_pre_hook(lambda module, args, i=i: self._fill(manifest.layer(i), i))
            layer.register_forward_hook(lambda module, args, out, i=i: self._empty(manifest.layer(i), i, out))

    @torch.inference_mode()
    def run(
        self, ids: list[int], last: int, progress: Callable[[int], None] = lambda layer: None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits float32 [last, vocab_size] of the last `last` positions, and for each layer what it gives,
        float32 [tokens, hidden_size]. `progress(layer)` is called before each."""
        self._outputs, self._progress = [], progress
        self._fill(self.manifest.embedding, None)
        self._fill(self.manifest.head, None)
        try:
            logits = self._model(input_ids=torch.tensor([ids]), use_cache=False, logits_to_keep=last).logits[0]
        finally:
            self._empty(self.manifest.embedding, None)
            self._empty(self.manifest.head, None)
        return logits.float(), self._outputs

    def _fill(self, shard: Shard, layer: int | None) -> None:
        if layer is not None:
            self._progress(layer)
        filled = self._filled[shard.name] = []
        for name, stored in joined(ShardFile(self._folder, shard), self._pieces_of(layer)).items():
            key = name if layer is None else (layer, name)
            data = widened(stored)
            self._set(layer, name, data.T if key in self._transposed else data)
            filled.append(name)

    def _pieces_of(self, layer: int | None) -> tuple[Piece, ...]:
        return () if layer is None or not self._pieces else self._pieces[layer]

    def _empty(self, shard: Shard, layer: int | None, out=None) -> None:
        for name in self._filled.pop(shard.name, ()):
            self._set(layer, name, None)
        if layer is not None:
            self._outputs.append((out[0] if isinstance(out, tuple) else out)[0])

    def _set(self, layer: int | None, name: str, data: torch.Tensor | None) -> None:
        path, _, leaf = name.rpartition(".")
        module: nn.Module = (self._model if layer is None else self._layers[layer]).get_submodule(path)
        if leaf in module._buffers:
            module._buffers[leaf] = data
        else:
            data = torch.empty(0, device="meta") if data is None else data
            module._parameters[leaf] = nn.Parameter(data, requires_grad=False)
