"""Tiny random models with experts, each family with its odd options, for comparisons with transformers."""

import torch
import transformers as hf

from tests.model.families import _BASE, random_model
from tests.model.latent_models import CONFIGS as LATENT
from tests.model.latent_models import MANY_HEADS

_YARN = dict(rope_type="yarn", rope_theta=1e4, factor=8.0, original_max_position_embeddings=32)
_QWEN = dict(**_BASE, head_dim=16, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=48)
_GPT_OSS = dict(**_BASE, head_dim=16, num_local_experts=8, num_experts_per_tok=3)
_GRANITE = dict(**_BASE, num_local_experts=8, num_experts_per_tok=3)
_GLM = dict(**_BASE, head_dim=16, n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=48)

CONFIGS = {
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(**_QWEN),
    "qwen3_moe_options": lambda: hf.Qwen3MoeConfig(
        **_QWEN, norm_topk_prob=True, attention_bias=True, use_sliding_window=True, sliding_window=9,
        mlp_only_layers=[1], decoder_sparse_step=2,
    ),
    "gpt_oss": lambda: hf.GptOssConfig(**_GPT_OSS, sliding_window=8, rope_parameters=dict(_YARN, truncate=False)),
    "gpt_oss_options": lambda: hf.GptOssConfig(
        **_GPT_OSS, sliding_window=5, attention_bias=False, swiglu_limit=0.5,
        layer_types=["full_attention", *["sliding_attention"] * 4],
        rope_parameters=dict(_YARN, attention_factor=1.3, beta_fast=16, beta_slow=2),
    ),
    "olmoe": lambda: hf.OlmoeConfig(**_BASE, num_experts=8, num_experts_per_tok=3),
    "olmoe_options": lambda: hf.OlmoeConfig(
        **{**_BASE, "num_key_value_heads": None}, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True,
        attention_bias=True,
    ),
    "granitemoe": lambda: hf.GraniteMoeConfig(**_GRANITE, attention_multiplier=0.2),
    "granitemoe_options": lambda: hf.GraniteMoeConfig(
        **_GRANITE, attention_multiplier=0.3, embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=2.5,
        attention_bias=True,
    ),
    "granitemoeshared": lambda: hf.GraniteMoeSharedConfig(
        **_GRANITE, attention_multiplier=0.2, shared_intermediate_size=96, residual_multiplier=0.8
    ),
    "granitemoeshared_none": lambda: hf.GraniteMoeSharedConfig(**_GRANITE, attention_multiplier=0.2),
    "glm4_moe": lambda: hf.Glm4MoeConfig(**_GLM),
    "glm4_moe_options": lambda: hf.Glm4MoeConfig(
        **_GLM, n_group=4, topk_group=2, norm_topk_prob=False, routed_scaling_factor=1.5, use_qk_norm=True,
        attention_bias=True, n_shared_experts=2, first_k_dense_replace=2,
    ),
    **LATENT,
}  # fmt: skip


def expert_model(name: str) -> torch.nn.Module:
    """Return a model of this name whose experts differ, and whose router's correction changes what is chosen."""
    model = random_model((CONFIGS | MANY_HEADS)[name]())
    torch.manual_seed(2)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith(("e_score_correction_bias", "expert_bias")):
            buffer.normal_(0, 0.1)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):
            parameter.normal_(0, 1)
        elif parameter.ndim == 3:
            parameter.normal_(0, 0.4)
    return model


def read_from(model, spec):
    """Return a reader of stored tensors for `make_spec_split`, from a model's own."""
    state = model.state_dict()

    def read(layer, name):
        if layer is None:
            return state[name if name in state else spec.embedding.name].numpy()
        piece = next((p for p in spec.layers[layer].pieces if p.name == name), None)
        whole = state[f"model.layers.{layer}.{piece.tensor if piece else name}"].numpy()
        if piece is None:
            return whole
        shape = spec.layers[layer].tensors[name]
        return piece.cut(whole, shape[-1 if piece.is_bias else -2])

    return read
