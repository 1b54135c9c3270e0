"""The KV slot of a native section: preallocated, written at explicit positions."""

from collections.abc import Collection, Sequence

import numpy as np

from edgellm.errors import ModelError
from edgellm.kernels.abi import constants, ffi
from edgellm.kernels.library import ENCODINGS
from edgellm.model.families.mixers import Attention
from edgellm.model.families.spec import Layer
from edgellm.model.protocols import Array
from edgellm.shards.slot_memory import KV_BYTES, kept_positions

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
        self.ram_bytes = sum(layer.slot_bytes(max_seq_len, kv_dtype) for layer in layers)
        # fill() touches every page, because promised memory must not turn out to be missing in mid-sequence.
        memory = np.empty(self.ram_bytes + _LINE, np.uint8)
        memory.fill(0)
        start = memory.ctypes.data
        self._memory = memory[-start % _LINE :][: self.ram_bytes]
        self.address = ffi.cast("void *", self._memory.ctypes.data)  # as a step takes it
        self.encoding = ENCODINGS["f16" if kv_dtype == "float16" else "f32"]
        attentions = [layer.mixer for layer in layers if isinstance(layer.mixer, Attention)]
        self._layers = [(mixer.kv_heads, mixer.head_dim * KV_BYTES[kv_dtype]) for mixer in attentions]

    @property
    def earliest(self) -> int:
        """The smallest position besides 0 from which a step may begin now; 0 if any may be next."""
        return 0

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

    def export(self, start: int, end: int, layers: Collection[int] | None = None) -> list[Array | None]:
        """Return a copy of the keys and values of positions [start, end), multiples of 16, as uint8 [bytes] for each
        of `layers` (all), None for others: the keys [kv_heads, tokens / 16, head_dim, 16], then the values [kv_heads,
        tokens, head_dim]."""
        self._check_page(start, end)
        return [
            np.concatenate([part.reshape(-1) for part in parts]) if layers is None or layer in layers else None
            for layer, parts in enumerate(self._parts(start, end))
        ]

    def restore(self, start: int, end: int, parts: Sequence[Array | None]) -> None:
        """Store what a slot of the same layers and number format exported. Raises ModelError if a part is missing, has
        another size, leaves a gap or doesn't fit."""
        self._check_page(start, end)
        self.check(start, end - start)
        places = self._parts(start, end)
        expected = [keys.size + values.size for keys, values in places]
        sizes = [0 if part is None else part.size for part in parts]
        if sizes != expected:
            raise ModelError(f"parts of {sizes} bytes for positions {start} to {end}, expected {expected}")
        for (keys, values), part in zip(places, parts, strict=True):
            assert part is not None, "it has a size"
            keys[...] = part[: keys.size].reshape(keys.shape)
            values[...] = part[keys.size :].reshape(values.shape)
        self.filled = max(self.filled, end)

    def _parts(self, start: int, end: int) -> list[tuple[Array, Array]]:
        """Return views of the bytes of positions [start, end): each layer's keys and values."""
        parts: list[Array] = []
        tokens = kept_positions(self.max_seq_len)
        at = 0
        for heads, row_bytes in self._layers:  # a row is what one head stores of one token
            for first, last, each in ((start // _KEYS, end // _KEYS, _KEYS), (start, end, 1)):
                whole = self._memory[at : at + heads * tokens * row_bytes]
                parts.append(whole.reshape(heads, tokens // each, each * row_bytes)[:, first:last])
                at += whole.size
        return list(zip(parts[::2], parts[1::2], strict=True))

    def _check_page(self, start: int, end: int) -> None:
        if start % _KEYS or end % _KEYS or not 0 <= start < end <= self.max_seq_len:
            raise ModelError(f"a page of positions {start} to {end} in a slot of {self.max_seq_len} tokens")
