"""Tiny GGUFs of families with an odd option each, whose weights NumPy draws: the same file wherever it is written."""

from pathlib import Path

import numpy as np
import torch
import transformers as hf

from tests.checkpoint.gguf_files import write_gguf

_BASE = dict(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=False, rms_norm_eps=1e-5, eos_token_id=None,
    bos_token_id=None, pad_token_id=None,
)  # fmt: skip
_TIED = {**_BASE, "tie_word_embeddings": True}  # llama.cpp knows no other head of these
_WINDOWS = ["sliding_attention", "full_attention"] * 2
_YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32, beta_fast=8.0)
_LATENT = {
    **_BASE, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 48, "moe_intermediate_size": 64, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1,
}  # fmt: skip
CONFIGS = {
    "deepseek_v2": lambda: hf.DeepseekV2Config(
        **_LATENT, q_lora_rank=48, n_shared_experts=2, rope_parameters=dict(**_YARN, mscale=0.7, mscale_all_dim=0.7)
    ),
    "deepseek_v3": lambda: hf.DeepseekV3Config(**_LATENT, q_lora_rank=32, n_group=2, topk_group=1),
    "gemma": lambda: hf.GemmaConfig(**_TIED, head_dim=32),
    "gemma2": lambda: hf.Gemma2Config(
        **_TIED, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0, layer_types=_WINDOWS,
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **{**_BASE, "num_hidden_layers": 7}, head_dim=16, query_pre_attn_scalar=16, sliding_window=8,
        rope_parameters={"full_attention": dict(rope_type="linear", rope_theta=2e4, factor=4.0),
                         "sliding_attention": dict(rope_type="default", rope_theta=3e3)},
    ),
    "glm4": lambda: hf.Glm4Config(
        **_BASE, head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)
    ),
    "granite": lambda: hf.GraniteConfig(
        **_BASE, embedding_multiplier=3.0, logits_scaling=0.7, residual_multiplier=0.3, attention_multiplier=0.2
    ),
    "ministral3": lambda: hf.Ministral3Config(
        **_BASE, head_dim=32,
        rope_parameters=dict(**_YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.9),
    ),
    "olmo2": lambda: hf.Olmo2Config(**_BASE),
    "olmo3": lambda: hf.Olmo3Config(**_BASE, sliding_window=8),
    "smollm3": lambda: hf.SmolLM3Config(**_BASE),
    "starcoder2": lambda: hf.Starcoder2Config(**_BASE),
}  # fmt: skip
PROMPT = [3 + (7 * i + 3) % 500 for i in range(40)]


def write_answered(path: Path, family: str, extra=None) -> Path:
    """Write the GGUF of a family."""
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            # A head that is the embedding says the last token again, unless the embedding is small.
            width = 0.1 if p.dim() == 1 else 0.03 if "embed" in name and model.config.tie_word_embeddings else 0.2
            drawn = rng.normal(0, width, tuple(p.shape)).astype(np.float16)
            offset = 1.0 if "norm" in name and not family.startswith("gemma") and name.endswith("weight") else 0.0
            p.copy_(torch.from_numpy(drawn).float() + offset)
    return write_gguf(path, model, extra=extra)
