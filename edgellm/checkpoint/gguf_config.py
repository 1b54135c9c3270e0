"""A GGUF file's metadata as a transformers config, with what transformers' own conversion leaves out."""

import math
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from edgellm.checkpoint.gguf_file import GGUFFile
from edgellm.checkpoint.names import one_line, quiet_transformers
from edgellm.errors import CheckpointError

FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_VOCABULARY = (
    "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges",
    "tokenizer.ggml.precompiled_charsmap", "general.alignment",
)  # fmt: skip


def config_dict(gguf: GGUFFile, where: str) -> dict:
    """What transformers makes of the metadata. It reads a small copy of the header, without the vocabulary, whose
    entries would take it many seconds, and with one-element tensors."""
    from transformers import PretrainedConfig

    architecture = gguf.metadata["general.architecture"]
    entries = [raw for key, raw in gguf.raw.items() if key not in _VOCABULARY]
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    embedding = gguf.tensors.get("token_embd.weight")
    vocab_size = embedding.shape[0] if embedding else len(tokens) if isinstance(tokens, list) else 0
    if f"{architecture}.vocab_size" not in gguf.metadata:
        # llama.cpp's converters leave it out where the vocabulary tells.
        entries.append(_string(f"{architecture}.vocab_size") + struct.pack("<II", 4, min(vocab_size, 0xFFFFFFFF)))
    if "general.name" not in gguf.metadata:
        entries.append(_string("general.name") + struct.pack("<I", 8) + _string("model"))
    header = b"GGUF" + struct.pack("<IQQ", gguf.version, len(gguf.tensors), len(entries)) + b"".join(entries)
    for i, name in enumerate(gguf.tensors):
        header += _string(name) + struct.pack("<IQIQ", 1, 1, 0, 32 * i)
    header += bytes(-len(header) % 32) + bytes(32 * len(gguf.tensors))
    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
        slim = Path(folder) / "header.gguf"
        slim.write_bytes(header)
        try:
            with quiet_transformers():
                settings, _ = PretrainedConfig.get_config_dict(folder, gguf_file=slim.name, local_files_only=True)
        except Exception as e:  # it reads whatever the metadata says and raises whatever that leads to
            raise CheckpointError(f"{where}: architecture {architecture!r}: {one_line(e)}") from None
    settings.pop("_model_name_or_path", None)
    settings.pop("_commit_hash", None)
    if not isinstance(settings.get("model_type"), str):
        raise CheckpointError(f"{where}: the metadata names no model type")
    # Not every architecture has these mapped, and its class's default is some other model's.
    return {"vocab_size": vocab_size, "pad_token_id": None} | settings


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(raw)) + raw


def extra_settings(gguf: GGUFFile, settings: dict, read: Callable[[str], torch.Tensor], where: str) -> dict:
    """Settings that transformers doesn't take over from the metadata; raises CheckpointError for what would silently
    change the model's answers."""
    architecture, metadata = gguf.metadata["general.architecture"], gguf.metadata

    def of(key: str, kind=(int, float)):
        value = metadata.get(f"{architecture}.{key}")
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    heads, hidden = of("attention.head_count", int), of("embedding_length", int)
    if not heads or not hidden or not of("block_count", int):
        raise CheckpointError(
            f"{where}: the metadata gives {heads} heads, {hidden} for the hidden size and "
            f"{of('block_count', int)} layers; each must be a positive number"
        )
    if of("expert_count", int) and architecture == "llama":
        raise CheckpointError(
            f"{where}: a mixture of {of('expert_count', int)} experts in llama's GGUF layout, which transformers "
            "can't read. Give the model's safetensors folder."
        )
    extra: dict = {}
    key_length, value_length = of("attention.key_length", int), of("attention.value_length", int)
    if key_length and value_length and key_length != value_length and architecture != "deepseek2":
        raise CheckpointError(f"{where}: keys have {key_length} elements a head, values {value_length}; not supported")
    if key_length and architecture in ("llama", "qwen3", "qwen3moe", "mistral", "gemma2", "gemma3"):
        extra["head_dim"] = key_length
    head_dim = key_length or hidden // heads
    if of("expert_feed_forward_length", int) and architecture in ("qwen2moe", "qwen3moe"):
        extra["moe_intermediate_size"] = of("expert_feed_forward_length", int)
    if architecture == "gpt2":
        extra["n_positions"] = of("context_length", int) or 1024
        extra["n_inner"] = of("feed_forward_length", int)
    if architecture == "phi3":
        extra["sliding_window"] = of("attention.sliding_window", int) or None
        rotated = of("rope.dimension_count", int) or head_dim
        if rotated != head_dim:
            extra["partial_rotary_factor"] = rotated / head_dim
    if architecture in ("gemma2", "gemma3"):
        # The files don't carry it; llama.cpp knows the 27B models by their layers.
        largest = {"gemma2": 46, "gemma3": 62}[architecture]
        extra["query_pre_attn_scalar"] = hidden // heads if of("block_count", int) == largest else head_dim
        for ours, theirs in (("attn_logit_softcapping",) * 2, ("final_logit_softcapping",) * 2):
            if of(theirs):
                extra[ours] = of(theirs)
    scaling = _rope_scaling(gguf, settings, of, read, where)
    if scaling and scaling["rope_type"] == "longrope":  # as in Phi-3's own config.json
        extra["original_max_position_embeddings"] = scaling.pop("original_max_position_embeddings")
    if scaling:
        extra["rope_scaling"] = scaling
    return extra


def _rope_scaling(gguf: GGUFFile, settings: dict, of, read, where: str) -> dict | None:
    architecture = gguf.metadata["general.architecture"]
    kind = of("rope.scaling.type", str)
    original = of("rope.scaling.original_context_length", int)
    if "rope_factors_long.weight" in gguf.tensors and "rope_factors_short.weight" in gguf.tensors:
        if architecture != "phi3" or not original:
            raise CheckpointError(f"{where}: LongRoPE factors, but architecture {architecture!r}, length {original}")
        return {
            "rope_type": "longrope",
            "long_factor": _floats(read("rope_factors_long.weight")),
            "short_factor": _floats(read("rope_factors_short.weight")),
            "original_max_position_embeddings": original,
        }
    if "rope_freqs.weight" in gguf.tensors:
        factors = read("rope_freqs.weight").reshape(-1).double()
        return _llama3_scaling(factors, float(settings.get("rope_theta") or 10000.0), original, where)
    factor = of("rope.scaling.factor") or of("rope.scale_linear")
    if kind in (None, "none") and not (kind is None and factor and factor != 1.0):
        return None
    if factor and kind in (None, "linear"):
        return {"rope_type": "linear", "factor": float(factor)}
    if factor and kind == "yarn" and original:
        return {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    if kind == "longrope" or (architecture == "phi3" and kind is None):
        return None  # named in files of models that don't need it
    raise CheckpointError(
        f"{where}: rope scaling {kind!r} with factor {factor} and original length {original} isn't supported"
    )


def _floats(values: torch.Tensor) -> list[float]:
    return [float(f"{v:.7g}") for v in values.reshape(-1).tolist()]


def _llama3_scaling(factors: torch.Tensor, theta: float, original: int | None, where: str) -> dict | None:
    """Llama 3's scaling, found again from the divisors it leads to; llama.cpp stores only these."""
    if bool((factors == 1).all()):
        return None
    factor = float(f"{factors.max().item():.6g}")
    frequencies = theta ** -(torch.arange(len(factors), dtype=torch.float64) / len(factors))
    for length in dict.fromkeys(n for n in (original, 8192, 4096, 2048, 16384, 32768) if n):
        guess = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        smooth = (length * frequencies / (2 * math.pi) - 1.0) / 3.0  # 0 at wavelength = length, 1 at length/4
        smooth = smooth.clamp(0, 1)
        made = 1 / ((1 - smooth) / factor + smooth)
        if torch.allclose(made, factors, rtol=1e-3):
            return {"rope_type": "llama3", **guess, "original_max_position_embeddings": length}
    raise CheckpointError(
        f"{where}: rope_freqs.weight has {len(factors)} divisors up to {factor} that are not Llama 3's scaling for any "
        "length from 2048 to 32768. Give the model's safetensors folder."
    )
