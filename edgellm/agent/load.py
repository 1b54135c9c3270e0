"""From shard files to a section that the engine can run: native where its family is known, else torch inside."""

import logging
import threading
from pathlib import Path

import numpy as np

from edgellm.errors import UsageError
from edgellm.shards.manifest import Manifest
from edgellm.shards.verified import verified

log = logging.getLogger(__name__)
PATHS = ("auto", "generic")
_BUILDING = threading.Lock()  # while a model is built without weights, torch's modules behave differently
_threads = 1


def set_threads(count: int, cores: tuple[int, ...] = ()) -> None:
    """Threads for everything that computes in this process, the i-th of them on the i-th of `cores` if there are any.

    Torch takes as many when a section needs it. Raises ValueError if it can't be.
    """
    global _threads
    from edgellm.kernels import library

    library.set_threads(count, cores)
    _threads = count


def load_section(
    manifest: Manifest, folder: Path, start: int, end: int, *, without_ends: bool = False, path: str = "auto"
):
    """Return section [start, end) from its shards, each checked against the manifest's SHA-256.

    `path` "auto" gives a native section where its family is known, which needs neither torch nor transformers;
    "generic" gives transformers' own layers. `without_ends` leaves the embedding and the head out even where the
    section is first or last (to time a layer). Raises ManifestError naming the file that is missing, corrupt or of
    another shape.
    """
    if path not in PATHS:
        raise UsageError(f"path is {path!r}, expected one of {', '.join(PATHS)}")
    try:
        return _load(manifest, folder, start, end, without_ends, path)
    finally:
        verified.save()


def _load(manifest: Manifest, folder: Path, start: int, end: int, without_ends: bool, path: str):
    if path == "auto":
        from edgellm.model.native.section import NativeSection, read_spec

        spec, reason = read_spec(manifest, folder)
        if spec is not None:
            return NativeSection(spec, manifest, folder, start, end, without_ends=without_ends)
        log.info("section %d-%d takes the generic path: %s", start, end, reason)

    import torch

    from edgellm.model.generic.section import Section

    torch.set_num_threads(_threads)
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

        result = self._section.forward(torch.tensor(x), position, slot, pass_len, logits > 0)
        if result is None:
            return None
        return result.numpy()[None, :] if logits and self._section.is_last else result.numpy()

    def trace(self, x: np.ndarray, slot) -> np.ndarray:
        import torch

        return self._section.trace(torch.from_numpy(x), slot).numpy()
