"""The KV slot of a native section: preallocated, written at explicit positions."""

from collections.abc import Sequence

import numpy as np

from edgellm.errors import ModelError
from edgellm.kernels.abi import constants, ffi
from edgellm.kernels.library import ENCODINGS
from edgellm.model.families.spec import Layer

KV_BYTES = {"float16": 2, "float32": 4}
_KEYS: int = constants.KEYS  # that lie side by side: the context is rounded up to a multiple
_LINE = 64


class NativeSlot:
    """Keys and values of `layers` for up to `max_seq_len` tokens, of which `filled` are stored.

    Layout (ops.h): for each layer all keys [kv_heads, context / 16, head_dim, 16], then all values
    [kv_heads, context, head_dim], the context rounded up to a multiple of 16.
    """

    def __init__(self, layers: Sequence[Layer], max_seq_len: int, kv_dtype: str):
        if kv_dtype not in KV_BYTES:
            raise ModelError(f"kv_dtype is {kv_dtype!r}, expected one of {', '.join(KV_BYTES)}")
        if max_seq_len < 1:
            raise ModelError(f"a slot for {max_seq_len} tokens can hold nothing")
        self.max_seq_len, self.filled = max_seq_len, 0
        tokens = -(-max_seq_len // _KEYS) * _KEYS
        self.ram_bytes = sum(layer.kv_elements_per_token for layer in layers) * tokens * KV_BYTES[kv_dtype]
        # fill() touches every page, because promised memory must not turn out to be missing in mid-sequence.
        self._memory = np.empty(self.ram_bytes + _LINE, np.uint8)
        self._memory.fill(0)
        start = self._memory.ctypes.data
        self.address = ffi.cast("void *", start + -start % _LINE)  # as a step takes it
        self.encoding = ENCODINGS["f16" if kv_dtype == "float16" else "f32"]

    def check(self, position: int, tokens: int, filled: int | None = None) -> int:
        """Return the end of `tokens` stored from `position` on, where `filled` (or as many as now) are stored before.
        Raises ModelError if they leave a gap or don't fit."""
        filled = self.filled if filled is None else filled
        if not 0 <= position <= filled:
            raise ModelError(f"tokens from position {position} on can't follow the {filled} that the slot holds")
        end = position + tokens
        if end > self.max_seq_len:
            raise ModelError(f"positions {position} to {end} don't fit a slot of {self.max_seq_len} tokens")
        return end
