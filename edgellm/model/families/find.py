"""Which configs the native path can run: a table of families, from config.json to a Spec or the reason why not. Pure.

A family reads a config as transformers' config class of its model_type does: the same keys, the same defaults. The
generic path takes every config that says something no family knows.
"""

from collections.abc import Callable
from typing import Any

from edgellm.kernels.abi import constants
from edgellm.model.families.config import Config, UnsupportedError
from edgellm.model.families.deepseek import deepseek_v2, deepseek_v3, glm4_moe_lite
from edgellm.model.families.gemma import gemma, gemma2, gemma3
from edgellm.model.families.gemma4 import gemma4
from edgellm.model.families.glm4 import glm4
from edgellm.model.families.glm4_moe import glm4_moe
from edgellm.model.families.gpt2 import gpt2
from edgellm.model.families.gpt_oss import gpt_oss
from edgellm.model.families.granite import granite
from edgellm.model.families.granite_hybrid import granitemoehybrid
from edgellm.model.families.granite_moe import granite_moe, granite_moe_shared
from edgellm.model.families.lfm2 import lfm2, lfm2_moe
from edgellm.model.families.llama import llama
from edgellm.model.families.ministral import ministral, ministral3
from edgellm.model.families.mistral import mistral
from edgellm.model.families.mixers import Attention, DeltaRule, LatentAttention, Mamba2, Recurrent
from edgellm.model.families.multimodal import text_config
from edgellm.model.families.nemotron_h import nemotron_h
from edgellm.model.families.olmo import olmo2, olmo3
from edgellm.model.families.olmoe import olmoe
from edgellm.model.families.phi3 import phi3
from edgellm.model.families.qwen2 import qwen2
from edgellm.model.families.qwen3 import qwen3
from edgellm.model.families.qwen3_5 import qwen3_5_moe_text, qwen3_5_text, qwen3_next
from edgellm.model.families.qwen3_moe import qwen3_moe
from edgellm.model.families.smollm3 import smollm3
from edgellm.model.families.spec import Layer, Spec
from edgellm.model.families.starcoder2 import starcoder2

FAMILIES: dict[str, Callable[[Config], Spec]] = {
    "deepseek_v2": deepseek_v2, "deepseek_v3": deepseek_v3, "gemma": gemma, "gemma2": gemma2, "gemma3_text": gemma3,
    "gemma4_text": gemma4, "glm4": glm4, "glm4_moe": glm4_moe, "glm4_moe_lite": glm4_moe_lite, "gpt2": gpt2,
    "gpt_oss": gpt_oss, "granite": granite, "granitemoe": granite_moe, "granitemoehybrid": granitemoehybrid,
    "granitemoeshared": granite_moe_shared, "lfm2": lfm2, "lfm2_moe": lfm2_moe, "llama": llama,
    "ministral": ministral, "ministral3": ministral3, "mistral": mistral, "nemotron_h": nemotron_h, "olmo2": olmo2,
    "olmo3": olmo3, "olmoe": olmoe, "phi3": phi3, "qwen2": qwen2, "qwen3": qwen3,
    "qwen3_5_moe_text": qwen3_5_moe_text, "qwen3_5_text": qwen3_5_text, "qwen3_moe": qwen3_moe,
    "qwen3_next": qwen3_next, "smollm3": smollm3, "starcoder2": starcoder2,
}  # fmt: skip

# What the kernels take.
_LANES: int = constants.LANE_COUNT  # sizes are multiples of it
_TILE: int = constants.TILE  # rows of a shared matrix begin at multiples of it
_MAX_HEAD_DIM: int = constants.MOST_HEAD_DIM
_MAX_HEADS: int = constants.MOST_HEADS
_MAX_GROUP: int = constants.MOST_ROWS  # query heads that share a kv head
_MAX_KERNEL: int = constants.MOST_KERNEL
_MAX_EXPERTS: int = constants.MOST_EXPERTS
_MAX_CHOSEN: int = constants.MOST_CHOSEN


def find_spec(config: Any) -> tuple[Spec | None, str]:
    """Return the Spec of a config.json's content, or None and why the generic path has to take it."""
    if not isinstance(config, dict):
        return None, "its config is not a JSON object"
    config = text_config(config) or config
    model_type = config.get("model_type")
    make = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if make is None:
        return None, f"{str(model_type)[:60]} is none of {', '.join(FAMILIES)}"
    try:
        spec = make(Config(config))
        for layer in spec.layers:
            _check(spec.hidden_size, layer)
    except UnsupportedError as e:
        return None, f"{model_type}: {e}"
    return spec, ""


def _check(hidden_size: int, layer: Layer) -> None:
    """Raise UnsupportedError for sizes that the kernels don't take."""
    _check_sizes(("hidden_size", hidden_size))
    if isinstance(layer.mixer, Attention):
        _check_attention(layer.mixer)
    if isinstance(layer.mixer, LatentAttention):
        _check_latent(layer.mixer)
    if isinstance(layer.mixer, Recurrent):
        _check_recurrent(layer.mixer)
    if layer.feed_forward:
        _check_sizes(("intermediate_size", layer.feed_forward.intermediate_size))
    if layer.per_layer:
        _check_sizes(("hidden_size_per_layer_input", layer.per_layer.width))
    if layer.experts and layer.experts.shared:
        _check_sizes(("the shared expert's size", layer.experts.shared.intermediate_size))
    if layer.experts and (layer.experts.router.experts > _MAX_EXPERTS or layer.experts.router.top_k > _MAX_CHOSEN):
        router = layer.experts.router
        raise UnsupportedError(f"{router.top_k} of {router.experts} experts, at most {_MAX_CHOSEN} of {_MAX_EXPERTS}")
    for projection in layer.projections:
        if projection.first % _TILE:
            raise UnsupportedError(f"{projection.weight.name} is cut at row {projection.first}, no multiple of {_TILE}")


def _check_attention(mixer: Attention) -> None:
    _check_sizes(("head_dim", mixer.head_dim))
    if mixer.head_dim > _MAX_HEAD_DIM:
        raise UnsupportedError(f"head_dim is {mixer.head_dim}, at most {_MAX_HEAD_DIM}")
    if mixer.heads > _MAX_HEADS:
        raise UnsupportedError(f"{mixer.heads} heads, at most {_MAX_HEADS}")
    if mixer.heads % mixer.kv_heads or mixer.heads // mixer.kv_heads > _MAX_GROUP:
        raise UnsupportedError(f"{mixer.heads} heads over {mixer.kv_heads} of keys and values")


def _check_latent(mixer: LatentAttention) -> None:
    sizes = [("qk_nope_head_dim", mixer.nope_dim), ("qk_rope_head_dim", mixer.rope_dim),
             ("v_head_dim", mixer.value_dim), ("kv_lora_rank", mixer.rank)]  # fmt: skip
    for name, size in sizes:
        if size > _MAX_HEAD_DIM:
            raise UnsupportedError(f"{name} is {size}, at most {_MAX_HEAD_DIM}")
    if mixer.heads > _MAX_HEADS:
        raise UnsupportedError(f"{mixer.heads} heads, at most {_MAX_HEADS}")
    _check_sizes(*sizes, *([("q_lora_rank", mixer.q_a.rows)] if mixer.q_a else []))


def _check_recurrent(mixer: Recurrent) -> None:
    _check_sizes(("a convolution's number of channels", mixer.channels))
    if mixer.kernel > _MAX_KERNEL:
        raise UnsupportedError(f"a convolution over {mixer.kernel} tokens, at most {_MAX_KERNEL}")
    heads, sizes = 0, (16, 16)
    if isinstance(mixer, DeltaRule):
        heads, sizes = mixer.value_heads, (mixer.key_dim, mixer.value_dim)
    elif isinstance(mixer, Mamba2):
        heads, sizes = mixer.heads, (mixer.state_dim, mixer.head_dim)
        if mixer.heads * mixer.head_dim % mixer.norm_groups:
            raise UnsupportedError(f"{mixer.heads * mixer.head_dim} values in {mixer.norm_groups} groups")
        _check_sizes(("a norm's group", mixer.heads * mixer.head_dim // mixer.norm_groups))
    if heads > _MAX_HEADS:
        raise UnsupportedError(f"{heads} heads, at most {_MAX_HEADS}")
    _check_sizes(("a side of a head's state", sizes[0]), ("a side of a head's state", sizes[1]))
    if max(sizes) > _MAX_HEAD_DIM:
        raise UnsupportedError(f"a head's state of {sizes[0]} by {sizes[1]}, at most {_MAX_HEAD_DIM} each")


def _check_sizes(*sizes: tuple[str, int]) -> None:
    for name, size in sizes:
        if size % _LANES:
            raise UnsupportedError(f"{name} is {size}, not a multiple of {_LANES}")
