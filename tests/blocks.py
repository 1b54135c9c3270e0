"""GGUF's blocks: random ones, and those that tiles hold, which only tests take back."""

import numpy as np

from edgellm.shards.encodings import ENCODINGS
from edgellm.shards.tiles import from_tiles


def to_blocks(data: np.ndarray, encoding: str, shape: tuple[int, int]) -> np.ndarray:
    """Return what tiles.from_blocks takes, of tiles that hold a weight of `shape` [out, in] in int4, int4s or int8."""
    codes, scales = from_tiles(data, encoding, shape)
    q = codes if encoding == "int8" else codes[:, :, :16] | codes[:, :, 16:] << 4
    return np.concatenate([scales, q], axis=2).reshape(shape[0], -1)


def random_blocks(encoding: str, rows: int, columns: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Return blocks of any bits uint8 [rows, bytes of a row] whose weights are about `scale`, at most 8 times it."""
    layout, rng = ENCODINGS[encoding], np.random.default_rng(seed)
    count = columns // layout.columns
    blocks = rng.integers(0, 256, (rows, count, layout.block_bytes), dtype=np.uint8)
    # The largest that d multiplies, and that m does.
    most = {"iq4_nl": 127, "iq4_xs": 127 * 32, "int8": 128, "q6_k": 128 * 32, "q3_k": 32 * 4, "q2_k": 45,
            "q4_k": 945, "q5_k": 63 * 31}.get(encoding, 16)  # fmt: skip
    at = 0
    for field, size in layout.fields:
        if field in "dm" and size == 2:
            signs = rng.choice([-1.0, 1.0], (rows, count, 1))
            span = scale * 4 / (most if field == "d" or layout.groups == 1 else 63)
            values = (signs * rng.uniform(0.5, 1, (rows, count, 1)) * span).astype(np.float16)
            blocks[:, :, at : at + 2] = values.view(np.uint8)
        elif field == "d":
            blocks[:, :, at] = rng.integers(124, 128, (rows, count)) + round(np.log2(scale))
        at += size
    return blocks.reshape(rows, -1)
