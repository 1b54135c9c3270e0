"""Weights in packed encodings: pack, unpack, and the linear and embedding modules that read them in place.

    int4, int8, and GGUF's      U8 [tiles, bytes of a tile], of 16 rows
    bf16, f16, f32              plain [out, in]

encodings.py, tiles.py and docs/shards.md have the layout of a tile.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgellm.kernels import library
from edgellm.kernels.library import GROUP_BYTES, TILE, stored_shape
from edgellm.shards import encodings, tiles
from edgellm.shards.quantize import LEVELS, quantize

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16} | dict.fromkeys(GROUP_BYTES, torch.uint8)
_CHUNK_ELEMENTS = 1 << 20  # packed or unpacked at a time: a few MB of scratch

# From this many tokens on, unpacking to float32 and multiplying with torch is as fast as the native kernel or faster:
# measured with AVX-512, 3072 x 8192, the kernel wins by a fifth at 24 tokens and they are even at 32 to 64; panels of
# 4 MB were the best of 1 to 16.
PANEL_TOKENS = 33
_PANEL_BYTES = 4 << 20  # float32 scratch for unpacked rows


def pack(weight: torch.Tensor, encoding: str) -> torch.Tensor:
    """Pack a floating-point weight [out, in], a few rows at a time, so that scratch stays small.

    Return uint8 [tiles, bytes of a tile] for int4 and int8, the plain dtype otherwise. Every element of int4 and int8
    is off by at most d/2. Raises ValueError for int4s, for elements that aren't finite or don't fit, and for rows that
    are not a multiple of 32 long.
    """
    if encoding in GROUP_BYTES and encoding not in LEVELS:
        raise ValueError(f"{encoding} is a source's own format; nothing can be packed to it")
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"only a floating-point matrix can be packed, not {weight.dtype} of {weight.dim()} dimensions")
    out, columns = weight.shape
    data = torch.empty(stored_shape(encoding, (out, columns)), dtype=_DTYPES[encoding])
    rows = _rows_at_once(columns)
    for start in range(0, out, rows):
        chunk = weight[start : start + rows].to(torch.float32)
        bad = int((~torch.isfinite(chunk)).sum())
        if bad:
            raise ValueError(f"{bad} of the {chunk.numel()} weights from row {start} on are not finite")
        if encoding in GROUP_BYTES:
            packed = torch.from_numpy(quantize(chunk.numpy(), encoding))
            data[start // TILE : start // TILE + len(packed)] = packed
            continue
        plain = chunk.to(data.dtype)
        if not torch.isfinite(plain).all():
            raise ValueError(f"a weight of {float(chunk.abs().max()):g} is more than {encoding} can hold")
        data[start : start + rows] = plain
    return data


def _rows_at_once(columns: int) -> int:
    """Return how many rows a chunk has: whole tiles."""
    return max(TILE, _CHUNK_ELEMENTS // columns // TILE * TILE)


def unpack(data: torch.Tensor, encoding: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the float32 weight [out, in], or experts [experts, out, in], that packed data stands for, without native
    code. Raises ValueError for data of another shape."""
    check_data(data, encoding, shape)
    if encoding not in GROUP_BYTES:
        return data.to(torch.float32)
    if len(shape) == 3:
        return torch.stack([unpack(expert, encoding, shape[1:]) for expert in data])
    out, columns = shape
    weight = torch.empty(out, columns)
    rows = _rows_at_once(columns)
    for start in range(0, out, rows):
        end = min(start + rows, out)
        part = data[start // TILE : -(-end // TILE)].numpy()
        codes, scales = tiles.from_tiles(part, encoding, (end - start, columns))
        weight[start:end] = torch.from_numpy(encodings.values(codes, scales, encoding))
    return weight


def check_data(data: torch.Tensor, encoding: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `data` has the dtype and shape of a weight of `shape` [out, in], or of experts [experts,
    out, in], in this encoding."""
    expected, dtype = stored_shape(encoding, shape), _DTYPES[encoding]
    if data.dtype != dtype:
        raise ValueError(f"an {encoding} weight is a tensor of {dtype}, not of {data.dtype}")
    if tuple(data.shape) != expected:
        raise ValueError(f"an {encoding} weight of shape {list(shape)} is a tensor of shape {list(expected)}, "
                         f"not {list(data.shape)}")
    if data.device.type != "cpu" or not data.is_contiguous():
        raise ValueError(f"an {encoding} weight must be a dense tensor in main memory")


class _Packed(nn.Module):
    """The base of both modules: the data as given (often mapped memory), outside the state dict."""

    def __init__(self, data: torch.Tensor, encoding: str, shape: tuple[int, int]):
        super().__init__()
        check_data(data, encoding, shape)
        self.data = data
        self.encoding = encoding
        self.shape: tuple[int, int] = (shape[0], shape[1])
        # NumPy knows no bfloat16; the kernels want the bytes.
        self._bytes = data.view(torch.int16 if encoding == "bf16" else data.dtype).numpy()

    @property
    def weight(self) -> torch.Tensor:
        """The whole weight in float32, for model code that looks at it: exact, but unpacked again each time."""
        return unpack(self.data, self.encoding, self.shape)

    def extra_repr(self) -> str:
        return f"{self.encoding}, shape={list(self.shape)}"


class PackedLinear(_Packed):
    """nn.Linear over a packed weight [out, in], with an optional float32 bias [out]; float32 in, float32 out.

    The result is F.linear(x, unpack(...)) up to the order of summation. No gradients.
    """

    def __init__(self, data: torch.Tensor, encoding: str, shape: tuple[int, int], bias: torch.Tensor | None = None):
        super().__init__(data, encoding, shape)
        if bias is not None and (bias.dtype != torch.float32 or tuple(bias.shape) != (shape[0],)):
            raise ValueError(f"bias must be float32 of shape [{shape[0]}], not {bias.dtype} of {list(bias.shape)}")
        self.bias = bias
        self.out_features, self.in_features = self.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., out] for x, float32 [..., in]."""
        if self.encoding == "f32":
            return functional.linear(x, self.data, self.bias)
        rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
        y = rows.new_empty(rows.shape[0], self.out_features)
        if rows.shape[0] < PANEL_TOKENS:
            library.linear(rows.numpy(), self._bytes, self.encoding, self.shape, y.numpy())
        else:
            self._in_panels(rows, y)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def _in_panels(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Unpack some rows at a time to float32, and multiply with those."""
        at_once = max(1, min(_PANEL_BYTES // (4 * self.in_features), self.out_features))
        panel = x.new_empty(at_once, self.in_features)
        for start in range(0, self.out_features, at_once):
            end = min(start + at_once, self.out_features)
            library.dequantize(self._bytes, self.encoding, self.shape, start, end, panel[: end - start].numpy())
            torch.mm(x, panel[: end - start].T, out=y[:, start:end])


class PackedEmbedding(_Packed):
    """nn.Embedding over a packed weight [vocabulary, dim]."""

    def __init__(self, data: torch.Tensor, encoding: str, shape: tuple[int, int]):
        super().__init__(data, encoding, shape)
        self.num_embeddings, self.embedding_dim = self.shape

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return float32 [..., dim] for ids, integers [...]. Raises IndexError for ids outside the vocabulary."""
        chosen = ids.reshape(-1)
        if self.encoding in GROUP_BYTES:
            y = self._gather(chosen.numpy())
        else:
            y = self.data[chosen].to(torch.float32)
        return y.view(*ids.shape, self.embedding_dim)

    def _gather(self, ids: np.ndarray) -> torch.Tensor:
        """Return rows float32 [ids, dim], picked out of their tiles."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.num_embeddings:
            raise IndexError(f"token id {ids.min()} or {ids.max()} is outside of 0 to {self.num_embeddings - 1}")
        y = torch.empty(len(ids), self.embedding_dim)
        for i, row in enumerate(ids.tolist()):
            library.dequantize(self._bytes, self.encoding, self.shape, row, row + 1, y[i : i + 1].numpy())
        return y
