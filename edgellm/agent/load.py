"""From shard files to a section that the engine can run: NumPy outside, torch inside."""

import threading
from pathlib import Path

import numpy as np

from edgellm.checkpoint.manifest import Manifest

_BUILDING = threading.Lock()  # while a model is built without weights, torch's modules behave differently


def set_threads(count: int) -> None:
    """Threads for everything that computes in this process."""
    import torch

    from edgellm.model import packed

    torch.set_num_threads(count)
    packed.set_threads(count)


def load_section(manifest: Manifest, folder: Path, start: int, end: int, *, without_ends: bool = False):
    """Section [start, end) from its shards, each checked against the manifest's SHA-256.

    `without_ends` leaves the embedding and the head out even where the section is first or last (to time a layer).
    Raises ManifestError naming the file that is missing, corrupt or of another shape.
    """
    from edgellm.model.section import Section

    with _BUILDING:
        section = Section.load(manifest, folder, start, end, without_ends=without_ends)
    return _NumpySection(section, manifest)


class _NumpySection:
    """A torch section behind the interface that the engine calls."""

    batches = False  # torch's results depend on what is computed together

    def __init__(self, section, manifest: Manifest):
        self.hidden_size, self.vocab_size = manifest.hidden_size, manifest.vocab_size
        self.path = section.path
        self.ram_bytes = section.ram_bytes
        self.reuses = not section.follows_every_length
        self._section = section

    def new_slot(self, context: int, kv_dtype: str = "float32"):
        return self._section.new_slot(context, kv_dtype)

    def example(self) -> np.ndarray:
        """A hidden state of one token, to time a step with."""
        return np.linspace(-1.0, 1.0, self.hidden_size, dtype=np.float32)[None, :]

    def forward_many(self, steps) -> list[np.ndarray | None]:
        return [self.forward(s.x, s.position, s.slot, s.pass_len, s.logits) for s in steps]

    def forward(self, x: np.ndarray, position: int, slot, pass_len: int, logits: int) -> np.ndarray | None:
        import torch

        result = self._section.forward(torch.from_numpy(x), position, slot, pass_len, logits > 0)
        if result is None:
            return None
        return result.numpy()[None, :] if logits and self._section.is_last else result.numpy()

    def trace(self, x: np.ndarray, slot) -> np.ndarray:
        import torch

        return self._section.trace(torch.from_numpy(x), slot).numpy()
