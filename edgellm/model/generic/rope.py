"""Rotary factors that depend on a sequence's length (LongRoPE, dynamic NTK): the pass chooses them, not the chunk."""

import torch
from torch import nn
from transformers import PreTrainedConfig


def _parameter_sets(config: PreTrainedConfig) -> list[dict]:
    """Return the config's rope parameters: one dict, or one for each type of layer."""
    params = getattr(config, "rope_parameters", None)
    if not isinstance(params, dict):
        return []
    nested = [p for p in params.values() if isinstance(p, dict)]
    return nested or [params]


def switch_len(config: PreTrainedConfig) -> int | None:
    """Return the length in tokens beyond which a sequence uses LongRoPE's long factors, from position 0 on, if the
    model has them."""
    lengths = [
        p.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for p in _parameter_sets(config)
        if p.get("rope_type") == "longrope"
    ]
    return min((n for n in lengths if n), default=None)


def max_seq_len(config: PreTrainedConfig) -> int:
    """Return the longest sequence the model is made for, in tokens; 2048 where the config has no limit (ALiBi)."""
    longest = getattr(config, "max_position_embeddings", None) or 2048
    factors = [p.get("factor") or 1 for p in _parameter_sets(config) if p.get("rope_type") == "dynamic"]
    return int(longest * max([1, *factors]))


def ignore_dynamic(model: nn.Module) -> None:
    """Make dynamic rotary modules static, because they can't compare lengths on the meta device. No shape changes."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.rope_type = "default"


def is_dynamic(model: nn.Module) -> bool:
    """Return whether rotary factors change with every length (dynamic NTK) rather than at one switch."""
    return any("dynamic" in _kinds(module) for module in model.modules())


class PassLength:
    """The number of tokens that the sequence has at the end of the running pass; set before each forward."""

    tokens = 0


def follow_pass_length(model: nn.Module) -> PassLength:
    """Make the model's length-dependent rotary modules go by the returned PassLength instead of the chunk they see.

    transformers takes the largest position of a call as the length, so a chunk of a long prompt would get other factors
    than the whole prompt. Therefore the modules see the pass's last position too, and its row is dropped.
    """
    pass_length = PassLength()
    for module in model.modules():
        kinds = _kinds(module)
        if kinds & {"longrope", "dynamic"}:
            _wrap(module, pass_length, "dynamic" in kinds)
    return pass_length


def _kinds(module: nn.Module) -> set:
    kinds = getattr(module, "rope_type", None)
    return set(kinds.values()) if isinstance(kinds, dict) else {kinds}


def _wrap(module: nn.Module, pass_length: PassLength, dynamic: bool) -> None:
    inner = module.forward

    def forward(x, position_ids, *args, **kwargs):
        if dynamic:
            _forget_lengths(module)
        last = pass_length.tokens - 1
        tokens = position_ids.shape[-1]
        if last <= int(position_ids[..., -1].max()):
            return inner(x, position_ids, *args, **kwargs)
        end = position_ids.new_full((*position_ids.shape[:-1], 1), last)
        out = inner(x, torch.cat([position_ids, end], -1), *args, **kwargs)
        if isinstance(out, tuple):
            return tuple(t[:, :tokens] for t in out)  # cos and sin: [1, tokens + 1, dim]
        return out[:, :tokens]

    module.forward = forward


def _forget_lengths(module: nn.Module) -> None:
    """Undo what a dynamic rotary module keeps of the longest sequence it has seen, so that sequences don't mix."""
    for name in list(module._buffers):
        if name.endswith("original_inv_freq"):
            setattr(module, name.replace("original_", ""), getattr(module, name))
    for name in vars(module):
        if name.endswith("max_seq_len_cached"):
            setattr(module, name, module.original_max_seq_len)
