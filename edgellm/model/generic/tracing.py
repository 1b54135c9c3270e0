"""The tracer's tools: a cache that only records, and questions about modules and tensors."""

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import CacheLayerMixin


class RecordingLayer(CacheLayerMixin):
    """One layer of the tracing cache, which passes keys and values through and notes their shapes."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple] = []

    def lazy_initialization(self, key_states, value_states): ...

    def update(self, key_states, value_states, *args, **kwargs):
        self.shapes.append((tuple(key_states.shape), tuple(value_states.shape)))
        return key_states, value_states

    def get_mask_sizes(self, query_length):
        return query_length, 0

    def get_seq_length(self):
        return 0

    def get_max_length(self):
        return -1


@lru_cache
def acts_as_linear(module_class: Any) -> bool:
    """Return whether modules of this class compute what nn.Linear computes (Falcon's does; a router need not)."""
    if module_class is nn.Linear:
        return True
    if not issubclass(module_class, nn.Linear):
        return False
    try:
        module, x = module_class(4, 3), torch.arange(8.0).view(2, 4)
        return bool(torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias)))
    except Exception:  # its arguments are others than nn.Linear's: then it isn't packed, which is always right
        return False


def tensors_in(value):
    """Yield every tensor in nested tuples, lists and dicts (and dataclass-like outputs, which are dicts)."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors_in(v)
