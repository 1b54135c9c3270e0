"""The layout of packed weights, in NumPy: rows of integers with their scales, or GGUF's blocks, to tiles and back.

kernels/gemm.h and docs/shards.md describe the same bytes. A group is 32 columns of a row: integers q
[rows, groups, 32], fp16 scales d and, for int4, fp16 minima m [rows, groups]. Integers of int4s are 0 to 15, and mean
-8 to 7.
"""

import numpy as np

from edgellm.kernels.library import GROUP, GROUP_BYTES, TILE, stored_shape

BLOCK_BYTES = {"int4": 20, "int4s": 18, "int8": 34}  # of a group of one row in GGUF: Q4_1, Q4_0, Q8_0
_Q_BYTES = {"int4": 256, "int4s": 256, "int8": 512}  # of a group of a tile, before the scales


def to_tiles(encoding: str, q: np.ndarray, d: np.ndarray, m: np.ndarray | None = None) -> np.ndarray:
    """uint8 [tiles, bytes of a tile]; q uint8 (0 to 15) or of int8 int8, d and m fp16 bits or values.

    Rows that fill up the last tile are zeros.
    """
    rows, groups, _ = q.shape
    tiles, bytes_ = stored_shape(encoding, (rows, groups * GROUP))
    if rows % TILE:
        q, d = _filled(q, tiles * TILE), _filled(d, tiles * TILE)
        m = None if m is None else _filled(m, tiles * TILE)
    data = np.empty((tiles, groups, GROUP_BYTES[encoding]), np.uint8)
    end = _Q_BYTES[encoding]
    if encoding != "int8":
        nibbles = q.reshape(tiles, TILE, groups, 4, 2, 4)  # tile, row, group, chunk, low or high, column
        both = nibbles[:, :, :, :, 0] | nibbles[:, :, :, :, 1] << 4
    else:
        both = q.view(np.uint8).reshape(tiles, TILE, groups, 8, 4)
    data[:, :, :end].reshape(tiles, groups, -1, TILE, 4)[...] = both.transpose(0, 2, 3, 1, 4)
    data[:, :, end : end + 2 * TILE] = _scales(d, tiles, groups)
    if m is not None:
        data[:, :, end + 2 * TILE :] = _scales(m, tiles, groups)
    return data.reshape(tiles, bytes_)


def from_tiles(
    data: np.ndarray, encoding: str, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(q, d, m) of tiles that hold a weight of `shape` [out, in]; m is None but for int4."""
    out, columns = shape
    tiles, groups = data.shape[0], columns // GROUP
    grouped, end = data.reshape(tiles, groups, -1), _Q_BYTES[encoding]
    chunks = grouped[:, :, :end].reshape(tiles, groups, -1, TILE, 4).transpose(0, 3, 1, 2, 4)
    if encoding != "int8":
        q = np.stack([chunks & 15, chunks >> 4], axis=4)
    else:
        q = chunks.view(np.int8)
    q = q.reshape(tiles * TILE, groups, GROUP)[:out]
    d, *m = (
        np.ascontiguousarray(grouped[:, :, at : at + 2 * TILE]).view(np.float16).transpose(0, 2, 1)
        .reshape(tiles * TILE, groups)[:out]
        for at in range(end, grouped.shape[2], 2 * TILE)
    )  # fmt: skip
    return q, d, m[0] if m else None


def from_blocks(blocks: np.ndarray, encoding: str) -> np.ndarray:
    """Tiles of rows of GGUF's blocks, uint8 [rows, groups * BLOCK_BYTES]: Q4_1 for int4, Q4_0 for int4s, Q8_0 for int8.
    Lossless."""
    return to_tiles(encoding, *split_blocks(blocks, encoding))


def split_blocks(blocks: np.ndarray, encoding: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(q, d, m) of rows of GGUF's blocks; m is None but for int4."""
    grouped = blocks.reshape(blocks.shape[0], -1, BLOCK_BYTES[encoding])
    d = np.ascontiguousarray(grouped[:, :, :2]).view(np.float16)[:, :, 0]
    if encoding == "int8":
        return np.ascontiguousarray(grouped[:, :, 2:]).view(np.int8), d, None
    m = np.ascontiguousarray(grouped[:, :, 2:4]).view(np.float16)[:, :, 0] if encoding == "int4" else None
    q = grouped[:, :, -GROUP // 2 :]
    return np.concatenate([q & 15, q >> 4], axis=2), d, m


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """More rows of zeros, up to `rows`."""
    full = np.zeros((rows, *array.shape[1:]), array.dtype)
    full[: array.shape[0]] = array
    return full


def _scales(values: np.ndarray, tiles: int, groups: int) -> np.ndarray:
    """fp16 [rows, groups] as bytes [tiles, groups, 32]."""
    ordered = values.reshape(tiles, TILE, groups).transpose(0, 2, 1)
    return np.ascontiguousarray(ordered, np.float16).view(np.uint8)
