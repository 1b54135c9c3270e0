"""The KV slot of a native section: preallocated, written at explicit positions."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgellm.errors import ModelError
from edgellm.kernels.abi import constants, ffi
from edgellm.kernels.library import ENCODINGS
from edgellm.model.families.mixers import Attention, LatentAttention
from edgellm.model.families.spec import Layer
from edgellm.model.native.states import States
from edgellm.model.native.windows import Windows
from edgellm.model.protocols import Array
from edgellm.shards.slot_memory import KV_BYTES, SCALE_BYTES, kept_positions

if TYPE_CHECKING:
    from edgellm.model.native.mtp import MtpSlot

_KEYS: int = constants.KEYS  # that lie side by side: the context is rounded up to a multiple
_LINE = 64
_ENCODINGS = {"float32": "f32", "float16": "f16", "int8": "int8"}


class _Place(NamedTuple):
    """Where a layer's part of a slot is, for how many positions it has room, and what it stores of them, one after the
    other: none if it's no attention."""

    at: int
    window: int
    kept: int
    rows: "tuple[_Rows, ...]"


class _Rows(NamedTuple):
    """Rows [heads, positions] of so many bytes, of which `together` positions lie interleaved."""

    heads: int
    together: int
    bytes: int


class NativeSlot:
    """What `layers` remember for up to `max_seq_len` tokens, of which `filled` are stored.

    Layout (ops.h): for each layer all keys [kv_heads, kept / 16, head_dim, 16], then all values [kv_heads, kept,
    head_dim], where `kept` is the context, rounded up to a multiple of 16, or of a window a ring; of latent attention
    the latents [kept, rank], then the parts of keys that turn [kept, rope_dim]. In int8, scales in float32 [kv_heads,
    kept] follow both.
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
        self.encoding = ENCODINGS[_ENCODINGS[kv_dtype]]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self._layers = [
            _Place(at, layer.kv_window_tokens, kept_positions(layer.kv_window_tokens, max_seq_len),
                   _rows(layer, kv_dtype))
            for at, layer in zip(offsets, layers, strict=True)
        ]  # fmt: skip
        self.mtp: MtpSlot | None = None  # what the head for multi-token prediction remembers, if the section has one
        self._windows = Windows(layers, max_seq_len)
        self.states = States(layers, offsets, self._memory)

    @property
    def earliest(self) -> int:
        """The smallest position besides 0 from which a step may begin now, or more than `filled`; 0 if any may."""
        return max(self._windows.earliest, self.states.earliest)

    @property
    def checkpoint(self) -> int:
        """A position before `earliest` from which a step may begin, too; 0 if there is none: a state is kept there."""
        at = self.states.kept_at
        return at if self._windows.earliest <= at < self.states.earliest else 0

    def check(self, position: int, tokens: int, filled: int | None = None) -> int:
        """Return how many are stored once `tokens` are from `position` on, where `filled` (or as many as now) are
        before. Raises ModelError if they leave a gap, don't fit, or see what isn't there any more."""
        filled = self.filled if filled is None else filled
        if not 0 <= position <= filled:
            raise ModelError(f"tokens from position {position} on can't follow the {filled} that the slot holds")
        follows = position == filled != self.filled  # another step of the same call, which has yet to run
        forgotten = position < self._windows.earliest and not follows
        if forgotten and position:
            raise ModelError(
                f"tokens from position {position} on see more than what a window keeps of {filled}; it goes back to "
                f"{self.earliest}, or begins anew"
            )
        kept = self.states.can_begin(position) or position == self.checkpoint
        if self.states and position and not follows and not kept:
            raise ModelError(
                f"tokens from position {position} on can't follow a state that has taken in {self.filled} and "
                f"goes back to {self.earliest}"
            )
        end = position + tokens
        if end > self.max_seq_len:
            raise ModelError(f"positions {position} to {end} don't fit a slot of {self.max_seq_len} tokens")
        return end if forgotten or self.states else max(filled, end)

    def begin(self, position: int, tokens: int) -> None:
        """Note that `tokens` are about to be stored from `position` on. They are part of what the slot holds once
        `filled` counts them."""
        if position < self._windows.earliest:
            self.filled = 0
        if self.states:
            self.filled = min(self.filled, position)
            if position and position == self.checkpoint and not self.states.can_begin(position):
                self.states.go_back()
            self.states.begin(position)
        self._windows.store(position, position + tokens)

    def reach(self, position: int, tokens: int) -> None:
        """Note that a step has stored its tokens, from `position` on. A state has forgotten whatever came behind."""
        end = position + tokens
        self.filled = end if self.states else max(self.filled, end)
        self.states.reach(end, tokens)

    def export(self, start: int, end: int, layers: Collection[int] | None = None) -> list[Array | None]:
        """Return for each of `layers` (all) a copy of what it remembers, as uint8 [bytes], and None for others.

        Of attention these are the keys and values of positions [start, end), multiples of 16: the keys [kv_heads,
        tokens / 16, head_dim, 16], then the values [kv_heads, tokens, head_dim], or the latents [tokens, rank] and the
        parts of keys that turn [tokens, rope_dim], in int8 each with its scales; None if its window is further on. Of a
        recurrent layer it is the state behind `end` tokens, or None if it isn't there: it is there now, at its
        checkpoint, and where a prompt came to a multiple of CHECKPOINT_TOKENS last.
        """
        self._check_page(start, end)
        found: list[Array | None] = []
        for layer, place in enumerate(self._layers):
            part = None
            if layers is not None and layer not in layers:
                pass
            elif layer in self.states:
                part = self.states.export(layer, end)
            elif not place.rows:
                part = np.empty(0, np.uint8)  # a feed-forward alone
            elif start >= self._windows.lowest(place.window):
                part = np.concatenate([view[at].reshape(-1) for view, at in self._parts(place, start, end)])
                if start < self._windows.lowest(place.window):
                    part = None  # a step of another thread has gone round meanwhile
            found.append(part)
        return found

    def restore(self, start: int, end: int, parts: Sequence[Array | None]) -> None:
        """Store what a slot of the same layers and number format exported. A part may be missing of a layer with a
        state, which stays as it is, or with a window, which then has nothing before `end`. Raises ModelError if another
        one is missing, has another size, leaves a gap or doesn't fit."""
        self._check_page(start, end)
        if start > self.filled:
            raise ModelError(f"positions {start} to {end} can't follow the {self.filled} that the slot holds")
        sizes = [None if part is None else part.size for part in parts]
        expected = [
            None if parts[layer] is None and self._may_miss(layer) else self._part_bytes(layer, start, end)
            for layer in range(min(len(parts), len(self._layers)))
        ]
        if sizes != expected or len(parts) != len(self._layers):
            raise ModelError(f"parts of {sizes} bytes for positions {start} to {end}, expected {expected}")
        if not start and self.earliest:
            self.filled = 0
        if self.mtp:
            self.mtp.replaced(start)
        self.states.begin(start)
        self._windows.restore(start, end, {
            place.window for place, part in zip(self._layers, parts, strict=True) if part is None
        })  # fmt: skip
        for layer, (place, part) in enumerate(zip(self._layers, parts, strict=True)):
            if part is None:
                continue
            if layer in self.states:
                self.states.restore(layer, end, part)
                self.filled = end
                continue
            done = 0
            for view, at in self._parts(place, start, end):
                size = view[at].size
                view[at] = part[done : done + size].reshape(view[at].shape)
                done += size
        self.filled = max(self.filled, end)
        self.states.settle()

    def _parts(self, place: "_Place", start: int, end: int) -> list[tuple[Array, tuple[Any, ...]]]:
        """Return a layer's keys and values, each with its scales, as views of bytes, and where in them positions
        [start, end) are."""
        parts = []
        at = place.at
        for heads, each, row_bytes in place.rows:
            size = heads * place.kept * row_bytes
            view = self._memory[at : at + size].reshape(heads, place.kept // each, each * row_bytes)
            parts.append((view, (slice(None), _around(start // each, end // each, place.kept // each))))
            at += size
        return parts

    def _may_miss(self, layer: int) -> bool:
        place = self._layers[layer]
        return not place.rows or place.window in self._windows

    def _part_bytes(self, layer: int, start: int, end: int) -> int:
        if layer in self.states:
            return self.states.bytes(layer)
        place = self._layers[layer]
        return (end - start) * sum(rows.heads * rows.bytes for rows in place.rows)

    def _check_page(self, start: int, end: int) -> None:
        if start % _KEYS or end % _KEYS or not 0 <= start < end <= self.max_seq_len:
            raise ModelError(f"a page of positions {start} to {end} in a slot of {self.max_seq_len} tokens")


def _rows(layer: Layer, kv_dtype: str) -> tuple[_Rows, ...]:
    """Return what a layer stores of each position."""
    mixer = layer.mixer
    if isinstance(mixer, Attention) and mixer.source is None:
        heads, dims = mixer.kv_heads, ((_KEYS, mixer.head_dim), (1, mixer.head_dim))
    elif isinstance(mixer, LatentAttention):
        heads, dims = 1, ((1, mixer.rank), (1, mixer.rope_dim))
    else:
        return ()
    scales = (_Rows(heads, 1, SCALE_BYTES[kv_dtype]),) if SCALE_BYTES[kv_dtype] else ()
    return tuple(
        rows for together, dim in dims for rows in (_Rows(heads, together, dim * KV_BYTES[kv_dtype]), *scales)
    )


def _around(start: int, end: int, kept: int) -> slice | Array:
    """Return where positions [start, end) lie in a ring of `kept`."""
    first = start % kept if kept else 0
    return slice(first, first + end - start) if first + end - start <= kept else np.arange(start, end) % kept
