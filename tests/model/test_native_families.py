"""Which configs the native path takes: what it doesn't know it leaves to the generic path, and says why."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from families import CONFIGS
from test_native import FAMILIES

from edgellm.model.families.find import find_spec
from edgellm.model.generic.build import build_empty, config_from_dict, find_layers
from edgellm.model.generic.structure import trace

LLAMA = dict(
    model_type="llama", vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=5,
    num_attention_heads=4,
)  # fmt: skip
PHI3 = {**LLAMA, "model_type": "phi3", "pad_token_id": 0}
GEMMA3 = {**LLAMA, "model_type": "gemma3_text", "head_dim": 16, "num_key_value_heads": 2}
GPT2 = dict(model_type="gpt2", n_embd=64, n_layer=2, n_head=4)
LONG = dict(type="su", short_factor=[1.0] * 8, long_factor=[2.0] * 8)


@pytest.mark.parametrize("family", [*FAMILIES, "llama_dynamic", "mixtral", "gptneox", "cohere", "stablelm"])
def test_a_spec_is_what_tracing_the_model_finds(family):
    config = {**FAMILIES, **CONFIGS}[family]()
    spec, reason = find_spec(config.to_dict())
    assert (spec is None) == (family not in FAMILIES), reason
    if spec is None:
        return
    s = trace(config)
    for name in (
        "model_type", "architecture", "num_layers", "hidden_size", "vocab_size", "max_seq_len",
        "kv_elements_per_token", "activation_elements_per_token", "rope_switch_len",
    ):  # fmt: skip
        assert getattr(spec, name) == getattr(s, name), name
    assert spec.tied == (s.tied is not None)
    assert spec.embedding_tensors == {name: s.shapes[name] for name in s.embedding_names}
    assert spec.head_tensors == {name: s.shapes[name] for name in s.head_names}
    for i, (layer, names) in enumerate(zip(spec.layers, s.layer_names, strict=True)):
        stored = {name: s.shapes[i, name][:: -1 if (i, name) in s.transposed else 1] for name in names}
        assert spec.shard_tensors("layer", i) == layer.tensors == stored
        assert layer.kv_elements_per_token == s.kv_elements_per_token[i] and layer.state_bytes == 0


def test_each_layer_has_a_window_and_a_scale_of_its_own():
    qwen, _ = find_spec(CONFIGS["qwen2_window"]().to_dict())
    assert [layer.mixer.window for layer in qwen.layers] == [0, 0, 8, 8, 8]
    gpt2, _ = find_spec(CONFIGS["gpt2_inverse_layer"]().to_dict())
    assert [layer.mixer.scale for layer in gpt2.layers] == [0.25 / i for i in range(1, 6)]


def test_projections_that_share_a_matrix_are_consecutive_rows_of_it():
    phi3, _ = find_spec({**PHI3, "num_key_value_heads": 2})
    attention, mlp = phi3.layers[0].mixer, phi3.layers[0].feed_forward
    assert [(p.first, p.rows, p.weight.rows) for p in (attention.q, attention.k, attention.v)] == [
        (0, 64, 128), (64, 32, 128), (96, 32, 128)
    ]  # fmt: skip
    assert [(p.first, p.rows, p.weight.name) for p in (mlp.gate, mlp.up)] == [
        (0, 128, "mlp.gate_up_proj.weight"), (128, 128, "mlp.gate_up_proj.weight")
    ]  # fmt: skip


@pytest.mark.parametrize("config", [
    {**LLAMA, "rope_theta": 500000.0},
    {**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 64}},
    {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.5}},
    *({**LLAMA, "rope_theta": 5e4, "head_dim": 64, "max_position_embeddings": 512,
       "rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 128, **other}} for other in (
        {"factor": 4.0}, {"factor": 3.5, "beta_fast": 24.0, "beta_slow": 2.0, "truncate": False},
        {"factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.3}, {"factor": 8.0, "attention_factor": 1.25},
        {"factor": 4.0, "beta_fast": 1.0, "beta_slow": 1.0}, {"factor": 4.0, "beta_fast": 1e-3, "beta_slow": 1e-3},
    )),
    {**PHI3, "rope_scaling": LONG, "max_position_embeddings": 4096, "original_max_position_embeddings": 128},
    {**PHI3, "partial_rotary_factor": 0.5},
])  # fmt: skip
def test_rotary_factors_of_older_configs_are_those_of_transformers(config):
    model = build_empty(config_from_dict(dict(config)), real_buffers=True)
    theirs = model.model.rotary_emb
    spec, reason = find_spec(config)
    assert spec is not None, reason
    assert find_layers(model)
    for length in (100, 300):
        positions = torch.arange(length)[None]
        cos, sin = theirs(torch.zeros(1), positions)
        half = cos.shape[-1] // 2
        got = spec.rotaries[0].tables(spec.rotaries[0].choose(length), length)
        assert np.allclose(got[0], cos[0, :, :half].numpy(), atol=2e-5)
        assert np.allclose(got[1], sin[0, :, :half].numpy(), atol=2e-5)


@pytest.mark.parametrize(
    "config, reason",
    [
        ([], "not a JSON object"),
        ({}, "None is none of deepseek_v2, deepseek_v3"),
        ({"model_type": ["llama"]}, "is none of"),
        ({**LLAMA, "model_type": "gemma9"}, "gemma9 is none of"),
        ({**LLAMA, "hidden_act": "gelu"}, "llama: hidden_act is 'gelu'"),
        ({**LLAMA, "hidden_size": 72, "num_attention_heads": 4}, "hidden_size is 72, not a multiple of 16"),
        ({**LLAMA, "num_attention_heads": 8}, "head_dim is 8"),
        ({**LLAMA, "num_attention_heads": 0}, "num_attention_heads is 0"),
        ({**LLAMA, "num_key_value_heads": 3}, "4 heads over 3"),
        ({**LLAMA, "num_attention_heads": 2048, "head_dim": 16}, "2048 heads, at most 1024"),
        ({**LLAMA, "num_hidden_layers": 1025}, "num_hidden_layers is 1025, expected a whole number from 1 to 1024"),
        ({**LLAMA, "hidden_size": "64"}, "hidden_size is '64'"),
        ({**LLAMA, "hidden_size": 1 << 40}, "hidden_size is 1099511627776"),
        ({k: v for k, v in LLAMA.items() if k != "vocab_size"}, "vocab_size is None"),
        ({**LLAMA, "attention_bias": "yes"}, "attention_bias is 'yes'"),
        ({**LLAMA, "rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "truncate": 1}}, "truncate is 1, expected true or false"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "beta_fast": -1}}, "beta_fast is -1"),
        ({**LLAMA, "rope_theta": 1, "rope_scaling": {"rope_type": "yarn"}}, "YaRN with a rope_theta of 1"),
        ({**LLAMA, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope type 'dynamic'"),
        ({**LLAMA, "rope_scaling": {"full": {"rope_type": "default"}}}, "aren't one set for all layers"),
        ({**LLAMA, "rope_scaling": {"rope_type": "linear"}}, "factor is None"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({**PHI3, "rope_scaling": {**LONG, "long_factor": [1.0]}}, "long_factor is not a list of 8"),
        ({**PHI3, "rope_scaling": {**LONG, "short_mscale": 1.1}}, "mscale"),
        ({**LLAMA, "model_type": "qwen2", "layer_types": ["full_attention"] * 4}, "layer_types is not a list"),
        ({**LLAMA, "model_type": "qwen2", "num_key_value_heads": 4, "layer_types": ["chunked"] * 5}, "type 'chunked'"),
        ({**LLAMA, "model_type": "gemma", "hidden_act": "relu"}, "gemma: hidden_act is 'relu'"),
        ({**GEMMA3, "hidden_activation": "gelu"}, "hidden_activation is 'gelu', the native path knows 'gelu_pytorch"),
        ({**GEMMA3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is given, which nothing computes"),
        ({**GEMMA3, "use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ({**GEMMA3, "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({**GEMMA3, "sliding_window": None}, "layers have a sliding window, but its size isn't given"),
        ({**GEMMA3, "rope_parameters": {"rope_type": "default"}}, "aren't one set for each of full_attention, sliding"),
        ({**GEMMA3, "rope_parameters": {"full_attention": LONG}}, "LongRoPE in layers of type full_attention"),
        ({**GEMMA3, "rope_parameters": {"full_attention": 3}}, "its rotary parameters of full_attention are no set"),
        ({**GEMMA3, "rope_local_base_freq": -1}, "rope_theta is -1"),
        ({**LLAMA, "model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers is not a list of 0 or 1 for ea"),
        ({**LLAMA, "model_type": "granite", "logits_scaling": 0}, "logits_scaling is 0, by which logits can't be div"),
        ({**LLAMA, "model_type": "granite", "residual_multiplier": -1.0}, "residual_multiplier is -1.0"),
        ({**LLAMA, "model_type": "starcoder2", "hidden_act": "gelu"}, "starcoder2: hidden_act is 'gelu'"),
        ({**LLAMA, "model_type": "ministral3", "rope_parameters": [1]}, "ministral3: its rotary parameters are no set"),
        ({**LLAMA, "model_type": "ministral3", "rope_parameters": {
            "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 1}}, "262144 positions are 262144 times"),
        ({**GPT2, "activation_function": "relu"}, "activation_function is 'relu'"),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention"),
        ({**GPT2, "n_head": 5}, "64 dimensions for 5 heads"),
    ],
)
def test_what_the_native_path_does_not_know_it_leaves_with_the_reason(config, reason):
    spec, said = find_spec(config)
    assert spec is None and reason in said and "\n" not in said


def test_the_native_path_imports_neither_torch_nor_transformers():
    code = (
        "import sys, edgellm.agent.load, edgellm.model.native.section as s\n"
        "edgellm.agent.load.set_threads(1)\n"
        "print(sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
