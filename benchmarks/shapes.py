"""Models of known shapes: which tensors they have, of which ggml types, and what a GGUF's header says of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# Elements and bytes a block, by ggml type; F32 has no blocks.
BLOCKS = {
    "Q4_0": (32, 18), "Q5_0": (32, 22), "Q8_0": (32, 34), "MXFP4": (32, 17), "Q4_K": (256, 144), "Q6_K": (256, 210),
}  # fmt: skip
# What llama.cpp's quantizer takes where rows aren't whole blocks.
_FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
Tensor = tuple[str, tuple[int, ...], str]  # name, [(experts,) out, in], ggml type


@dataclass(frozen=True)
class Shape:
    """What decides how much there is to read and to compute. `architecture` is llama.cpp's name.

    `fused`: query, key and value in one tensor; gate and up in one. `head` is a head's size where it isn't hidden /
    heads. Layers from `dense_layers` on have `experts` of size `expert_inner`, of which a token takes `chosen`; there
    are none if `experts` is 0. `attention` are the layers with attention where others are recurrent, all if it is
    empty. `metadata` is the rest of the header, without the architecture's name.
    """

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
    fused: bool = False
    head: int = 0
    experts: int = 0
    chosen: int = 0
    expert_inner: int = 0
    dense_layers: int = 0
    attention: tuple[int, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)

    @property
    def head_dim(self) -> int:
        return self.head or self.hidden // self.heads

    def has_attention(self, layer: int) -> bool:
        return not self.attention or layer in self.attention

    def cut(self, layers: int) -> "Shape":
        """Return the same with fewer layers."""
        return replace(self, layers=layers, attention=tuple(i for i in self.attention if i < layers))


# As their config.json has it.
PHI3_MINI = Shape("phi-3-mini", "phi3", 32, 3072, 8192, 32, 32, 32064, 4096, 10000.0, 1e-5, tied=False, fused=True)
LLAMA_1B = Shape("llama-3.2-1b", "llama", 16, 2048, 8192, 32, 8, 128256, 131072, 500000.0, 1e-5, tied=True)
QWEN3_06B = Shape("qwen3-0.6b", "qwen3", 28, 1024, 3072, 16, 8, 151936, 40960, 1e6, 1e-6, tied=True, head=128)
QWEN3_30B = Shape(
    "qwen3-30b-a3b", "qwen3moe", 48, 2048, 6144, 32, 4, 151936, 40960, 1e6, 1e-6, tied=False, head=128, experts=128,
    chosen=8, expert_inner=768,
)  # fmt: skip
GPT_OSS_20B = Shape(
    "gpt-oss-20b", "gpt-oss", 24, 2880, 2880, 64, 8, 201088, 131072, 150000.0, 1e-5, tied=False, head=64, experts=32,
    chosen=4, expert_inner=2880,
    metadata={"attention.sliding_window": 128, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
              "rope.scaling.original_context_length": 4096},
)  # fmt: skip
GEMMA3_1B = Shape(
    "gemma-3-1b", "gemma3", 26, 1152, 6912, 4, 1, 262144, 32768, 1e6, 1e-6, tied=True, head=256,
    metadata={"attention.sliding_window": 512, "rope.freq_base_swa": 10000.0},
)  # fmt: skip
QWEN35_4B = Shape(
    "qwen3.5-4b", "qwen35", 32, 2560, 9216, 16, 4, 248320, 262144, 1e7, 1e-6, tied=True, head=256,
    attention=tuple(range(3, 32, 4)),
    metadata={"rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0], "full_attention_interval": 4,
              "ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 16, "ssm.time_step_rank": 32,
              "ssm.inner_size": 4096},
)  # fmt: skip
LFM2_8B = Shape(
    "lfm2-8b-a1b", "lfm2moe", 24, 2048, 7168, 32, 8, 65536, 128000, 1e6, 1e-5, tied=True, experts=32, chosen=4,
    expert_inner=1792, dense_layers=2, attention=(2, 6, 10, 14, 18, 21),
    metadata={"shortconv.l_cache": 3, "expert_gating_func": 2},
)  # fmt: skip


def tensors(shape: Shape, weights: str) -> list[Tensor]:
    """Return every tensor of a file of type `weights`: Q4_0, Q8_0, Q4_K_M or MXFP4."""
    vocabulary = (shape.vocab, shape.hidden)
    sizes: dict[str, tuple[int, ...]] = {"token_embd.weight": vocabulary}
    for i in range(shape.layers):
        sizes |= {f"blk.{i}.{name}": size for name, size in _layer(shape, i).items()}
    sizes["token_embd_norm.weight" if shape.architecture == "lfm2moe" else "output_norm.weight"] = (shape.hidden,)
    if not shape.tied:
        sizes["output.weight"] = vocabulary
    return [(name, size, _kind(shape, weights, name, size)) for name, size in sizes.items()]


def _layer(shape: Shape, i: int) -> dict[str, tuple[int, ...]]:
    """Return a layer's tensors, without its number."""
    norms = ["attn_norm", "post_attention_norm" if shape.architecture in ("gpt-oss", "qwen35") else "ffn_norm"]
    if shape.architecture == "gemma3":
        norms += ["post_attention_norm", "post_ffw_norm"]
    mixer = _attention(shape) if shape.has_attention(i) else _recurrent(shape)
    experts = shape.experts and i >= shape.dense_layers
    parts = {**{f"{n}.weight": (shape.hidden,) for n in norms}, **mixer, **(_experts if experts else _mlp)(shape)}
    if shape.architecture == "gpt-oss":
        parts["attn_sinks.weight"] = (shape.heads,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp", *_EXPERTS):
            parts[f"{name}.bias"] = parts[f"{name}.weight"][:-1]
    return parts


def _attention(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found = {"attn_output.weight": (hidden, q)}
    if shape.fused:
        return {"attn_qkv.weight": (q + 2 * kv, hidden), **found}
    gated = 2 if shape.architecture == "qwen35" else 1  # its queries bring a gate each
    found |= {"attn_q.weight": (gated * q, hidden), "attn_k.weight": (kv, hidden), "attn_v.weight": (kv, hidden)}
    if shape.architecture not in ("llama", "gpt-oss"):
        found |= {"attn_q_norm.weight": (shape.head_dim,), "attn_k_norm.weight": (shape.head_dim,)}
    return found


def _recurrent(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, said = shape.hidden, shape.metadata
    if shape.architecture == "lfm2moe":
        sizes = {"conv": (hidden, int(said["shortconv.l_cache"])), "in_proj": (3 * hidden, hidden),
                 "out_proj": (hidden, hidden)}  # fmt: skip
        return {f"shortconv.{name}.weight": size for name, size in sizes.items()}
    heads, values, size = (int(said[f"ssm.{name}"]) for name in ("time_step_rank", "inner_size", "state_size"))
    channels = 2 * size * int(said["ssm.group_count"]) + values
    return {
        "attn_qkv.weight": (channels, hidden), "attn_gate.weight": (values, hidden),
        "ssm_alpha.weight": (heads, hidden), "ssm_beta.weight": (heads, hidden),
        "ssm_conv1d.weight": (channels, int(said["ssm.conv_kernel"])),
        "ssm_a": (heads,), "ssm_dt.bias": (heads,), "ssm_norm.weight": (values // heads,),
        "ssm_out.weight": (hidden, values),
    }  # fmt: skip


def _mlp(shape: Shape) -> dict[str, tuple[int, ...]]:
    found = {"ffn_down.weight": (shape.hidden, shape.inner)}
    if shape.fused:
        return {"ffn_up.weight": (2 * shape.inner, shape.hidden), **found}
    return {f"ffn_{n}.weight": (shape.inner, shape.hidden) for n in ("gate", "up")} | found


_EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def _experts(shape: Shape) -> dict[str, tuple[int, ...]]:
    count, inner, hidden = shape.experts, shape.expert_inner, shape.hidden
    found = {f"{name}.weight": (count, inner, hidden) for name in _EXPERTS}
    found |= {"ffn_down_exps.weight": (count, hidden, inner), "ffn_gate_inp.weight": (count, hidden)}
    return found | ({"exp_probs_b.bias": (count,)} if shape.architecture == "lfm2moe" else {})


def _kind(shape: Shape, weights: str, name: str, size: tuple[int, ...]) -> str:
    """Return the ggml type that llama.cpp's own quantizer gives a tensor, of the version that is built here."""
    part, _, suffix = name.rpartition(".")
    layer, part = int(name.split(".")[1]) if name.startswith("blk.") else 0, part.rpartition(".")[2]
    small = len(size) < 2 or suffix != "weight" or part in ("ffn_gate_inp", "ssm_conv1d", "conv")
    if small:
        return "F32"
    if weights == "MXFP4":
        kind = "MXFP4" if len(size) == 3 else "Q8_0"
    elif part == "output" or part == "token_embd" and shape.tied:
        kind = "Q8_0" if weights == "Q8_0" else "Q6_K"
    elif weights == "Q4_K_M":
        careful = part in ("attn_v", "attn_qkv", "ffn_down", "ffn_down_exps") and _gets_more_bits(layer, shape.layers)
        kind = "Q6_K" if careful else "Q4_K"
    else:
        kind = weights
    return kind if size[-1] % BLOCKS[kind][0] == 0 else _FALLBACK[kind]


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Return whether a layer is of the first or last eighth, or of every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def stored_bytes(size: tuple[int, ...], kind: str) -> int:
    """Return the bytes of a tensor of this size and ggml type."""
    if kind == "F32":
        return 4 * math.prod(size)
    elements, block_bytes = BLOCKS[kind]
    return math.prod(size) // elements * block_bytes


def file_bytes(shape: Shape, weights: str) -> int:
    """Return the bytes of the whole file, but for its header."""
    return sum(stored_bytes(size, kind) for _, size, kind in tensors(shape, weights))
