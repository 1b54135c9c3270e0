"""How the integers and the scales of each packed encoding lie: in GGUF's blocks, and in groups of a shard's tiles.

kernels/gemm.h and docs/shards.md describe the same bytes. The *codes* of a weight are its integers as stored, uint8
[rows, groups, 32]. Its *scales* are what a row has besides in each block, as bytes: uint8 [rows, blocks, bytes].
"""

from dataclasses import dataclass

import numpy as np

from edgellm.kernels.library import BLOCK_COLUMNS, GROUP

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
_MXFP4_MOST = 252  # the exponent of the largest scale that no value takes out of float32


@dataclass(frozen=True)
class Encoding:
    """A packed encoding: GGUF's name of it, how many bits of a code each plane has, lowest first, and how many bytes
    each number of a row's scales takes.

    `fields` are the parts of GGUF's block and their bytes, in their order; "q" are the lowest bits, "h" the high ones.
    """

    name: str
    gguf: str
    planes: tuple[int, ...]
    scales: tuple[int, ...]
    fields: tuple[tuple[str, int], ...]

    @property
    def columns(self) -> int:
        """Columns of a block: rows are a multiple of them."""
        return BLOCK_COLUMNS[self.name]

    @property
    def groups(self) -> int:
        """Groups of a block."""
        return self.columns // GROUP

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return sum(self.planes)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of one row in GGUF."""
        return sum(size for _, size in self.fields)

    @property
    def halves(self) -> int:
        """How many fp16 end the scales."""
        return self.scales.count(2) - (self.name == "iq4_xs")


def _encoding(name: str, gguf: str, planes: tuple[int, ...], scales: tuple[int, ...], **fields: int) -> Encoding:
    return Encoding(name, gguf, planes, scales, tuple(fields.items()))


ENCODINGS = {
    encoding.name: encoding
    for encoding in (
        _encoding("int4", "Q4_1", (4,), (2, 2), d=2, m=2, q=16),
        _encoding("int4s", "Q4_0", (4,), (2,), d=2, q=16),
        _encoding("int8", "Q8_0", (8,), (2,), d=2, q=32),
        _encoding("q5_0", "Q5_0", (4, 1), (2,), d=2, h=4, q=16),
        _encoding("q5_1", "Q5_1", (4, 1), (2, 2), d=2, m=2, h=4, q=16),
        _encoding("iq4_nl", "IQ4_NL", (4,), (2,), d=2, q=16),
        _encoding("mxfp4", "MXFP4", (4,), (1,), d=1, q=16),
        _encoding("iq4_xs", "IQ4_XS", (4,), (4, 2, 2), d=2, high=2, low=4, q=128),
        _encoding("q2_k", "Q2_K", (2,), (4, 4, 4, 4, 2, 2), s=16, q=64, d=2, m=2),
        _encoding("q3_k", "Q3_K", (2, 1), (4, 4, 4, 2), h=32, q=64, s=12, d=2),
        _encoding("q4_k", "Q4_K", (4,), (4, 4, 4, 2, 2), d=2, m=2, s=12, q=128),
        _encoding("q5_k", "Q5_K", (4, 1), (4, 4, 4, 2, 2), d=2, m=2, s=12, h=32, q=128),
        _encoding("q6_k", "Q6_K", (4, 2), (4, 4, 4, 4, 2), q=128, h=64, s=16, d=2),
    )
}


def split_blocks(blocks: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes, scales) of rows of GGUF's blocks, uint8 [rows, bytes of a row]."""
    encoding = ENCODINGS[name]
    grouped = blocks.reshape(len(blocks), -1, encoding.block_bytes)
    part, at = {}, 0
    for field, size in encoding.fields:
        part[field] = grouped[:, :, at : at + size]
        at += size
    if name == "iq4_xs":
        part["s"] = np.concatenate([_scales_of_iq4_xs(part["low"]), part["high"]], axis=2)
    scales = np.concatenate([part[field] for field in ("s", "d", "m") if field in part], axis=2)
    codes = part["q"] if encoding.planes[0] == 8 else _low_codes(part["q"], encoding)
    if "h" in part:
        codes = codes | _high_bits(part["h"], encoding) << encoding.planes[0]
    return codes.reshape(len(blocks), -1, GROUP), scales


def values(codes: np.ndarray, scales: np.ndarray, name: str) -> np.ndarray:
    """Return the float32 weights [rows, columns] that codes and scales stand for."""
    rows, count, _ = scales.shape
    d, m = _factors(scales, name)
    q = _numbers(codes, name).reshape(rows, count, d.shape[2], -1)
    with np.errstate(invalid="ignore", over="ignore"):  # scales that aren't finite are refused where they are written
        weights = d[..., None] * q
        if m is not None:
            weights += m[..., None]
    found: np.ndarray = weights.reshape(rows, -1)
    return found


def not_finite(scales: np.ndarray, name: str) -> int:
    """Return how many blocks have a scale that isn't finite, of scales uint8 [rows, blocks, bytes]."""
    if name == "mxfp4":
        return int((scales > _MXFP4_MOST).sum())
    high = scales[:, :, -2 * ENCODINGS[name].halves + 1 :: 2]
    return int(((high & 0x7C) == 0x7C).any(axis=2).sum())


def _low_codes(q: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Return the codes' lowest plane [rows, blocks, groups, 32] of its bytes: each byte has the bits of 2 or 4 groups
    that follow one another, or of both halves of a group."""
    bits, groups = encoding.planes[0], encoding.groups
    along = {"q6_k": 64}.get(encoding.name, 32 if encoding.name in ("q2_k", "q3_k", "q4_k", "q5_k") else 16)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = q.reshape(*q.shape[:2], -1, 1, along) >> shifts & np.uint8((1 << bits) - 1)
    found: np.ndarray = fields.reshape(*q.shape[:2], groups, GROUP)
    return found


def _high_bits(h: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Return the codes' high plane [rows, blocks, groups, 32] of its bytes."""
    if encoding.groups == 1:
        return np.unpackbits(h, axis=2, bitorder="little").reshape(*h.shape[:2], 1, GROUP)
    bits = encoding.planes[1]
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = h.reshape(*h.shape[:2], -1, 1, GROUP) >> shifts & np.uint8((1 << bits) - 1)
    found: np.ndarray = fields.reshape(*h.shape[:2], encoding.groups, GROUP)
    return found


def _scales_of_iq4_xs(low: np.ndarray) -> np.ndarray:
    """Return four bytes whose low four bits are those of groups 0 to 3, and the high ones those of groups 4 to 7; in
    GGUF two groups that follow one another share a byte."""
    nibbles = np.stack([low & 15, low >> 4], axis=3).reshape(*low.shape[:2], 8)
    found: np.ndarray = nibbles[:, :, :4] | nibbles[:, :, 4:] << 4
    return found


def _numbers(codes: np.ndarray, name: str) -> np.ndarray:
    """Return what codes mean before they are scaled, float32."""
    table = {"iq4_nl": IQ4_VALUES, "iq4_xs": IQ4_VALUES, "mxfp4": MXFP4_VALUES}.get(name)
    if table is not None:
        return np.asarray(table[codes], np.float32)
    if name == "int8":
        return codes.view(np.int8).astype(np.float32)
    centre = {"int4s": 8, "q5_0": 16, "q3_k": 4, "q6_k": 32}.get(name, 0)
    return codes.astype(np.float32) - np.float32(centre)


def _halves(scales: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Return the fp16 that end the scales, float32 [rows, blocks, halves]."""
    with np.errstate(invalid="ignore"):
        return np.ascontiguousarray(scales[:, :, -2 * encoding.halves :]).view(np.float16).astype(np.float32)


def _factors(scales: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what each group, or half of one, is multiplied by, and what is added: float32 [rows, blocks, parts]."""
    if name == "mxfp4":
        bits = np.where(scales < 2, np.uint32(0x200000) << scales.astype(np.uint32),
                        (scales.astype(np.uint32) - np.uint32(1)) << np.uint32(23))  # fmt: skip
        return bits.view(np.float32), None
    encoding = ENCODINGS[name]
    halves = _halves(scales, encoding)
    d, m = halves[:, :, :1], halves[:, :, 1:]
    if encoding.groups == 1:
        return d, m if m.shape[2] else None
    steps, minima = _steps(scales, name)
    with np.errstate(invalid="ignore"):
        return d * steps.astype(np.float32), None if minima is None else -(m * minima.astype(np.float32))


def _steps(scales: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the integer scales of a block's groups, or halves of groups, and its integer minima."""
    if name == "q6_k":
        return scales[:, :, :16].view(np.int8), None
    if name == "q2_k":
        return scales[:, :, :16] & 15, scales[:, :, :16] >> 4
    if name == "iq4_xs":
        low = np.concatenate([scales[:, :, :4] & 15, scales[:, :, :4] >> 4], axis=2)
        shifts = np.arange(0, 8, 2, dtype=np.uint8)
        high = np.concatenate([scales[:, :, i : i + 1] >> shifts & 3 for i in (4, 5)], axis=2)
        return (low | high << 4).astype(np.int8) - np.int8(32), None
    a, b, c = scales[:, :, :4], scales[:, :, 4:8], scales[:, :, 8:12]
    if name == "q3_k":
        low = np.concatenate([a & 15, b & 15, a >> 4, b >> 4], axis=2)
        high = np.concatenate([c >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)
        return (low | high << 4).astype(np.int8) - np.int8(32), None
    return (
        np.concatenate([a & 63, c & 15 | a >> 2 & 48], axis=2),
        np.concatenate([b & 63, c >> 4 | b >> 2 & 48], axis=2),
    )
