"""Tiny random models with recurrent layers, each odd option set to something else than its default once."""

import json
from pathlib import Path

import torch
import transformers as hf

from edgellm.model.families.find import find_spec
from edgellm.shards.manifest import Manifest
from tests.model.expert_models import read_from
from tests.model.families import random_model
from tests.model.make_split import make_spec_split

_BASE = dict(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, tie_word_embeddings=False, eos_token_id=None, bos_token_id=None, pad_token_id=None,
)  # fmt: skip
_DELTA = dict(
    head_dim=32, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=32, linear_value_head_dim=16,
)  # fmt: skip
_GRANITE = dict(
    _BASE, num_local_experts=0, shared_intermediate_size=96, mamba_n_heads=8, mamba_d_head=16, mamba_d_state=32,
    layer_types=["mamba", "attention", "mamba", "mamba"], num_hidden_layers=4,
)  # fmt: skip
_NEMOTRON = dict(
    _BASE, head_dim=16, ssm_state_size=16, mamba_num_heads=8, mamba_head_dim=16, n_groups=2,
    hybrid_override_pattern="M-*M-",
)  # fmt: skip
_EXPERTS = dict(num_experts_per_tok=3, moe_intermediate_size=48)

CONFIGS = {
    "qwen3_5": lambda: hf.Qwen3_5TextConfig(**_BASE, **_DELTA, num_hidden_layers=4),
    "qwen3_5_odd": lambda: hf.Qwen3_5TextConfig(
        **{**_BASE, "tie_word_embeddings": True}, **{**_DELTA, "linear_num_key_heads": 4}, linear_conv_kernel_dim=3,
        attention_bias=True, num_hidden_layers=3, rms_norm_eps=1e-3,
        layer_types=["full_attention", "linear_attention", "linear_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5,
                         "mrope_section": [2, 1, 1], "mrope_interleaved": True},
    ),
    "lfm2": lambda: hf.Lfm2Config(**_BASE, num_hidden_layers=4, full_attn_idxs=[1, 3]),
    "lfm2_odd": lambda: hf.Lfm2Config(
        **{**_BASE, "tie_word_embeddings": True}, num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"],
        conv_bias=True, conv_L_cache=5, block_multiple_of=32, block_ffn_dim_multiplier=1.3, norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "lfm2_plain_width": lambda: hf.Lfm2Config(
        **_BASE, num_hidden_layers=2, full_attn_idxs=[1], block_auto_adjust_ff_dim=False
    ),
    "lfm2_moe": lambda: hf.Lfm2MoeConfig(
        **_BASE, **_EXPERTS, num_experts=8, num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"],
        num_dense_layers=1, routed_scaling_factor=1.5, norm_topk_prob=False,
    ),
    "qwen3_5_moe": lambda: hf.Qwen3_5MoeTextConfig(
        **_BASE, **_DELTA, **_EXPERTS, num_experts=8, shared_expert_intermediate_size=96, num_hidden_layers=4
    ),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **_BASE, **_DELTA, **_EXPERTS, num_experts=8, shared_expert_intermediate_size=96, num_hidden_layers=4
    ),
    "qwen3_next_odd": lambda: hf.Qwen3NextConfig(
        **_BASE, **{**_DELTA, "linear_num_key_heads": 4, "linear_num_value_heads": 4}, **_EXPERTS, num_experts=8,
        shared_expert_intermediate_size=48, num_hidden_layers=4, mlp_only_layers=[0], decoder_sparse_step=2,
        norm_topk_prob=False, full_attention_interval=3,
    ),
    "granite4": lambda: hf.GraniteMoeHybridConfig(**_GRANITE),
    "granite4_odd": lambda: hf.GraniteMoeHybridConfig(
        **{**_GRANITE, "tie_word_embeddings": True}, position_embedding_type="rope", mamba_n_groups=2, mamba_d_conv=3,
        mamba_conv_bias=False, mamba_proj_bias=True, attention_bias=True, embedding_multiplier=3.0, logits_scaling=2.5,
        residual_multiplier=0.4, attention_multiplier=0.2, time_step_limit=(0.3, 0.9), rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
    ),
    "granite4_moe": lambda: hf.GraniteMoeHybridConfig(
        **{**_GRANITE, "num_local_experts": 8, "intermediate_size": 48}, num_experts_per_tok=3
    ),
    "nemotron_h": lambda: hf.NemotronHConfig(**_NEMOTRON),
    "nemotron_h_odd": lambda: hf.NemotronHConfig(
        **{**_NEMOTRON, "hybrid_override_pattern": "*M-M", "n_groups": 1, "tie_word_embeddings": True}, use_bias=True,
        use_conv_bias=False, conv_kernel=2, mlp_bias=True, layer_norm_epsilon=1e-3, time_step_min=0.4,
    ),
    "nemotron_h_moe": lambda: hf.NemotronHConfig(
        **{**_NEMOTRON, "hybrid_override_pattern": "ME*E"}, n_routed_experts=8, num_experts_per_tok=3,
        moe_intermediate_size=48, moe_shared_expert_intermediate_size=96, n_group=2, topk_group=1,
        routed_scaling_factor=1.5, norm_topk_prob=False,
    ),
}  # fmt: skip


def recurrent_model(name: str):
    """A random model whose recurrent layers remember for some tokens."""
    model = random_model(CONFIGS[name]())
    rng = torch.Generator().manual_seed(2)
    for key, p in model.named_parameters():
        if key.endswith("A_log"):
            p.copy_(torch.empty_like(p).uniform_(-2, 1, generator=rng))
        elif key.endswith("dt_bias"):
            p.copy_(torch.empty_like(p).uniform_(-3, 1, generator=rng))
        elif key.endswith(("conv1d.weight", "conv.conv.weight")):
            p.copy_(torch.empty_like(p).normal_(0, 0.5, generator=rng))
        elif p.ndim == 3:
            p.copy_(torch.empty_like(p).normal_(0, 0.4, generator=rng))
    for key, buffer in model.named_buffers():
        if key.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.copy_(torch.empty_like(buffer).normal_(0, 0.1, generator=rng))
    return model


def split(model, folder: Path, encoding: str = "f32") -> Manifest:
    """Return the manifest of a model that is split in `folder`."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    spec, reason = find_spec(config)
    assert spec is not None, reason
    return make_spec_split(spec, config, folder, read_from(model, spec), encoding)
