"""The layout of packed weights, in NumPy: codes and scales of rows, or GGUF's blocks, to tiles and back.

kernels/gemm.h and docs/shards.md describe the same bytes; encodings.py says what codes and scales are.
"""

import numpy as np

from edgellm.kernels.library import GROUP, TILE, stored_shape
from edgellm.shards.encodings import ENCODINGS, split_blocks

BLOCK_BYTES = {name: encoding.block_bytes for name, encoding in ENCODINGS.items()}  # of one row, in GGUF
_CHUNK = 4 * TILE  # bytes: of each row four


def to_tiles(encoding: str, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return uint8 [tiles, bytes of a tile] of codes [rows, groups, 32] and scales [rows, blocks, bytes], both uint8.

    Rows that fill up the last tile are zeros.
    """
    rows, groups, _ = codes.shape
    tiles, bytes_ = stored_shape(encoding, (rows, groups * GROUP))
    if rows % TILE:
        codes, scales = _filled(codes, tiles * TILE), _filled(scales, tiles * TILE)
    layout = ENCODINGS[encoding]
    blocks = groups // layout.groups
    data = np.empty((tiles, blocks, bytes_ // blocks), np.uint8)
    end = layout.groups * layout.bits * _CHUNK
    _put_codes(codes, layout.planes, data[:, :, :end].reshape(tiles, blocks, layout.groups, -1))
    split = scales.reshape(tiles, TILE, blocks, -1).transpose(0, 2, 1, 3)  # tile, block, row, byte
    at = 0
    for size in layout.scales:
        into = data[:, :, end : end + TILE * size].reshape(tiles, blocks, TILE, size)
        into[...] = split[:, :, :, at : at + size]
        at, end = at + size, end + TILE * size
    return data.reshape(tiles, bytes_)


def from_tiles(data: np.ndarray, encoding: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes, scales) of tiles that hold a weight of `shape` [out, in]."""
    out, columns = shape
    layout = ENCODINGS[encoding]
    tiles, groups = data.shape[0], columns // GROUP
    blocks = data.reshape(tiles, groups // layout.groups, -1)
    end = layout.groups * layout.bits * _CHUNK
    codes = _get_codes(blocks[:, :, :end].reshape(tiles, groups, -1), layout.planes)
    parts = []
    for size in layout.scales:
        parts.append(blocks[:, :, end : end + TILE * size].reshape(*blocks.shape[:2], TILE, size))
        end += TILE * size
    scales = np.concatenate(parts, axis=3).transpose(0, 2, 1, 3).reshape(tiles * TILE, blocks.shape[1], -1)
    return codes.reshape(tiles * TILE, groups, GROUP)[:out], np.ascontiguousarray(scales[:out])


def from_blocks(blocks: np.ndarray, encoding: str) -> np.ndarray:
    """Return the tiles of rows of GGUF's blocks, uint8 [rows, bytes of a row]. Lossless."""
    return to_tiles(encoding, *split_blocks(blocks, encoding))


def _put_codes(codes: np.ndarray, planes: tuple[int, ...], into: np.ndarray) -> None:
    """Write codes [tiles * 16, groups, 32] to [tiles, blocks, groups of a block, bytes]. A byte of a plane of b bits
    has those of 8 / b codes that are 4 columns apart."""
    tiles, blocks, groups, _ = into.shape
    low = at = 0
    for bits in planes:
        parts = codes.reshape(tiles, TILE, blocks, groups, bits, 8 // bits, 4)  # of a group: chunk, part, column
        mask = np.uint8((1 << bits) - 1)
        whole = parts[..., 0, :] >> low & mask
        for i in range(1, 8 // bits):
            whole |= (parts[..., i, :] >> low & mask) << i * bits
        end = at + bits * _CHUNK
        chunks = into[..., at:end].reshape(tiles, blocks, groups, bits, TILE, 4)
        chunks[...] = whole.transpose(0, 2, 3, 4, 1, 5)
        low, at = low + bits, end


def _get_codes(data: np.ndarray, planes: tuple[int, ...]) -> np.ndarray:
    """Return codes [tiles, rows, groups, chunks, parts, 4] of [tiles, groups, bytes], their last three one group."""
    tiles, groups, _ = data.shape
    codes = np.zeros((tiles, TILE, groups, GROUP), np.uint8)
    low = at = 0
    for bits in planes:
        end = at + bits * _CHUNK
        chunks = data[:, :, at:end].reshape(tiles, groups, bits, TILE, 4).transpose(0, 3, 1, 2, 4)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
        fields = chunks[:, :, :, :, None] >> shifts & np.uint8((1 << bits) - 1)
        codes |= fields.reshape(codes.shape) << low
        low, at = low + bits, end
    return codes


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """Return the array with more rows of zeros, up to `rows`."""
    full = np.zeros((rows, *array.shape[1:]), array.dtype)
    full[: array.shape[0]] = array
    return full
