"""What layers of Gemma 4 have of token ids, for the reference: a layer at a time, from its own shard.

transformers has all layers' in one tensor, which may be larger than memory; the formulas are its own.
"""

import torch
from torch import nn
from torch.nn.functional import linear

from edgellm.model.families.spec import Spec


class PerLayerInputs:
    """Takes a layer's slices as they are read, and makes the layer's input of the ids that `model` embeds."""

    def __init__(self, spec: Spec, model: nn.Module):
        self._spec = spec
        self._slices: dict[str, torch.Tensor] = {}
        self._ids = self._embedded = torch.empty(0)
        model.model.hidden_size_per_layer_input = 0  # so it makes none of all layers at once
        model.get_input_embeddings().register_forward_hook(self._embed)

    def _embed(self, module: nn.Module, args: tuple, embedded: torch.Tensor) -> None:
        self._ids, self._embedded = args[0], embedded

    def takes(self, layer: int, name: str, data: torch.Tensor) -> bool:
        """Keep a tensor of a layer's shard, and return True, if transformers has no such tensor in the layer."""
        known = name in {part.name for part in self._spec.layers[layer].slices}
        if known:
            self._slices[name] = data
        return known

    def of(self, layer: int) -> torch.Tensor:
        """Return the input of a layer whose slices are there, float32 [1, tokens, width]; lets go of them."""
        part = self._spec.layers[layer].per_layer
        assert part is not None
        table, model, norm = (self._slices.pop(name.name) for name in (part.table, part.model.weight, part.norm.weight))
        projected = linear(self._embedded, model) * part.model_scale
        projected *= torch.pow(projected.pow(2).mean(-1, keepdim=True) + self._spec.eps, -0.5)
        found: torch.Tensor = (projected * norm + table[self._ids] * part.table_scale) * part.scale
        return found
