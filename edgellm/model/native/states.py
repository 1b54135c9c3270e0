"""The states that a slot's recurrent layers remember: from where a step may begin, and copies of them.

kernels/section.h has their layout: a header, the state as it is now, a checkpoint, a log of what came in since, and
room for one more, which pages need: the state as it was when a prompt came to a multiple of CHECKPOINT_TOKENS last.
"""

from collections.abc import Sequence

import numpy as np

from edgellm.kernels.abi import constants
from edgellm.model.families.mixers import Recurrent
from edgellm.model.families.spec import Layer
from edgellm.model.protocols import CHECKPOINT_TOKENS, Array

_HEADER_BYTES: int = constants.STATE_HEADER_BYTES
LOG_TOKENS: int = constants.LOG_TOKENS


class States:
    """The recurrent layers' parts of a slot's memory, by the layer's number in the section; a layer's part begins at
    its one of `offsets`."""

    def __init__(self, layers: Sequence[Layer], offsets: Sequence[int], memory: Array):
        self._headers: dict[int, Array] = {}  # uint64 position, checkpoint, logged
        self._now: dict[int, Array] = {}
        self._checkpoints: dict[int, Array] = {}
        self._kept: dict[int, Array] = {}
        self.kept_at = 0  # tokens behind which a state is kept; 0: nothing is
        self._changes, self._changing = 0, False  # another thread may copy a state meanwhile
        for i, (layer, offset) in enumerate(zip(layers, offsets, strict=True)):
            if not isinstance(layer.mixer, Recurrent):
                continue
            part = memory[offset : offset + layer.state_bytes]
            size = 4 * layer.mixer.remembered_elements
            self._headers[i] = part[:24].view(np.uint64)
            self._now[i] = part[_HEADER_BYTES : _HEADER_BYTES + size]
            self._checkpoints[i] = part[_HEADER_BYTES + size : _HEADER_BYTES + 2 * size]
            kept = _HEADER_BYTES + 2 * size + 4 * LOG_TOKENS * layer.mixer.log_elements
            self._kept[i] = part[kept : kept + size]

    def __bool__(self) -> bool:
        return bool(self._headers)

    def __contains__(self, layer: int) -> bool:
        return layer in self._headers

    def bytes(self, layer: int) -> int:
        """Return the bytes of what `export` returns of a layer."""
        return self._now[layer].nbytes

    @property
    def earliest(self) -> int:
        """The first position of those, without a gap up to where the states are, from which a step may begin."""
        return max((self._earliest(*map(int, header)) for header in self._headers.values()), default=0)

    @staticmethod
    def _earliest(position: int, checkpoint: int, logged: int) -> int:
        return checkpoint if checkpoint + logged == position else position

    def can_begin(self, start: int) -> bool:
        """Return whether a step may begin at this position in all layers; not 0, where every step may."""
        for position, checkpoint, logged in (map(int, header) for header in self._headers.values()):
            if start != position and not checkpoint <= start <= min(checkpoint + logged, position):
                return False
        return True

    def export(self, layer: int, position: int) -> Array | None:
        """Return a copy of a layer's state behind `position` tokens, uint8 [bytes]; None if that is neither where it is
        now, nor where its checkpoint is, nor where one is kept, or if a step of another thread has changed it."""
        before = self._changes
        now, checkpoint, _ = map(int, self._headers[layer])
        state = {self.kept_at: self._kept, checkpoint: self._checkpoints, now: self._now}.get(position)
        if state is None or self._changing:
            return None
        copy = state[layer].copy()
        return copy if not self._changing and self._changes == before else None

    def begin(self, position: int) -> None:
        """Note that a step begins at `position`: what was kept of a state behind that is of other tokens."""
        self._changing = True
        self._changes += 1
        if position < self.kept_at:
            self.kept_at = 0

    def reach(self, position: int, tokens: int) -> None:
        """Note that a step of `tokens` has brought the states to `position`. If it's a prompt's, they may be kept."""
        if tokens > 1 and position % CHECKPOINT_TOKENS == 0:
            for layer, now in self._now.items():
                self._kept[layer][...] = now
            self.kept_at = position
        self.settle()

    def go_back(self) -> None:
        """Make the states those that are kept."""
        for layer, kept in self._kept.items():
            self.restore(layer, self.kept_at, kept)

    def settle(self) -> None:
        """Note that whatever began has ended."""
        self._changing = False

    def restore(self, layer: int, position: int, state: Array) -> None:
        """Put back what `export` returned, of as many bytes."""
        self._now[layer][...] = state
        self._checkpoints[layer][...] = state
        self._headers[layer][...] = position, position, 0
