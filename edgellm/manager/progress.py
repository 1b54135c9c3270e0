"""How far boards are with loading their sections of a plan, from what they report meanwhile. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from edgellm.wire.section_status import SectionLoading


@dataclass
class Progress:
    """The sections of `model` that boards are loading, or have loaded, since this was made."""

    model: str
    _boards: dict[str, SectionLoading] = field(default_factory=dict)

    def heard(self, said: Mapping[str, SectionLoading | None]) -> None:
        """Take what boards report: a section that was being loaded, and isn't any more, has been read."""
        for board, loading in said.items():
            known = self._boards.get(board)
            if loading is not None and loading.model == self.model and (not known or loading.epoch >= known.epoch):
                self._boards[board] = loading
            elif known is not None:
                self._boards[board] = replace(known, read_bytes=known.total_bytes)

    @property
    def read_bytes(self) -> int:
        """Bytes of shards that have been read."""
        return sum(loading.read_bytes for loading in self._boards.values())

    @property
    def total_bytes(self) -> int:
        """Bytes of shards to read, as far as boards have begun; 0 if none has."""
        return sum(loading.total_bytes for loading in self._boards.values())

    @property
    def left_s(self) -> float | None:
        """Seconds until the slowest board is done, at the rate so far; None if nothing is known."""
        left = [
            loading.age_s * (loading.total_bytes - loading.read_bytes) / loading.read_bytes
            for loading in self._boards.values() if loading.read_bytes and loading.age_s
        ]  # fmt: skip
        return max(left, default=None)

    def __str__(self) -> str:
        unit, scale = ("GB", 1e9) if self.total_bytes >= 1e9 else ("MB", 1e6)
        return f"{self.read_bytes / scale:.1f} of {self.total_bytes / scale:.1f} {unit}"
