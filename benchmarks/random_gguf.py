"""Writes GGUF files of known shapes with random weights, which llama.cpp and edgellm both read.

Blocks of weights are drawn for some thousand rows of a length, and these rows come again and again: so a file is
written as fast as the disk takes it. Each tensor goes on where the one before ended, and the number of rows is a prime,
so no two experts of a layer have the same weights in the same places.

Tokens have to spread over the experts, which `python -m benchmarks.routing` counts. So routers are drawn anew for each
layer; weights are 0 in the mean, and an embedding that isn't the head is larger than what layers add to it, because
otherwise all tokens would soon look the same.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.shapes import BLOCKS, Shape, file_bytes, stored_bytes, tensors

_SPREAD = 0.02  # of the weights, as models are initialised
_LARGE = 4.0  # of an embedding that is no head: larger than what layers add to it
_TILE_ROWS = 4099  # a prime
# Quants are uniform: their standard deviation is their number over √12. K-quants also have a scale of 6 or 8 bits.
_QUANTS = {"Q4_0": 16, "Q5_0": 32, "Q8_0": 256, "Q4_K": 16, "Q6_K": 64}
_MXFP4_EXPONENTS = 119, 120  # with which its values have about that spread


def random_rows(
    kind: str, rows: int, columns: int, generator: np.random.Generator, spread: float = _SPREAD
) -> np.ndarray:
    """Return random weights of this standard deviation, of MXFP4 0.02: uint8 [rows, bytes a row], in blocks as
    ggml-common.h has them."""
    elements, block_bytes = BLOCKS[kind]
    blocks = generator.integers(0, 256, (rows * columns // elements, block_bytes), dtype=np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = generator.choice(_MXFP4_EXPONENTS, len(blocks), p=(0.31, 0.69))
        return blocks.reshape(rows, -1)
    scale = spread * math.sqrt(12) / _QUANTS[kind]
    factors = scale * generator.uniform(0.75, 1.25, (len(blocks), 1))
    if kind != "Q4_K":  # quants reach further below 0: with scales of one sign all tokens would come to look the same
        factors *= generator.choice((-1.0, 1.0), factors.shape)
    at = 0
    if kind == "Q6_K":  # 16 int8 scales of 16 weights each, and an fp16 one over them, at the end
        blocks[:, 192:208] = generator.integers(32, 97, (len(blocks), 16), dtype=np.uint8)
        factors, at = factors / 64, 208
    if kind == "Q4_K":  # 8 scales of 6 bits, 8 minima that are the same numbers, and an fp16 factor for each
        low, high = generator.integers(24, 41, (2, len(blocks), 4), dtype=np.uint8)
        blocks[:, 4:8] = blocks[:, 8:12] = low | (high >> 4) << 6
        blocks[:, 12:16] = (high & 15) | (high & 15) << 4
        factors = factors / 32
        blocks[:, 2:4] = (7.5 * factors).astype(np.float16).view(np.uint8)  # so that their mean is 0
    blocks[:, at : at + 2] = factors.astype(np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


class _Tiles:
    """Rows of each ggml type and length, drawn once."""

    def __init__(self, generator: np.random.Generator):
        self._generator = generator
        self._tiles: dict[tuple[str, int, float], np.ndarray] = {}
        self._next: dict[tuple[str, int, float], int] = {}

    def rows(self, kind: str, count: int, columns: int, spread: float) -> np.ndarray:
        """Return the next `count` rows: uint8 [count, bytes a row]."""
        key = kind, columns, spread
        if key not in self._tiles:
            self._tiles[key] = random_rows(kind, _TILE_ROWS, columns, self._generator, spread)
        start = self._next.get(key, 0)
        self._next[key] = start + count
        return self._tiles[key][(start + np.arange(count)) % _TILE_ROWS]


def write_gguf(path: Path, shape: Shape, weights: str, progress: Callable[[int, int], None]) -> None:
    """Write the model whole or not at all; calls `progress(bytes done, bytes in all)`."""
    import gguf

    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, shape.architecture)
    _add_header(writer, shape)
    wanted = tensors(shape, weights)
    for name, size, kind in wanted:
        kind_id, count = gguf.GGMLQuantizationType[kind], stored_bytes(size, kind)
        if kind == "F32":
            writer.add_tensor_info(name, size, np.dtype(np.float32), count)
        else:
            row_bytes = count // math.prod(size[:-1])
            writer.add_tensor_info(name, (*size[:-1], row_bytes), np.dtype(np.uint8), count, kind_id)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        generator, total, done = np.random.default_rng(0), file_bytes(shape, weights), 0
        tiles = _Tiles(generator)
        for name, size, kind in wanted:
            if kind == "F32":
                writer.write_tensor_data(_numbers(name, size, generator))
            else:
                spread = _LARGE if name == "token_embd.weight" and not shape.tied else _SPREAD
                writer.write_tensor_data(tiles.rows(kind, math.prod(size[:-1]), size[-1], spread))
            done += stored_bytes(size, kind)
            progress(done, total)
        writer.close()
        os.replace(part, path)
    except BaseException:
        writer.close()
        part.unlink(missing_ok=True)
        raise


def _add_header(writer, shape: Shape) -> None:
    writer.add_name(f"{shape.name} with random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    if shape.architecture == "lfm2moe":  # 0 tells its convolutions
        writer.add_head_count_kv([shape.kv_heads * shape.has_attention(i) for i in range(shape.layers)])
    else:
        writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    if "rope.dimension_count" not in shape.metadata:
        writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    if shape.head:
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.chosen)
        writer.add_expert_feed_forward_length(shape.expert_inner)
        if shape.dense_layers:
            writer.add_leading_dense_block_count(shape.dense_layers)
    for name, value in shape.metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](f"{shape.architecture}.{name}", value)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("none")  # speaks in token ids


def _numbers(name: str, size: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Return what isn't quantized, float32: norms around 1; decays, which a GGUF has below 0; biases and routers around
    0."""
    if "norm" in name:
        return generator.normal(1.0, 0.05, size).astype(np.float32)
    if name.endswith("ssm_a"):
        return -generator.uniform(0.1, 8.0, size).astype(np.float32)
    spread = 0.3 if "conv" in name else 1.0 if "sinks" in name else _SPREAD
    return generator.normal(0.0, spread, size).astype(np.float32)
