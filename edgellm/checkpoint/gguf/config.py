"""Turns a GGUF's metadata into the content of a config.json, for every architecture that can be read.

It states every size, even a config class's default, because those defaults are one model's.
"""

from collections.abc import Callable

from edgellm.checkpoint.gguf import expert_configs as experts
from edgellm.checkpoint.gguf import gemma_configs as gemma
from edgellm.checkpoint.gguf import generic_configs as generic
from edgellm.checkpoint.gguf import latent_configs as latent
from edgellm.checkpoint.gguf import native_configs as native
from edgellm.checkpoint.gguf import recurrent_configs as recurrent
from edgellm.checkpoint.gguf.gemma4_config import gemma4
from edgellm.checkpoint.gguf.header import Header
from edgellm.errors import CheckpointError

ARCHITECTURES: dict[str, Callable[[Header], dict]] = {
    "bloom": generic.bloom, "deepseek2": latent.deepseek2, "falcon": generic.falcon, "gemma": gemma.gemma,
    "gemma2": gemma.gemma2, "gemma3": gemma.gemma3, "gemma4": gemma4, "glm4": native.glm4, "glm4moe": experts.glm4moe,
    "gpt-oss": experts.gpt_oss, "gpt2": native.gpt2, "granite": native.granite,
    "granitehybrid": recurrent.granitehybrid, "lfm2": recurrent.lfm2, "lfm2moe": recurrent.lfm2moe,
    "nemotron_h": recurrent.nemotron_h, "nemotron_h_moe": recurrent.nemotron_h_moe, "qwen35": recurrent.qwen35,
    "qwen35moe": recurrent.qwen35moe, "granitemoe": experts.granitemoe, "olmoe": experts.olmoe, "llama": native.llama,
    "minimax-m2": generic.minimax_m2, "mistral3": native.mistral3, "nemotron": generic.nemotron, "olmo2": native.olmo2,
    "phi3": native.phi3, "qwen2": native.qwen2, "qwen2moe": generic.qwen2moe, "qwen3": native.qwen3,
    "qwen3moe": experts.qwen3moe, "smollm3": native.smollm3, "stablelm": generic.stablelm,
    "starcoder2": native.starcoder2,
}  # fmt: skip


def make_config(header: Header) -> dict:
    """Return the content of a config.json; raises CheckpointError for what can't be said in one, unknown keys among
    them."""
    metadata = header.metadata
    vocab_size = _vocab_size(header)
    config = ARCHITECTURES[metadata.architecture](header)
    metadata.check_rest()
    ends = {name: metadata.token_id(name, vocab_size) for name in ("bos", "eos")}
    return {
        **config,
        "vocab_size": vocab_size,
        "bos_token_id": ends["bos"],
        "eos_token_id": ends["eos"],
        "pad_token_id": None,
        "tie_word_embeddings": "output.weight" not in header.shapes,
    }


def _vocab_size(header: Header) -> int:
    """Return the embedding's rows; the metadata may count the vocabulary without what pads the embedding."""
    header.metadata.count("vocab_size", 1)
    shape = header.shapes.get("token_embd.weight")
    if not shape or len(shape) != 2:
        raise CheckpointError(f"{header.metadata.where}: tensor token_embd.weight is missing or no matrix")
    return shape[0]
