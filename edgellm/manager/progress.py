"""How far boards are with loading their sections of a plan, from what they report meanwhile."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field, replace

from edgellm.manager.survey import Fleet
from edgellm.wire.section_status import SectionLoading

_EVERY_S = 0.5  # between two looks


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


@contextlib.asynccontextmanager
async def followed(progress: Progress, fleet: Fleet, told: Callable[[Progress], None]) -> AsyncGenerator[None, None]:
    """Ask the boards of `fleet` now and then in this block how far they are, and call `told` while they load."""

    async def ask() -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            progress.heard(await fleet.loading())
            if progress.total_bytes:
                told(progress)

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
