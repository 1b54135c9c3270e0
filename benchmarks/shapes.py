"""Models of known shapes with random weights, as GGUF files that llama.cpp and edgellm both read."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Elements and bytes a block, by ggml type; F32 has no blocks.
BLOCKS = {"Q4_0": (32, 18), "Q8_0": (32, 34), "Q6_K": (256, 210)}
_SPREAD = 0.02  # of the weights, as models are initialised
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Shape:
    """What decides how much there is to read and to compute. `architecture` is llama.cpp's name."""

    name: str
    architecture: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    rope_theta: float
    rms_eps: float
    tied: bool
    fused: bool  # query, key and value in one tensor; gate and up in one

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


# As their config.json has it.
PHI3_MINI = Shape("phi-3-mini", "phi3", 32, 3072, 8192, 32, 32, 32064, 4096, 10000.0, 1e-5, tied=False, fused=True)
LLAMA_1B = Shape("llama-3.2-1b", "llama", 16, 2048, 8192, 32, 8, 128256, 131072, 500000.0, 1e-5, tied=True, fused=False)


def tensors(shape: Shape, weights: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, [out, in], ggml type) of every tensor. `weights` is the layers' type; with Q4_0 the head is Q6_K, which is
    what llama.cpp's own quantizer makes of it."""
    head = "Q6_K" if weights == "Q4_0" else weights
    hidden, kv = shape.hidden, shape.kv_heads * shape.head_dim
    vocabulary = (shape.vocab, hidden)
    found = [("token_embd.weight", vocabulary, head if shape.tied else weights)]
    for i in range(shape.layers):
        if shape.fused:
            matrices = {"attn_qkv": (hidden + 2 * kv, hidden), "ffn_up": (2 * shape.inner, hidden)}
        else:
            matrices = {
                "attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
                "ffn_gate": (shape.inner, hidden), "ffn_up": (shape.inner, hidden),
            }  # fmt: skip
        matrices |= {"attn_output": (hidden, hidden), "ffn_down": (hidden, shape.inner)}
        found += [(f"blk.{i}.{name}.weight", (hidden,), "F32") for name in ("attn_norm", "ffn_norm")]
        found += [(f"blk.{i}.{name}.weight", size, weights) for name, size in matrices.items()]
    found.append(("output_norm.weight", (hidden,), "F32"))
    if not shape.tied:
        found.append(("output.weight", vocabulary, head))
    return found


def stored_bytes(size: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor of this size and ggml type."""
    if kind == "F32":
        return 4 * math.prod(size)
    elements, block_bytes = BLOCKS[kind]
    return math.prod(size) // elements * block_bytes


def file_bytes(shape: Shape, weights: str) -> int:
    """Bytes of the whole file, but for its header."""
    return sum(stored_bytes(size, kind) for _, size, kind in tensors(shape, weights))


def random_rows(kind: str, rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Random weights of standard deviation 0.02: uint8 [rows, bytes a row], in blocks as ggml-common.h has them."""
    elements, block_bytes = BLOCKS[kind]
    blocks = generator.integers(0, 256, (rows * columns // elements, block_bytes), dtype=np.uint8)
    # Uniform quants: their standard deviation is their number over √12.
    quants = {"Q4_0": 16, "Q8_0": 256, "Q6_K": 64}[kind]
    scale = _SPREAD * math.sqrt(12) / quants
    if kind == "Q6_K":  # 16 int8 scales of 16 weights each, and an fp16 one over them, at the end
        blocks[:, 192:208] = generator.integers(32, 97, (len(blocks), 16), dtype=np.uint8)
        scale /= 64
    at = 208 if kind == "Q6_K" else 0
    scales = (scale * generator.uniform(0.75, 1.25, (len(blocks), 1))).astype(np.float16)
    blocks[:, at : at + 2] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def write_gguf(path: Path, shape: Shape, weights: str, progress: Callable[[int, int], None]) -> None:
    """Write the model whole or not at all, a few rows at a time; calls `progress(bytes done, bytes in all)`."""
    import gguf

    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, shape.architecture)
    writer.add_name(f"{shape.name} with random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("none")  # speaks in token ids
    wanted = tensors(shape, weights)
    for name, size, kind in wanted:
        kind_id, count = gguf.GGMLQuantizationType[kind], stored_bytes(size, kind)
        if kind == "F32":
            writer.add_tensor_info(name, size, np.dtype(np.float32), count)
        else:
            writer.add_tensor_info(name, (size[0], count // size[0]), np.dtype(np.uint8), count, kind_id)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        generator, total, done = np.random.default_rng(0), file_bytes(shape, weights), 0
        for _, size, kind in wanted:
            writer.write_tensor_data(_random(size, kind, generator))
            done += stored_bytes(size, kind)
            progress(done, total)
        writer.close()
        os.replace(part, path)
    except BaseException:
        writer.close()
        part.unlink(missing_ok=True)
        raise


def _random(size: tuple[int, ...], kind: str, generator: np.random.Generator) -> np.ndarray:
    if kind == "F32":
        return generator.normal(1.0, 0.05, size).astype(np.float32)
    rows = [min(_ROWS_AT_ONCE, size[0] - start) for start in range(0, size[0], _ROWS_AT_ONCE)]
    return np.concatenate([random_rows(kind, count, size[1], generator) for count in rows])
