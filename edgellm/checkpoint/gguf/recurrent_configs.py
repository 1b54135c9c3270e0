"""From a GGUF's header to a config.json, for families with recurrent layers: one function per architecture."""

import reprlib
from dataclasses import replace

from edgellm.checkpoint.gguf.expert_configs import SIGMOID, SOFTMAX, expert_width, normalizes_weights, read_experts
from edgellm.checkpoint.gguf.header import (
    QKV_BIASES,
    Header,
    Sizes,
    expect_plain_scale,
    read_rms_eps,
    read_rope,
    read_scale,
    read_sizes,
    without_extra_layers,
)
from edgellm.checkpoint.gguf.metadata import Metadata
from edgellm.checkpoint.gguf.native_configs import granite_multipliers
from edgellm.errors import CheckpointError
from edgellm.model.families.config import MAX_LAYERS

_FULL, _LINEAR = "full_attention", "linear_attention"


def _with(header: Header, values: dict[str, int]) -> Header:
    """Return the header with other values for some of the architecture's own keys."""
    metadata = header.metadata
    same = Metadata(dict(metadata.values) | {metadata.key(n): v for n, v in values.items()}, metadata.where)
    same.used = metadata.used
    return replace(header, metadata=same)


def _read_layers(header: Header) -> tuple[Sizes, list[int], list[int]]:
    """Return the sizes, and of each layer how many heads of keys it has and how wide its feed-forward is: 0 where it
    has none. Raises CheckpointError."""
    metadata = header.metadata
    count = metadata.count("block_count")
    if count > MAX_LAYERS:
        raise CheckpointError(f"{metadata.where}: {metadata.key('block_count')} is {count}, at most {MAX_LAYERS}")
    lists: dict[str, list[int]] = {}
    for name in ("attention.head_count_kv", "feed_forward_length"):
        value = metadata.raw(name)
        found = value if isinstance(value, list) else [value] * count
        lists[name] = [n for n in found if type(n) is int and 0 <= n < 1 << 31]
        if len(found) != count or len(lists[name]) != count:
            raise CheckpointError(
                f"{metadata.where}: {metadata.key(name)} is {reprlib.repr(value)}, expected a whole number for each of "
                f"{count} layers"
            )
    sizes = read_sizes(_with(header, {name: max(1, *numbers) for name, numbers in lists.items()}))
    kv_heads, widths = lists.values()
    return sizes, kv_heads, widths


def _heads(header: Header) -> tuple[int, int]:
    """Return how many heads a state has, and how wide each is. Raises CheckpointError."""
    metadata = header.metadata
    heads, inner = metadata.count("ssm.time_step_rank"), metadata.count("ssm.inner_size")
    if inner % heads:
        raise CheckpointError(
            f"{metadata.where}: {metadata.key('ssm.inner_size')} is {inner}, not a multiple of {heads} heads"
        )
    return heads, inner // heads


# Qwen3.5


def _delta_rule(header: Header, sizes: Sizes) -> dict:
    """Return what Qwen3.5's dense models and those with experts share. llama.cpp's converter has a key head's value
    heads apart: value head h belongs to key head h modulo their number."""
    metadata = header.metadata
    expect_plain_scale(header, sizes)
    metadata.raw("rope.dimension_sections")  # positions in images; in a text all sections are the same
    heads, head_dim = _heads(header)
    key_heads = metadata.count("ssm.group_count")
    sizes, extra = without_extra_layers(header, sizes)
    return {
        **sizes.settings(),
        **read_rms_eps(header),
        "mtp_num_hidden_layers": extra,
        "hidden_act": "silu",
        "full_attention_interval": metadata.count("full_attention_interval", 4),
        "attention_bias": False,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": heads,
        "linear_key_head_dim": metadata.count("ssm.state_size"),
        "linear_value_head_dim": head_dim,
        "linear_conv_kernel_dim": metadata.count("ssm.conv_kernel"),
        "linear_value_heads_tiled": heads != key_heads,
        "rope_parameters": {"partial_rotary_factor": 1.0} | read_rope(header, sizes, partial=True),
    }


def qwen35(header: Header) -> dict:
    """Return the config of Qwen3.5, dense."""
    return {"model_type": "qwen3_5_text", **_delta_rule(header, read_sizes(header))}


def qwen35moe(header: Header) -> dict:
    """Return the config of Qwen3.5 with experts."""
    experts, width = read_experts(header, SOFTMAX), header.metadata.count("expert_feed_forward_length")
    dense = header.metadata.count("feed_forward_length", width)  # of which no layer makes use
    sizes = read_sizes(_with(header, {"feed_forward_length": dense}))
    header.metadata.expect("expert_weights_norm", True)
    return {
        "model_type": "qwen3_5_moe_text",
        **_delta_rule(header, sizes),
        **experts,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": header.metadata.count("expert_shared_feed_forward_length", width),
    }


# LFM2


def _lfm2(header: Header) -> dict:
    sizes, kv_heads, _ = _read_layers(header)
    expect_plain_scale(header, sizes)
    return {
        **sizes.settings(),
        "norm_eps": read_rms_eps(header)["rms_norm_eps"],
        "layer_types": [_FULL if heads else "conv" for heads in kv_heads],
        "conv_L_cache": header.metadata.count("shortconv.l_cache"),
        "conv_bias": False,
        "rope_parameters": read_rope(header, sizes),
    }


def lfm2(header: Header) -> dict:
    """Return the config of LFM2, dense."""
    return {"model_type": "lfm2", **_lfm2(header), "block_auto_adjust_ff_dim": False}


def lfm2moe(header: Header) -> dict:
    """Return the config of LFM2 with experts."""
    config, experts = _lfm2(header), read_experts(header, SIGMOID)
    dense = header.metadata.count("leading_dense_block_count", 0, least=0)
    corrected = f"blk.{dense}.exp_probs_b.bias" in header.shapes
    return {
        "model_type": "lfm2_moe",
        **config,
        **experts,
        "num_dense_layers": dense,
        "moe_intermediate_size": expert_width(header, config["intermediate_size"]),
        "norm_topk_prob": normalizes_weights(header, True),
        "use_expert_bias": corrected,
        "routed_scaling_factor": read_scale(header, "expert_weights_scale", 1.0),
    }


# Mamba-2


def _rows(header: Header, part: str, default: int) -> int:
    """Return how many rows the first tensor of this name has; `default` where there is none."""
    return next((shape[-2] for name, shape in header.shapes.items() if name.endswith(f".{part}.weight")), default)


def _mamba_biases(header: Header) -> tuple[bool, bool]:
    """Return whether convolutions have biases, and projections."""
    named = [name for name in header.shapes if name.endswith(".bias")]
    return any(".ssm_conv1d." in n for n in named), any(".ssm_in." in n or ".ssm_out." in n for n in named)


def granitehybrid(header: Header) -> dict:
    """Return the config of Granite 4."""
    sizes, kv_heads, _ = _read_layers(header)
    metadata = header.metadata
    heads, head_dim = _heads(header)
    conv_bias, biased = _mamba_biases(header)
    rope, turns = read_rope(header, sizes), metadata.get("rope.scaling.finetuned")
    if heads * head_dim % sizes.hidden_size:
        raise CheckpointError(f"{metadata.where}: {metadata.key('ssm.inner_size')} is {heads * head_dim}, not a "
                              f"multiple of {sizes.hidden_size} ({metadata.key('embedding_length')})")  # fmt: skip
    experts = metadata.count("expert_count", 0, least=0)
    metadata.expect("expert_gating_func", 0, SOFTMAX)
    metadata.expect("expert_weights_norm", True)
    shared = _rows(header, "ffn_up_shexp" if experts else "ffn_up", sizes.intermediate_size)
    metadata.expect("expert_shared_feed_forward_length", shared)
    return {
        "model_type": "granitemoehybrid",
        **sizes.settings("intermediate_size"),
        **read_rms_eps(header),
        "hidden_act": "silu",
        "layer_types": [_FULL if n else _LINEAR for n in kv_heads],
        "attention_bias": any(f".{part}" in name for name in header.shapes for part in QKV_BIASES),
        "position_embedding_type": "rope" if turns else None,
        "rope_parameters": rope,
        "mamba_n_heads": heads,
        "mamba_d_head": head_dim,
        "mamba_expand": heads * head_dim // sizes.hidden_size,
        "mamba_n_groups": metadata.count("ssm.group_count", 1),
        "mamba_d_state": metadata.count("ssm.state_size"),
        "mamba_d_conv": metadata.count("ssm.conv_kernel"),
        "mamba_conv_bias": conv_bias,
        "mamba_proj_bias": biased,
        "intermediate_size": _rows(header, "ffn_up_exps", sizes.intermediate_size),
        "shared_intermediate_size": shared,
        "num_local_experts": experts,
        "num_experts_per_tok": metadata.count("expert_used_count", 0, least=0),
        **granite_multipliers(header, sizes),
    }


def _nemotron(header: Header) -> dict:
    sizes, kv_heads, widths = _read_layers(header)
    metadata = header.metadata
    expect_plain_scale(header, sizes)
    heads, head_dim = _heads(header)
    conv_bias, biased = _mamba_biases(header)
    read_rope(header, sizes, partial=True)  # no layer knows positions
    has_experts = metadata.count("expert_count", 0, least=0)
    wide = "moe" if has_experts else "mlp"
    return {
        **sizes.settings("num_hidden_layers"),
        "layer_norm_epsilon": read_rms_eps(header)["rms_norm_eps"],
        "layers_block_type": [
            _FULL if n else wide if width else _LINEAR for n, width in zip(kv_heads, widths, strict=True)
        ],
        "mamba_num_heads": heads,
        "mamba_head_dim": head_dim,
        "n_groups": metadata.count("ssm.group_count", 1),
        "ssm_state_size": metadata.count("ssm.state_size"),
        "conv_kernel": metadata.count("ssm.conv_kernel"),
        "use_conv_bias": conv_bias,
        "use_bias": biased,
        "mlp_hidden_act": "relu2",
        "mlp_bias": any(".ffn_up.bias" in name for name in header.shapes),
        "mamba_hidden_act": "silu",
    }


def nemotron_h(header: Header) -> dict:
    """Return the config of Nemotron-H and Nemotron Nano 2."""
    return {"model_type": "nemotron_h", **_nemotron(header)}


def nemotron_h_moe(header: Header) -> dict:
    """Return the config of Nemotron 3 Nano."""
    config, experts = _nemotron(header), read_experts(header, SIGMOID)
    metadata = header.metadata
    metadata.expect("moe_latent_size", 0)
    metadata.expect("expert_shared_count", 1)
    width = expert_width(header, config["intermediate_size"])
    return {
        "model_type": "nemotron_h",
        **config,
        "n_routed_experts": experts["num_experts"],
        "num_experts_per_tok": experts["num_experts_per_tok"],
        "moe_intermediate_size": width,
        "moe_shared_expert_intermediate_size": metadata.count("expert_shared_feed_forward_length", width),
        "n_group": metadata.count("expert_group_count", 1),
        "topk_group": metadata.count("expert_group_used_count", 1),
        "norm_topk_prob": normalizes_weights(header, True),
        "routed_scaling_factor": read_scale(header, "expert_weights_scale", 1.0),
    }
