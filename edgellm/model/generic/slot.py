"""The KV slot of a generic section: preallocated, written at explicit positions, read without a copy."""

import weakref
from collections.abc import Collection, Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from edgellm.errors import ModelError
from edgellm.model.protocols import Array

KV_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class _Position(CacheLayerMixin):
    """The stand-in for a layer that another board holds: it knows only the position in the sequence."""

    # Sliding and chunked layers keep full-length storage too; the mask hides tokens outside their window.
    is_sliding = False

    def __init__(self, at: "KVSlot"):
        super().__init__()
        self.at = weakref.proxy(at)  # no cycle: dropping a slot frees its memory at once

    def lazy_initialization(self, key_states, value_states): ...

    def update(self, key_states, value_states, *args, **kwargs):
        raise ModelError("a layer asked for keys and values that another board holds")

    def get_mask_sizes(self, query_length):
        return self.at.position + query_length, 0

    def get_seq_length(self):
        return self.at.position

    def get_max_length(self):
        return self.at.max_seq_len


class _Layer(_Position):
    """One layer's keys and values, each [1, heads, max_seq_len, dim]."""

    def __init__(self, at: "KVSlot", shape: tuple[int, int, int, int], dtype: torch.dtype):
        super().__init__(at)
        key_heads, key_dim, value_heads, value_dim = shape
        # zero_() touches every page, because promised memory must not turn out to be missing in mid-sequence.
        self.keys = torch.empty(1, key_heads, at.max_seq_len, key_dim, dtype=dtype).zero_()
        self.values = torch.empty(1, value_heads, at.max_seq_len, value_dim, dtype=dtype).zero_()
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        start = self.at.position
        end = start + key_states.shape[2]
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        # float() is the tensor itself for float32
        return self.keys[:, :, :end].float(), self.values[:, :, :end].float()


class KVSlot(Cache):
    """The keys and values of one sequence in a section's layers, for up to `max_seq_len` tokens.

    `filled` tokens are stored. The model writes at `position`, which `seek` sets: feeding a position again overwrites
    it and leaves the rest alone.
    """

    def __init__(self, num_layers: int, held: dict[int, tuple[int, int, int, int]], max_seq_len: int, kv_dtype: str):
        if kv_dtype not in KV_DTYPES:
            raise ModelError(
                f"keys and values in {kv_dtype} need native sections, and this board has a generic one; plan with "
                f"{' or '.join(KV_DTYPES)}"
            )
        if max_seq_len < 1:
            raise ModelError(f"a slot for {max_seq_len} tokens can hold nothing")
        self.max_seq_len, self.position, self.filled = max_seq_len, 0, 0
        elsewhere, dtype = _Position(self), KV_DTYPES[kv_dtype]
        super().__init__(layers=[_Layer(self, held[i], dtype) if i in held else elsewhere for i in range(num_layers)])
        self.ram_bytes = sum(s.keys.nbytes + s.values.nbytes for s in self.layers if isinstance(s, _Layer))

    @property
    def earliest(self) -> int:
        """The smallest position from which a step may begin: windowed layers keep all positions here too."""
        return 0

    @property
    def checkpoint(self) -> int:
        """A further position from which a step may begin: none is needed."""
        return 0

    def seek(self, position: int, tokens: int) -> None:
        """Go to `position` to store `tokens` there. Raises ModelError if that leaves a gap or doesn't fit."""
        if not 0 <= position <= self.filled:
            raise ModelError(f"tokens from position {position} on can't follow the {self.filled} that the slot holds")
        end = position + tokens
        if end > self.max_seq_len:
            raise ModelError(f"positions {position} to {end} don't fit a slot of {self.max_seq_len} tokens")
        self.position = position

    def export(self, start: int, end: int, layers: Collection[int] | None = None) -> list[Array | None]:
        """Return a copy of the keys and values of positions [start, end), as uint8 [bytes] for each of `layers`
        (all), None for others: the keys [heads, tokens, dim], then the values."""
        if not 0 <= start < end <= self.max_seq_len:
            raise ModelError(f"a page of positions {start} to {end} in a slot of {self.max_seq_len} tokens")
        exported: list[Array | None] = []
        for layer, places in enumerate(self._parts(start, end)):
            if layers is not None and layer not in layers:
                exported.append(None)
                continue
            kept = [part.contiguous().numpy() for part in places]
            exported.append(np.concatenate([part.reshape(-1).view(np.uint8) for part in kept]))
        return exported

    def restore(self, start: int, end: int, parts: Sequence[Array | None]) -> None:
        """Store what a slot of the same layers and number format exported. Raises ModelError if a part is missing, has
        another size, leaves a gap or doesn't fit."""
        if not 0 <= start < end <= self.max_seq_len or start > self.filled:
            raise ModelError(f"positions {start} to {end} can't follow {self.filled} in {self.max_seq_len} tokens")
        places = self._parts(start, end)
        expected = [keys.nbytes + values.nbytes for keys, values in places]
        sizes = [0 if part is None else part.nbytes for part in parts]
        if sizes != expected:
            raise ModelError(f"parts of {sizes} bytes for positions {start} to {end}, expected {expected}")
        for pair, part in zip(places, parts, strict=True):
            assert part is not None, "it has a size"
            at = 0
            for place in pair:
                stored = np.array(part[at : at + place.nbytes]).view(place.numpy().dtype).reshape(place.shape)
                place.copy_(torch.from_numpy(stored))
                at += place.nbytes
        self.filled = max(self.filled, end)

    def _parts(self, start: int, end: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        held = [layer for layer in self.layers if isinstance(layer, _Layer)]
        return [(layer.keys[:, :, start:end], layer.values[:, :, start:end]) for layer in held]
