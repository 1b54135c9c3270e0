"""Tokens of small GGUFs, greedily in float32: those that llama.cpp gives."""

import numpy as np
import pytest
from gguf import GGUFWriter

from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from tests.checkpoint.answered import CONFIGS, PROMPT, write_answered
from tests.model.native_sections import NativeRing
from tests.model.native_sections import load as load_native
from tests.model.ring import Ring, load

_VOCAB, _HIDDEN, _INNER = 260, 32, 64
_PROMPT = [3 + (7 * i + 3) % 200 for i in range(20)]


def _write(path, architecture: str, *, rotated: int, theta: float | None, layer_norm: bool, bias: bool, gate: bool):
    """One layer of random weights, drawn in the file's order; norms of ones, biases of zeros."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float16)

    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(_HIDDEN)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    (writer.add_layer_norm_eps if layer_norm else writer.add_layer_norm_rms_eps)(1e-5)
    writer.add_rope_dimension_count(rotated)
    if theta:
        writer.add_rope_freq_base(theta)
    tensors = {"token_embd.weight": drawn(_VOCAB, _HIDDEN), "output.weight": drawn(_VOCAB, _HIDDEN)}
    square, wide, tall = (_HIDDEN, _HIDDEN), (_INNER, _HIDDEN), (_HIDDEN, _INNER)
    shapes = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square, "ffn_up": wide,
              "ffn_down": tall, **({"ffn_gate": wide} if gate else {})}  # fmt: skip
    for name, shape in shapes.items():
        tensors[f"blk.0.{name}.weight"] = drawn(*shape)
        if bias:
            tensors[f"blk.0.{name}.bias"] = np.zeros(shape[0], np.float32)
    for norm in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        tensors[f"{norm}.weight"] = np.ones(_HIDDEN, np.float32)
        if layer_norm:
            tensors[f"{norm}.bias"] = np.zeros(_HIDDEN, np.float32)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "options", "tokens"),
    [
        (
            "starcoder2",  # its rotary base
            dict(rotated=16, theta=999999.4, layer_norm=True, bias=True, gate=False),
            [256, 214, 68, 36, 73, 214, 226, 256],
        ),
        (
            "stablelm",  # half of each head is rotated
            dict(rotated=8, theta=10000.0, layer_norm=True, bias=False, gate=True),
            [182, 200, 56, 148, 200, 182, 200, 79],
        ),
        (
            "llama",  # biases
            dict(rotated=16, theta=None, layer_norm=False, bias=True, gate=True),
            [60, 46, 60, 46, 106, 71, 183, 55],
        ),
    ],
)
def test_greedy_tokens_are_llama_cpps(tmp_path, architecture, options, tokens):
    path = _write(tmp_path / "m.gguf", architecture, **options)
    manifest = split(open_source(str(path)), tmp_path / "out")
    ring = Ring(load(manifest, tmp_path / "out", (0, 1)))
    assert ring.generate(_PROMPT, len(tokens)) == tokens


# llama-cpp-python 0.3.36's, whose keys and values are float16. In GLM-4's file the fourth token is a near tie.
_ANSWERS = {
    "deepseek_v2": [48, 206, 6, 414, 396, 22, 123, 231, 156, 307, 77, 225],
    "deepseek_v3": [32, 484, 93, 501, 431, 148, 260, 127, 358, 161, 329, 48],
    "gemma": [235, 210, 214, 413, 369, 15, 506, 223, 145, 49, 350, 130],
    "gemma2": [279, 73, 178, 231, 231, 288, 325, 348, 348, 348, 348, 267],
    "gemma3": [291, 291, 291, 291, 109, 451, 199, 347, 192, 496, 199, 139],
    "glm4": [24, 59, 493],
    "granite": [42, 359, 388, 77, 178, 501, 411, 35, 207, 214, 47, 257],
    "ministral3": [476, 98, 434, 83, 102, 447, 450, 489, 59, 450, 503, 92],
    "olmo2": [205, 269, 491, 47, 34, 168, 34, 475, 491, 367, 491, 229],
    "olmo3": [72, 72, 353, 475, 161, 419, 33, 22, 431, 354, 186, 451],
    "smollm3": [40, 504, 150, 98, 192, 27, 359, 479, 236, 95, 156, 133],
    "starcoder2": [496, 133, 133, 496, 41, 233, 233, 233, 133, 233, 491, 133],
}


@pytest.mark.parametrize("family", CONFIGS)
def test_native_families_answer_as_llama_cpp_does(tmp_path, family):
    source = open_source(str(write_answered(tmp_path / "m.gguf", family)))
    assert source.spec
    manifest = split(source, tmp_path / "out")
    ring = NativeRing(load_native(manifest, tmp_path / "out", (0, 2, manifest.num_layers)), kv_dtype="float32")
    assert ring.generate(PROMPT, len(_ANSWERS[family])) == _ANSWERS[family]
