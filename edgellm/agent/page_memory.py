"""Pages in RAM that nothing else needs: they outlive the slots that they come from, and a change of plan."""

import mmap
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from edgellm.agent.page_index import Tier
from edgellm.agent.page_section import Pick
from edgellm.agent.pages import Record


class PageMemory(Tier):
    """Records in RAM, at most `most_bytes`, and never more than `budget_bytes`, which changes with what the board
    has free. For several threads."""

    def __init__(self, most_bytes: int):
        super().__init__(0)
        self.most_bytes = most_bytes
        self._parts: dict[Record, dict[int, np.ndarray]] = {}

    def limit(self, limit_bytes: int) -> None:
        """Let the records take so many bytes from now on, and give back what is more at once."""
        with self._lock:
            self._index.budget_bytes = max(0, min(limit_bytes, self.most_bytes))
            self._drop(self._index.shrink())

    def read(self, picks: Iterable[Pick]) -> dict[int, np.ndarray] | None:
        """Return the parts of these layers, uint8 [bytes] each, without a copy; None if one of them is gone."""
        with self._lock:
            held = [(self._parts.get(pick.record, {}), pick.layers) for pick in picks]
        parts = {layer: here[layer] for here, layers in held for layer in layers if layer in here}
        return parts if len(parts) == sum(len(layers) for _, layers in held) else None

    def parts_of(self, key: bytes, layers: Collection[int]) -> dict[int, np.ndarray]:
        """Return the parts of a page for those of these layers that are here, without a copy."""
        with self._lock:
            held = [self._parts[record] for record in self._index.of(key)]
        return {layer: part for parts in held for layer, part in parts.items() if layer in layers}

    def write(self, record: Record, parts: Mapping[int, np.ndarray]) -> bool:
        """Keep a copy of the parts of a record, uint8 [bytes] by layer; return whether there was room."""
        size = sum(part.size for part in parts.values())
        if not 0 < size <= self.budget_bytes:
            return False
        # Memory of its own, which the system has back as soon as the record goes. What malloc frees may stay here.
        memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
        at, copies = 0, {}
        for layer, part in parts.items():
            copies[layer] = memory[at : at + part.size]
            copies[layer][:] = part
            at += part.size
        with self._lock:
            self._parts[record] = copies
            self._drop(self._index.add(record, size))
            return record in self._index

    def _drop(self, records: Iterable[Record]) -> None:
        for record in records:
            del self._parts[record]
