"""Tiny random models of many families, whose greedy output is varied enough to notice a wrong layer."""

import torch
import transformers as hf

SEED = 1
_BASE = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    eos_token_id=None,
    bos_token_id=None,
    pad_token_id=None,
)
_NO_GQA = {k: v for k, v in _BASE.items() if k != "num_key_value_heads"}
_ENDS = dict(eos_token_id=None, bos_token_id=None, tie_word_embeddings=False)
_GPT = dict(vocab_size=512, n_embd=64, n_layer=5, n_head=4, n_positions=256, **_ENDS)
_LATENT_SIZES = dict(kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12)
_LATENT = dict(
    **_NO_GQA,
    **_LATENT_SIZES,
    moe_intermediate_size=32,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    first_k_dense_replace=1,
)
_LONGROPE = dict(
    rope_type="longrope",
    rope_theta=1e4,
    short_factor=[1.0 + 0.1 * i for i in range(8)],
    long_factor=[2.0 + 0.5 * i for i in range(8)],
    original_max_position_embeddings=32,
)
_LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1e4,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
_DYNAMIC = dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)

CONFIGS = {
    "gpt2": lambda: hf.GPT2Config(**_GPT),
    "gpt2_tied": lambda: hf.GPT2Config(**{**_GPT, "tie_word_embeddings": True}),
    "gpt2_inverse_layer": lambda: hf.GPT2Config(**_GPT, scale_attn_by_inverse_layer_idx=True),
    "llama": lambda: hf.LlamaConfig(**_BASE),
    "llama_tied": lambda: hf.LlamaConfig(**{**_BASE, "tie_word_embeddings": True}),
    "smollm": lambda: hf.LlamaConfig(
        **{**_BASE, "hidden_size": 96, "num_attention_heads": 6, "tie_word_embeddings": True}, rms_norm_eps=1e-5
    ),
    "llama3_rope": lambda: hf.LlamaConfig(**_BASE, rope_parameters=_LLAMA3),
    "llama_dynamic": lambda: hf.LlamaConfig(**{**_BASE, "max_position_embeddings": 24}, rope_parameters=_DYNAMIC),
    "phi3": lambda: hf.Phi3Config(**_BASE),
    "phi3_longrope": lambda: hf.Phi3Config(**_BASE, rope_parameters=_LONGROPE, original_max_position_embeddings=32),
    "qwen2": lambda: hf.Qwen2Config(**_BASE),
    "qwen2_window": lambda: hf.Qwen2Config(**_BASE, use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "qwen3": lambda: hf.Qwen3Config(**_BASE, head_dim=16),
    "mistral_window": lambda: hf.MistralConfig(**_BASE, sliding_window=8),
    "gemma2": lambda: hf.Gemma2Config(**_BASE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": lambda: hf.Gemma3TextConfig(**_BASE, head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gptneox": lambda: hf.GPTNeoXConfig(**_NO_GQA),
    "opt": lambda: hf.OPTConfig(
        vocab_size=512,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=256,
        word_embed_proj_dim=32,
        **_ENDS,
    ),
    "phi": lambda: hf.PhiConfig(**_BASE),
    "stablelm": lambda: hf.StableLmConfig(**_BASE),
    "ministral3": lambda: hf.Ministral3Config(
        **_BASE, head_dim=16, rope_parameters=dict(
            rope_type="yarn", rope_theta=1e4, factor=8.0, original_max_position_embeddings=16, beta_fast=8.0,
            mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3,
        ),
    ),
    "cohere": lambda: hf.CohereConfig(**_BASE),
    "cohere2": lambda: hf.Cohere2Config(**_BASE, sliding_window=8),
    "granite": lambda: hf.GraniteConfig(**_BASE, embedding_multiplier=3.0),
    "olmo2": lambda: hf.Olmo2Config(**_BASE),
    "falcon": lambda: hf.FalconConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=5, num_attention_heads=4, **_ENDS
    ),
    "falcon_alibi": lambda: hf.FalconConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        alibi=True,
        **_ENDS,
    ),
    "bloom": lambda: hf.BloomConfig(vocab_size=512, hidden_size=64, n_layer=5, n_head=4, **_ENDS),
    "gptj": lambda: hf.GPTJConfig(**_GPT, rotary_dim=8),
    "starcoder2": lambda: hf.Starcoder2Config(**_BASE),
    "glm4": lambda: hf.Glm4Config(**_BASE, head_dim=16),
    "smollm3": lambda: hf.SmolLM3Config(**_BASE, no_rope_layer_interval=4),
    "mixtral": lambda: hf.MixtralConfig(**_BASE, num_local_experts=4),
    "qwen3moe": lambda: hf.Qwen3MoeConfig(
        **_BASE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    # keys and values are latents, of which the values are the narrower ones; then come values narrower than the keys
    "deepseek_v2": lambda: hf.DeepseekV2Config(**_LATENT, q_lora_rank=None),
    "deepseek_v3": lambda: hf.DeepseekV3Config(**_LATENT, q_lora_rank=24, n_group=1, topk_group=1),
    "minicpm3": lambda: hf.MiniCPM3Config(**_NO_GQA, **_LATENT_SIZES, q_lora_rank=24),
    "mimo_v2_flash": lambda: hf.MiMoV2FlashConfig(
        **_BASE, head_dim=24, v_head_dim=16, sliding_window=8, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32,
    ),
    "xglm": lambda: hf.XGLMConfig(
        vocab_size=512, d_model=64, ffn_dim=128, num_layers=5, attention_heads=4, max_position_embeddings=256,
        pad_token_id=1, **_ENDS,
    ),
    "llama4": lambda: hf.Llama4TextConfig(
        **_BASE,
        head_dim=16,
        intermediate_size_mlp=128,
        num_local_experts=2,
        attention_chunk_size=16,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=4,
    ),
}


def random_model(config) -> torch.nn.Module:
    """A float32 model of `config` with weights wide enough that its greedy output varies."""
    torch.manual_seed(SEED)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    embedding = model.get_input_embeddings()
    for name, p in model.named_parameters():
        if p.ndim > 1:
            p.normal_(0, 0.5 if p is embedding.weight else 0.2)
        elif "norm" in name.lower() or "ln_" in name:
            p.add_(0.1 * torch.randn_like(p))
        else:
            p.normal_(0, 0.05)
    model.generation_config.eos_token_id = None
    return model


def generate(model, ids: list[int], new_tokens: int) -> list[int]:
    """transformers' own greedy continuation."""
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(
            prompt, max_new_tokens=new_tokens, do_sample=False, attention_mask=torch.ones_like(prompt), pad_token_id=0
        )
    return out[0, len(ids) :].tolist()
