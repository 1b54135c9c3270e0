"""Loads shard files into a section that the engine can run: native if its family is known, else with torch."""

import logging
import threading
from pathlib import Path
from typing import Any

from edgellm.errors import ModelError, UsageError
from edgellm.model.protocols import Section
from edgellm.shards.manifest import Manifest
from edgellm.shards.verified import verified

log = logging.getLogger(__name__)
PATHS = ("auto", "generic")
_BUILDING = threading.Lock()  # while a model is built without weights, torch's modules behave differently
_threads = 1


def set_threads(count: int, cores: tuple[int, ...] = ()) -> None:
    """Make everything in this process compute on `count` threads, the i-th of them on the i-th of `cores` if any.

    Torch takes as many when a section needs it. Raises ValueError if that isn't possible.
    """
    global _threads
    from edgellm.kernels import library

    library.set_threads(count, cores)
    _threads = count


def load_section(
    manifest: Manifest, folder: Path, start: int, end: int, *, without_ends: bool = False, swaps: bool = False,
    path: str = "auto",
) -> Section[Any]:  # fmt: skip
    """Return section [start, end) from its shards, each checked against the manifest's SHA-256.

    `path` "auto" gives a native section where its family is known, which needs neither torch nor transformers;
    "generic" gives transformers' own layers. `without_ends` leaves the embedding and the head out even where the
    section is first or last (to time a layer). With `swaps`, experts don't all fit into RAM. Raises ManifestError
    naming the file that is missing, corrupt or of another shape, ModelError for what can't be loaded here that way.
    """
    if path not in PATHS:
        raise UsageError(f"path is {path!r}, expected one of {', '.join(PATHS)}")
    try:
        return _load(manifest, folder, start, end, without_ends, swaps, path)
    finally:
        verified.save()


def _load(
    manifest: Manifest, folder: Path, start: int, end: int, without_ends: bool, swaps: bool, path: str
) -> Section[Any]:
    if path == "auto":
        from edgellm.model.native.section import NativeSection, read_spec

        spec, reason = read_spec(manifest, folder)
        if spec is not None:
            return NativeSection(spec, manifest, folder, start, end, without_ends=without_ends, swaps=swaps)
        if swaps:
            raise ModelError(f"{manifest.model} can't swap experts: {reason}")
        log.info("section %d-%d takes the generic path: %s", start, end, reason)

    elif swaps:
        raise ModelError(f"{manifest.model} can't swap experts where path is generic. Run agents with --path auto.")

    try:
        import torch

        from edgellm.model.generic.section import GenericSection
    except ModuleNotFoundError as e:
        raise ModelError(
            f"{manifest.model} has no native sections here, and {e.name} is not installed. Deploy to this board again, "
            "or run: pip install 'edgellm[generic]'"
        ) from None

    torch.set_num_threads(_threads)
    with _BUILDING:
        return GenericSection.load(manifest, folder, start, end, without_ends=without_ends)
