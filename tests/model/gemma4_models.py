"""Tiny random models of Gemma 4's text, each of its odd parts other than the default."""

import torch
import transformers as hf

from tests.model.families import random_model

_BASE = dict(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, global_head_dim=32, max_position_embeddings=1024, sliding_window=9,
    layer_types=["sliding_attention", "full_attention"] * 3, hidden_size_per_layer_input=0,
    vocab_size_per_layer_input=512, tie_word_embeddings=False, eos_token_id=None, bos_token_id=None, pad_token_id=None,
)  # fmt: skip
_ROPE = {
    "sliding_attention": {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e5, "factor": 3.0},
}
_LATE = ["sliding_attention", "full_attention", "full_attention", *["sliding_attention"] * 2, "full_attention"]

CONFIGS = {
    "dense": dict(final_logit_softcapping=9.0, attention_bias=True, rope_parameters=_ROPE, rms_norm_eps=1e-5),
    "keys_are_values": dict(attention_k_eq_v=True, num_global_key_value_heads=1, tie_word_embeddings=True),
    "experts": dict(enable_moe_block=True, num_experts=8, top_k_experts=3, moe_intermediate_size=64, layer_types=_LATE),
    "per_layer": dict(hidden_size_per_layer_input=32, num_kv_shared_layers=3, use_double_wide_mlp=True),
}  # fmt: skip


def gemma4_config(name: str) -> hf.Gemma4TextConfig:
    """Return the config of this name."""
    return hf.Gemma4TextConfig(**{**_BASE, **CONFIGS[name]})


def gemma4_model(name: str) -> torch.nn.Module:
    """Return a model of this name with scales that aren't 1."""
    model = random_model(gemma4_config(name))
    torch.manual_seed(2)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("layer_scalar"):
            buffer.normal_(1, 0.2)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 3:
            parameter.normal_(0, 0.4)
        elif parameter_name.endswith(("router.scale", "per_expert_scale")):
            parameter.normal_(1, 0.3)
    return model


def forward(model, ids) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return transformers' logits [tokens, vocab], and the hidden states before and after each layer."""
    with torch.inference_mode():  # without hidden states, layers that see others' keys compute the last token alone
        found = model(torch.tensor([list(ids)]), output_hidden_states=True)
    return found.logits[0].numpy(), found.hidden_states
