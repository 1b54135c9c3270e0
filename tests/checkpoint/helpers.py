"""Tiny models, and a reader of split folders that shares no code with the writer."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
)

from edgellm.files import sha256_of
from edgellm.model.families.find import find_spec
from edgellm.model.generic.packed import unpack
from edgellm.shards.manifest import Manifest

_BASE = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
CONFIGS = {
    "llama": lambda: LlamaConfig(**_BASE),
    "gpt2": lambda: GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64, eos_token_id=3),
    "phi3": lambda: Phi3Config(**_BASE),
    "qwen2-tied": lambda: Qwen2Config(**_BASE, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(**_BASE, head_dim=16, sliding_window=32, query_pre_attn_scalar=16),
    "mixtral": lambda: MixtralConfig(**_BASE, num_local_experts=4, num_experts_per_tok=2),
}


def tiny_model(family: str, dtype=torch.float32, seed: int = 0):
    """A random model of a family in CONFIGS."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.1 + (0.5 if p.dim() == 1 else 0.0))
    return model


def save(model, folder: Path, **kwargs) -> Path:
    """Save as a user would; returns the folder."""
    model.save_pretrained(folder, **kwargs)
    return folder


def read_split(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a split by state_dict name, packed ones unpacked to float32, Conv1D weights as stored; those that
    a shard has apart together again."""
    manifest = Manifest.read(folder)
    spec, _ = find_spec(json.loads((folder / "config.json").read_text()))
    tensors = {}
    for shard in manifest.shards:
        path = folder / shard.name
        assert path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256
        prefix = "" if shard.layer is None else f"layers.{shard.layer}."
        with safe_open(path, "pt") as f:
            metadata = f.metadata()
            assert metadata["format"] == "edgellm-shard-2"
            encodings = json.loads(metadata["encodings"])
            for name in f.keys():  # noqa: SIM118
                data = f.get_tensor(name)
                if name in encodings:
                    encoding, shape = encodings[name]
                    data = unpack(data, encoding, tuple(shape))
                tensors[f"{shard.kind}:{prefix}{name}"] = data
        pieces = spec.layers[shard.layer].pieces if spec and shard.layer is not None else ()
        together = {p.tensor: torch.empty(0) for p in pieces}
        for name in together:
            parts = [p for p in pieces if p.tensor == name]
            stored = [tensors.pop(f"layer:{prefix}{p.name}") for p in parts]
            whole = torch.empty(parts[0].whole_shape(tuple(stored[0].shape)), dtype=stored[0].dtype)
            for part, data in zip(parts, stored, strict=True):
                part.cut(whole, data.shape[-1 if part.is_bias else -2])[...] = data
            tensors[f"layer:{prefix}{name}"] = whole
    return tensors


def encodings(folder: Path, shard: str) -> dict[str, str]:
    """Encoding of each tensor of a shard."""
    with safe_open(folder / shard, "pt") as f:
        packed = {n: e for n, (e, _) in json.loads(f.metadata()["encodings"]).items()}
        return {n: packed.get(n, f.get_slice(n).get_dtype().lower()) for n in f.keys()}  # noqa: SIM118


def assert_same_weights(folder: Path, state: dict[str, torch.Tensor], conv1d: tuple[str, ...] = ()) -> None:
    """The split holds exactly `state`, in its dtypes; weights whose name ends with one of `conv1d` transposed."""
    found = read_split(folder)
    seen = set()
    for key, value in found.items():
        name = key.partition(":")[2]
        full = next(n for n in state if n == name or (n.endswith("." + name) and key.startswith("layer:")) or (
            key.startswith("layer:") and n.endswith("." + name.replace("layers.", "h.", 1))
        ))  # fmt: skip
        expected = state[full].t() if full.endswith(conv1d or ("\0",)) else state[full]
        torch.testing.assert_close(value, expected, rtol=0, atol=0, check_stride=False)
        seen.add(full)
    assert seen == set(state)
