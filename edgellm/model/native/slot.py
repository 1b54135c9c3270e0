"""The KV slot of a native section: preallocated, written at explicit positions."""

from collections.abc import Collection, Sequence

import numpy as np

from edgellm.errors import ModelError
from edgellm.kernels.abi import constants, ffi
from edgellm.kernels.library import ENCODINGS
from edgellm.model.families.mixers import Attention
from edgellm.model.families.spec import Layer
from edgellm.model.native.states import States
from edgellm.model.protocols import Array
from edgellm.shards.slot_memory import KV_BYTES, kept_positions

_KEYS: int = constants.KEYS  # that lie side by side: the context is rounded up to a multiple
_LINE = 64


class NativeSlot:
    """What `layers` remember for up to `max_seq_len` tokens, of which `filled` are stored.

    Layout (ops.h): for each layer all keys [kv_heads, context / 16, head_dim, 16], then all values
    [kv_heads, context, head_dim], the context rounded up to a multiple of 16.
    """

    def __init__(self, layers: Sequence[Layer], max_seq_len: int, kv_dtype: str):
        if kv_dtype not in KV_BYTES:
            raise ModelError(f"kv_dtype is {kv_dtype!r}, expected one of {', '.join(KV_BYTES)}")
        if max_seq_len < 1:
            raise ModelError(f"a slot for {max_seq_len} tokens can hold nothing")
        self.max_seq_len, self.filled = max_seq_len, 0
        sizes = [layer.slot_bytes(max_seq_len, kv_dtype) for layer in layers]
        self.ram_bytes = sum(sizes)
        # fill() touches every page, because promised memory must not turn out to be missing in mid-sequence.
        memory = np.empty(self.ram_bytes + _LINE, np.uint8)
        memory.fill(0)
        start = memory.ctypes.data
        self._memory = memory[-start % _LINE :][: self.ram_bytes]
        self.address = ffi.cast("void *", self._memory.ctypes.data)  # as a step takes it
        self.encoding = ENCODINGS["f16" if kv_dtype == "float16" else "f32"]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        # Where each layer's part begins, how many heads have keys, and bytes that a head stores of one token.
        self._layers: list[tuple[int, int, int]] = []
        for at, mixer in zip(offsets, (layer.mixer for layer in layers), strict=True):
            heads, dim = (mixer.kv_heads, mixer.head_dim) if isinstance(mixer, Attention) else (0, 0)
            self._layers.append((at, heads, dim * KV_BYTES[kv_dtype]))
        self.states = States(layers, offsets, self._memory)

    @property
    def earliest(self) -> int:
        """The smallest position besides 0 from which a step may begin now; 0 if any may be next."""
        return self.states.earliest

    def check(self, position: int, tokens: int, filled: int | None = None) -> int:
        """Return the end of `tokens` stored from `position` on, where `filled` (or as many as now) are stored before.
        Raises ModelError if they leave a gap or don't fit."""
        filled = self.filled if filled is None else filled
        if not 0 <= position <= filled:
            raise ModelError(f"tokens from position {position} on can't follow the {filled} that the slot holds")
        follows = position == filled != self.filled  # another step of the same call, which has yet to run
        if self.states and position and not follows and not self.states.can_begin(position):
            raise ModelError(
                f"tokens from position {position} on can't follow a state that has taken in {self.filled} and "
                f"goes back to {self.earliest}"
            )
        end = position + tokens
        if end > self.max_seq_len:
            raise ModelError(f"positions {position} to {end} don't fit a slot of {self.max_seq_len} tokens")
        return end

    def reach(self, end: int) -> None:
        """Note that a step has stored its tokens up to `end`. A state has forgotten whatever came behind."""
        self.filled = end if self.states else max(self.filled, end)

    def export(self, start: int, end: int, layers: Collection[int] | None = None) -> list[Array | None]:
        """Return for each of `layers` (all) a copy of what it remembers, as uint8 [bytes], and None for others.

        Of attention these are the keys and values of positions [start, end), multiples of 16: the keys [kv_heads,
        tokens / 16, head_dim, 16], then the values [kv_heads, tokens, head_dim]. Of a recurrent layer it is the state
        behind `end` tokens, or None if that is neither where it is nor where its checkpoint is.
        """
        self._check_page(start, end)
        found: list[Array | None] = []
        for layer in range(len(self._layers)):
            if layers is not None and layer not in layers:
                found.append(None)
            elif layer in self.states:
                found.append(self.states.export(layer, end))
            else:
                found.append(np.concatenate([part.reshape(-1) for part in self._parts(layer, start, end)]))
        return found

    def restore(self, start: int, end: int, parts: Sequence[Array | None]) -> None:
        """Store what a slot of the same layers and number format exported. None leaves a layer as it is, which only one
        without keys may be. Raises ModelError if a part is missing, has another size, leaves a gap or doesn't fit."""
        self._check_page(start, end)
        if start > self.filled:
            raise ModelError(f"positions {start} to {end} can't follow the {self.filled} that the slot holds")
        sizes = [None if part is None else part.size for part in parts]
        expected = [
            None if part is None and self._may_miss(layer) else self._part_bytes(layer, start, end)
            for layer, part in enumerate(parts)
        ]
        if sizes != expected or len(parts) != len(self._layers):
            raise ModelError(f"parts of {sizes} bytes for positions {start} to {end}, expected {expected}")
        for layer, part in enumerate(parts):
            if part is None:
                continue
            if layer in self.states:
                self.states.restore(layer, end, part)
                continue
            at = 0
            for place in self._parts(layer, start, end):
                place[...] = part[at : at + place.size].reshape(place.shape)
                at += place.size
        self.filled = max(self.filled, end)

    def _parts(self, layer: int, start: int, end: int) -> list[Array]:
        """Return views of the bytes of positions [start, end): a layer's keys, then its values."""
        parts: list[Array] = []
        tokens = kept_positions(self.max_seq_len)
        at, heads, row_bytes = self._layers[layer]
        for first, last, each in ((start // _KEYS, end // _KEYS, _KEYS), (start, end, 1)):
            whole = self._memory[at : at + heads * tokens * row_bytes]
            parts.append(whole.reshape(heads, tokens // each, each * row_bytes)[:, first:last])
            at += whole.size
        return parts

    def _may_miss(self, layer: int) -> bool:
        return not self._layers[layer][1]

    def _part_bytes(self, layer: int, start: int, end: int) -> int:
        if layer in self.states:
            return self.states.bytes(layer)
        _, heads, row_bytes = self._layers[layer]
        return 2 * heads * (end - start) * row_bytes

    def _check_page(self, start: int, end: int) -> None:
        if start % _KEYS or end % _KEYS or not 0 <= start < end <= self.max_seq_len:
            raise ModelError(f"a page of positions {start} to {end} in a slot of {self.max_seq_len} tokens")
