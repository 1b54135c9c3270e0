"""Rotary factors that depend on the sequence's length (LongRoPE, dynamic NTK), chosen by the whole pass, not a chunk."""

import torch
from torch import nn
from transformers import PreTrainedConfig


def _parameter_sets(config: PreTrainedConfig) -> list[dict]:
    """The config's rope parameters: one dict, or one per layer type."""
    params = getattr(config, "rope_parameters", None)
    if not isinstance(params, dict):
        return []
    nested = [p for p in params.values() if isinstance(p, dict)]
    return nested or [params]


def switch_len(config: PreTrainedConfig) -> int | None:
    """LongRoPE: sequences longer than this many tokens use the long factors, from position 0 on. Else None."""
    lengths = [
        p.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for p in _parameter_sets(config)
        if p.get("rope_type") == "longrope"
    ]
    return min((n for n in lengths if n), default=None)


def max_seq_len(config: PreTrainedConfig) -> int:
    """The longest sequence the model is made for, in tokens; 2048 where the config has no limit (ALiBi)."""
    longest = getattr(config, "max_position_embeddings", None) or 2048
    factors = [p.get("factor") or 1 for p in _parameter_sets(config) if p.get("rope_type") == "dynamic"]
    return int(longest * max([1, *factors]))


def ignore_dynamic(model: nn.Module) -> None:
    """Make dynamic rotary modules static: on the meta device they can't compare lengths, and shapes are the same."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.rope_type = "default"
