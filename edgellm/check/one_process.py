"""Native sections in one process: the bits that a split must have."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from edgellm.errors import ModelError
from edgellm.model.native.section import NativeSection, read_spec
from edgellm.shards.manifest import Manifest


def path_of(manifest: Manifest, folder: Path) -> str:
    """Return how boards compute a split model's sections unless told otherwise: "native" or "generic"."""
    return "native" if read_spec(manifest, folder)[0] else "generic"


def run_whole(
    manifest: Manifest, folder: Path, ids: list[int], last: int, kv_dtype: str,
    progress: Callable[[int], None] = lambda layer: None,
) -> np.ndarray:  # fmt: skip
    """Return logits float32 [last, vocab_size] of the last `last` positions as native sections compute them, with one
    layer in memory at a time: bit for bit what boards give, however the model is cut, on any instruction set.

    Raises ModelError if the model's family has no native sections.
    """
    *_, x = _layer_by_layer(manifest, folder, ids, last, kv_dtype, progress)
    return np.empty((0, manifest.vocab_size), np.float32) if x is None else x


def rows_into(
    manifest: Manifest, folder: Path, ids: list[int], kv_dtype: str, layers: set[int]
) -> dict[int, np.ndarray]:
    """Return what comes into each of these layers if another board has the one before: float32 [tokens, row].

    Raises ModelError if the model's family has no native sections.
    """
    found = {}
    for layer, x in enumerate(_layer_by_layer(manifest, folder, ids, 0, kv_dtype, lambda layer: None), 1):
        if x is not None and layer in layers:
            found[layer] = x
    return found


def _layer_by_layer(
    manifest: Manifest, folder: Path, ids: list[int], last: int, kv_dtype: str, progress: Callable[[int], None]
) -> Iterator[np.ndarray | None]:
    """Yield what each layer gives as a section of its own."""
    spec, reason = read_spec(manifest, folder)
    if spec is None:
        raise ModelError(f"{manifest.model} has no native sections: {reason}")
    x: np.ndarray | None = np.asarray(ids, np.int64)
    for layer in range(manifest.num_layers):
        progress(layer)
        section = NativeSection(spec, manifest, folder, layer, layer + 1)
        slot = section.new_slot(len(ids), kv_dtype)
        assert x is not None  # only the last layer may give nothing
        x = section.forward(x, 0, slot, len(ids), last if layer == manifest.num_layers - 1 else 0)
        yield x
