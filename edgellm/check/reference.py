"""The reference: plain transformers over a split's weights, widened to float32, with one layer in memory at a time.

It shares only the shard files with a section: no packed modules, no kernels, no KV slots.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from edgellm.check.per_layer import PerLayerInputs
from edgellm.checkpoint.described import needs_description
from edgellm.model.families.find import find_spec
from edgellm.model.families.pieces import Piece
from edgellm.model.generic.build import build_empty, find_layers, read_config, read_content
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
        spec, _ = find_spec(read_content(folder))
        described = spec is not None and needs_description(spec)  # not to be traced; none has transposed weights
        self._transposed = frozenset() if described else trace(config).transposed
        self._model = build_empty(config, real_buffers=True)
        self._layers = find_layers(self._model)[1]
        self._inputs = PerLayerInputs(spec, self._model) if spec and spec.embeds_per_layer else None
        # Layers that see others' keys and values would compute the last tokens alone.
        self._all_tokens = {"output_hidden_states": True} if manifest.kv_sources else {}
        self._filled: dict[str, list[str]] = {}  # tensors by shard
        self._outputs: list[torch.Tensor] = []
        self._progress: Callable[[int], None] = lambda layer: None
        for i, layer in enumerate(self._layers):
            layer.register_forward_pre_hook(lambda module, args, i=i: self._enter(i, args))
            layer.register_forward_hook(lambda module, args, out, i=i: self._empty(manifest.layer(i), i, out))

    @torch.inference_mode()
    def run(
        self, ids: list[int], last: int, progress: Callable[[int], None] = lambda layer: None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits float32 [last, vocab_size] of the last `last` positions, and for each layer what it gives,
        float32 [tokens, hidden_size]. `progress(layer)` is called before each."""
        self._outputs, self._progress = [], progress
        options = {"use_cache": False, "logits_to_keep": last, **self._all_tokens}
        self._fill(self.manifest.embedding, None)
        self._fill(self.manifest.head, None)
        try:
            logits = self._model(input_ids=torch.tensor([ids]), **options).logits[0]
        finally:
            self._empty(self.manifest.embedding, None)
            self._empty(self.manifest.head, None)
        return logits.float(), self._outputs

    def _enter(self, layer: int, args: tuple) -> tuple | None:
        """Return what a layer takes in place of `args`, if it is something else."""
        self._fill(self.manifest.layer(layer), layer)
        return (args[0], self._inputs.of(layer), *args[2:]) if self._inputs else None

    def _fill(self, shard: Shard, layer: int | None) -> None:
        if layer is not None:
            self._progress(layer)
        filled = self._filled[shard.name] = []
        for name, stored in joined(ShardFile(self._folder, shard), self._pieces_of(layer)).items():
            key = name if layer is None else (layer, name)
            data = widened(stored)
            if layer is not None and self._inputs and self._inputs.takes(layer, name, data):
                continue
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
