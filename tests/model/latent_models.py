"""Tiny random models with latent attention, each with its odd options, for comparisons with transformers."""

import transformers as hf

from tests.model.families import _NO_GQA

_SIZES = dict(
    kv_lora_rank=32, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=48, moe_intermediate_size=48,
    n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1,
)  # fmt: skip
_YARN = dict(rope_type="yarn", rope_theta=1e4, factor=8.0, original_max_position_embeddings=32)

CONFIGS = {
    "deepseek_v2": lambda: hf.DeepseekV2Config(**_NO_GQA, **_SIZES, q_lora_rank=None, first_k_dense_replace=1),
    "deepseek_v2_options": lambda: hf.DeepseekV2Config(
        **_NO_GQA, **{**_SIZES, "n_shared_experts": 2, "num_experts_per_tok": 2}, q_lora_rank=64,
        first_k_dense_replace=2, topk_method="group_limited_greedy", n_group=8, topk_group=3,
        routed_scaling_factor=2.5, attention_bias=True, rms_norm_eps=1e-3,
        rope_parameters=dict(_YARN, mscale=0.707, mscale_all_dim=0.5),
    ),
    "deepseek_v3": lambda: hf.DeepseekV3Config(
        **_NO_GQA, **_SIZES, q_lora_rank=32, n_group=4, topk_group=2, first_k_dense_replace=1,
        rope_parameters=dict(_YARN, mscale=1.0, mscale_all_dim=1.0),
    ),
    "deepseek_v3_options": lambda: hf.DeepseekV3Config(
        **_NO_GQA, **_SIZES, q_lora_rank=None, n_group=2, topk_group=1, norm_topk_prob=False, rope_interleave=False,
        first_k_dense_replace=3, routed_scaling_factor=1.3, attention_bias=True,
    ),
    "glm4_moe_lite": lambda: hf.Glm4MoeLiteConfig(
        **{**_NO_GQA, "num_key_value_heads": 4}, **_SIZES, q_lora_rank=48, routed_scaling_factor=1.8, rms_norm_eps=1e-5
    ),
    "glm4_moe_lite_options": lambda: hf.Glm4MoeLiteConfig(
        **{**_NO_GQA, "num_key_value_heads": 4}, **{**_SIZES, "n_shared_experts": 2}, q_lora_rank=None, n_group=4,
        topk_group=3, norm_topk_prob=False,
        mlp_layer_types=["sparse", "dense", "sparse", "dense", "sparse"],
    ),
}  # fmt: skip
# More heads than a unit of work has rows, and than a round of 80 tokens has room for.
MANY_HEADS = {
    "many_heads": lambda: hf.DeepseekV2Config(
        **{**_NO_GQA, "hidden_size": 96, "num_attention_heads": 96}, **_SIZES, q_lora_rank=None,
        first_k_dense_replace=1,
    ),
}  # fmt: skip
