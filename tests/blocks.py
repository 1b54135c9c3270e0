"""GGUF's blocks out of tiles: the way back, which only tests take."""

import numpy as np

from edgellm.shards.tiles import from_tiles


def to_blocks(data: np.ndarray, encoding: str, shape: tuple[int, int]) -> np.ndarray:
    """Return what tiles.from_blocks takes, of tiles that hold a weight of `shape` [out, in]."""
    q, d, m = from_tiles(data, encoding, shape)
    parts = [np.ascontiguousarray(a).view(np.uint8).reshape(*d.shape, 2) for a in (d, m) if a is not None]
    parts.append(q.view(np.uint8) if encoding == "int8" else q[:, :, :16] | q[:, :, 16:] << 4)
    return np.concatenate(parts, axis=2).reshape(shape[0], -1)
