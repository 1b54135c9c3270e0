"""Splitting GGUF files: what comes out is what transformers' own loader makes of them, packed blocks bit for bit."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteMoeSharedConfig,
    LlamaConfig,
    MiniMaxM2Config,
    Ministral3Config,
    MistralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from edgellm.model.generic.structure import trace
from edgellm.sampling import Sampling
from edgellm.shards.encodings import ENCODINGS
from tests.blocks import to_blocks
from tests.checkpoint.gguf_files import Q, permute, reference, write_gguf
from tests.checkpoint.helpers import assert_same_weights, encodings, read_split, tiny_model

# 256: a K-quant's block is a row's least length.
_WIDE = dict(
    vocab_size=64,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    rms_norm_eps=1e-5,
)
_NORMED = {key: value for key, value in _WIDE.items() if key != "rms_norm_eps"}
_PLAIN = dict(vocab_size=64, hidden_size=256, num_hidden_layers=2, num_attention_heads=8)


def _rope(partial: float | None = None) -> dict:
    rope = {"rope_type": "default", "rope_theta": 50000.0}
    return rope | ({"partial_rotary_factor": partial} if partial else {})


_YARN = {**_rope(), "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LATENT = {
    **_WIDE, "num_key_value_heads": 8, "num_hidden_layers": 3,
    "kv_lora_rank": 256, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 48,
    "moe_intermediate_size": 256, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}  # fmt: skip
_CONFIGS = {
    "llama": lambda: LlamaConfig(**_WIDE),
    "llama-tied": lambda: LlamaConfig(**_WIDE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**_WIDE),
    "qwen3": lambda: Qwen3Config(**_WIDE, head_dim=64),
    "phi3": lambda: Phi3Config(**_WIDE),
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=256, n_layer=2, n_head=4, n_positions=64),
    "gemma": lambda: GemmaConfig(**_WIDE, head_dim=64, rope_parameters=_rope()),
    "gemma2": lambda: Gemma2Config(**_WIDE, head_dim=32, sliding_window=16, query_pre_attn_scalar=32),
    "gemma3": lambda: Gemma3TextConfig(**_WIDE, head_dim=32, sliding_window=16, query_pre_attn_scalar=32),
    "gemma3-scaled": lambda: Gemma3TextConfig(
        **_WIDE, head_dim=32, sliding_window=16, query_pre_attn_scalar=32,
        rope_parameters={"full_attention": {**_rope(), "rope_type": "linear", "factor": 8.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0}},
    ),
    "granite": lambda: GraniteConfig(
        **_WIDE, embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.015625,
    ),
    "glm4": lambda: Glm4Config(**_WIDE, head_dim=32, rope_parameters=_rope(0.5)),
    "glm4-plain": lambda: Glm4Config(**_WIDE, head_dim=32, attention_bias=False, rope_parameters=_rope(1.0)),
    "ministral": lambda: Ministral3Config(
        **_WIDE, head_dim=64, rope_parameters={
            **_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 24.0, "llama_4_scaling_beta": 0.1,
        },
    ),
    "olmo2": lambda: Olmo2Config(**_WIDE, rope_parameters=_rope()),
    "olmo3": lambda: Olmo3Config(
        **{**_WIDE, "num_hidden_layers": 4}, sliding_window=16,
        rope_parameters={"full_attention": {**_YARN, "attention_factor": 1.25}, "sliding_attention": _rope()},
    ),
    "smollm3": lambda: SmolLM3Config(**{**_WIDE, "num_hidden_layers": 4}, rope_parameters=_rope()),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **_WIDE, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True
    ),
    "gpt-oss": lambda: GptOssConfig(
        **{**_WIDE, "num_hidden_layers": 4}, head_dim=32, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
        rope_parameters=_YARN,
    ),
    "olmoe": lambda: OlmoeConfig(**_WIDE, num_experts=4, num_experts_per_tok=2),
    "granite-moe": lambda: GraniteMoeConfig(
        **_WIDE, num_local_experts=4, num_experts_per_tok=2, embedding_multiplier=12.0, logits_scaling=6.0,
        residual_multiplier=0.22, attention_multiplier=0.015625,
    ),
    "granite-moe-shared": lambda: GraniteMoeSharedConfig(
        **_WIDE, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=96, attention_multiplier=0.015625,
    ),
    "glm4-moe": lambda: Glm4MoeConfig(
        **{**_WIDE, "num_hidden_layers": 3}, head_dim=32, n_routed_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=256, n_group=2, topk_group=1, routed_scaling_factor=1.5, use_qk_norm=True,
        num_nextn_predict_layers=0, rope_parameters=_rope(0.5),
    ),
    "deepseek-v2": lambda: DeepseekV2Config(
        **_LATENT, q_lora_rank=None, n_group=4, topk_group=2, topk_method="group_limited_greedy",
        routed_scaling_factor=2.5,
    ),
    "deepseek-v3": lambda: DeepseekV3Config(
        **_LATENT, q_lora_rank=256, n_group=2, topk_group=1,
        rope_parameters={**_YARN, "mscale": 0.7, "mscale_all_dim": 0.7},
    ),
    "qwen2-moe": lambda: Qwen2MoeConfig(
        **_WIDE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=96
    ),
    "minimax-m2": lambda: MiniMaxM2Config(
        **_WIDE, head_dim=32, num_local_experts=4, num_experts_per_tok=2, rope_parameters=_rope(0.5)
    ),
    "mistral": lambda: MistralConfig(**_WIDE, sliding_window=16),
    "llama-biased": lambda: LlamaConfig(**_WIDE, attention_bias=True, mlp_bias=True),
    "falcon-7b": lambda: FalconConfig(**_PLAIN, num_kv_heads=1),
    "falcon-40b": lambda: FalconConfig(**_PLAIN, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-11b": lambda: FalconConfig(
        **_PLAIN, new_decoder_architecture=True, num_kv_heads=4, num_ln_in_parallel_attn=1
    ),
    "bloom": lambda: BloomConfig(**_PLAIN),
    "stablelm": lambda: StableLmConfig(**_NORMED, use_qkv_bias=True, rope_parameters=_rope(0.25)),
    "stablelm-parallel": lambda: StableLmConfig(**_NORMED, use_parallel_residual=True, rope_parameters=_rope(0.25)),
    "starcoder2": lambda: Starcoder2Config(**_NORMED, rope_parameters=_rope()),
    "nemotron": lambda: NemotronConfig(**_NORMED, rope_parameters=_rope(0.5)),
}
# Families whose norms are stored as 1 + w, which rounds them.
_ROUNDED = ("gemma", "gemma2", "gemma3", "gemma3-scaled", "nemotron")
GPT2_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def _model(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_CONFIGS[family]())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.1)
    return model


def _state(path, model):
    """transformers' reading of the file, with the tied head."""
    state = reference(path, model)
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state[next(n for n in state if n.endswith(("embed_tokens.weight", "wte.weight")))]
    assert set(state) == set(model.state_dict())
    return state


def _conv1d(family):
    return GPT2_CONV1D if family == "gpt2" else ()


@pytest.mark.parametrize("family", _CONFIGS)
def test_every_family_in_f32(tmp_path, family):
    model = _model(family)
    path = write_gguf(tmp_path / "m.gguf", model)
    manifest = split(open_source(str(path)), tmp_path / "out")
    assert manifest.architecture == type(model).__name__
    state = model.state_dict()
    if family in _ROUNDED:
        state = {n: (t + 1) - 1 if n.endswith("norm.weight") else t for n, t in state.items()}
    assert_same_weights(tmp_path / "out", state, _conv1d(family))


_PACKED = {e.gguf: name for name, e in ENCODINGS.items()}
_TYPES = ["F16", "BF16", "TQ2_0", *_PACKED]


@pytest.mark.parametrize(
    ("family", "kind"), [*(("llama", k) for k in _TYPES), ("gpt2", "Q4_1"), ("gpt2", "Q6_K"), ("gpt2", "F16")]
)
def test_every_type_of_tensor(tmp_path, kind, family):
    model = _model(family)
    path = write_gguf(tmp_path / "m.gguf", model, lambda name: Q[kind])
    split(open_source(str(path)), tmp_path / "out")
    state, found = _state(path, model), read_split(tmp_path / "out")
    expected = {"BF16": "bf16", **_PACKED}.get(kind, "f16")
    layer = encodings(tmp_path / "out", "layer-0001.safetensors")
    assert {e for n, e in layer.items() if n.endswith(("proj.weight", "c_attn.weight", "c_fc.weight"))} == {expected}
    if expected == "f16" and kind != "F16":  # dequantized: rounded to float16 once
        state = {n: t if t.dim() == 1 else t.half() for n, t in state.items()}
    if kind in _PACKED:
        assert {t.dtype for t in found.values()} == {torch.float32}
    else:
        found_dtypes = {t.dtype for t in found.values() if t.dim() == 2}
        assert found_dtypes == {torch.bfloat16 if kind == "BF16" else torch.float16}
        state = {n: t if t.dim() == 1 else t.to(*found_dtypes) for n, t in state.items()}
    assert_same_weights(tmp_path / "out", state, _conv1d(family))


@pytest.mark.parametrize("kind, encoding", [("Q4_1", "int4"), ("Q4_0", "int4s"), ("Q8_0", "int8")])
def test_packed_weights_are_the_files_own_numbers_with_rows_put_back(tmp_path, kind, encoding):
    model = _model("llama")
    path = write_gguf(tmp_path / "m.gguf", model, lambda name: Q[kind])
    split(open_source(str(path)), tmp_path / "out")
    from gguf import GGUFReader

    raw = {t.name: np.array(t.data) for t in GGUFReader(path).tensors}
    with safe_open(tmp_path / "out" / "layer-0000.safetensors", "np") as f:
        def blocks(name, rows):
            return to_blocks(f.get_tensor(name), encoding, (rows, 256))

        assert np.array_equal(blocks("mlp.up_proj.weight", 256), raw["blk.0.ffn_up.weight"])
        assert np.array_equal(permute(blocks("self_attn.q_proj.weight", 256), 8), raw["blk.0.attn_q.weight"])
        assert np.array_equal(permute(blocks("self_attn.k_proj.weight", 64), 2), raw["blk.0.attn_k.weight"])


def test_quantize_keeps_what_is_small_enough_and_packs_the_rest(tmp_path):
    kinds = {"attn_q": Q.Q4_1, "attn_k": Q.Q8_0, "ffn_up": Q.Q6_K, "ffn_down": Q.F16, "token_embd": Q.Q4_0}
    path = write_gguf(
        tmp_path / "m.gguf", _model("llama"), lambda n: next((k for s, k in kinds.items() if s in n), Q.F32)
    )
    for quantize, q, k, up in (("int8", "int4", "int8", "q6_k"), ("int4", "int4", "q4_k", "q4_k")):
        split(open_source(str(path)), tmp_path / quantize, quantize)
        layer = encodings(tmp_path / quantize, "layer-0000.safetensors")
        assert (layer["self_attn.q_proj.weight"], layer["self_attn.k_proj.weight"]) == (q, k)
        assert (layer["mlp.up_proj.weight"], layer["mlp.down_proj.weight"]) == (
            up, {"int8": "int8", "int4": "q4_k"}[quantize]
        )  # fmt: skip
        assert encodings(tmp_path / quantize, "embedding.safetensors") == {"model.embed_tokens.weight": "int4s"}
        assert encodings(tmp_path / quantize, "head.safetensors")["lm_head.weight"] == "int8"


def test_experts_stay_packed_and_apart(tmp_path):
    model = _model("qwen3-moe")
    path = write_gguf(tmp_path / "m.gguf", model, lambda name: Q.Q8_0 if "exps" in name else Q.F32)
    split(open_source(str(path)), tmp_path / "out")
    assert_same_weights(tmp_path / "out", _state(path, model))


@pytest.mark.parametrize("family", _CONFIGS)
def test_config_is_the_models(tmp_path, family):
    """All that a config says, but what only training or other tasks read; numbers were in float32 meanwhile."""
    model = _model(family)
    source = open_source(str(write_gguf(tmp_path / "m.gguf", model)))
    found, expected = source.config.to_dict(), model.config.to_dict()
    unlike = {key for key in expected if not _same(found.get(key), expected[key])}
    assert unlike <= {
        "_name_or_path", "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "dtype",
        "transformers_version", "max_window_layers", "n_inner", "head_dim", "output_router_logits",
    }, {key: (found.get(key), expected[key]) for key in unlike}  # fmt: skip
    build = trace(source.config)
    assert (build.kv_shapes, build.max_seq_len) == (trace(model.config).kv_shapes, trace(model.config).max_seq_len)


def _same(found, expected) -> bool:
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(_same(found.get(k), v) for k, v in expected.items())
    return found == expected or isinstance(expected, float) and found == pytest.approx(expected, rel=1e-6)


def test_longrope_factors_become_the_configs(tmp_path):
    short, long = [1.0 + 0.1 * i for i in range(16)], [2.0 + 0.2 * i for i in range(16)]
    path = write_gguf(
        tmp_path / "m.gguf",
        _model("phi3"),
        extra=lambda w: (w.add_rope_scaling_orig_ctx_len(32), w.add_rope_scaling_attn_factors(1.1)),
        extra_tensors={"rope_factors_long.weight": long, "rope_factors_short.weight": short},
    )
    source = open_source(str(path))
    rope = source.config.rope_parameters
    assert rope["rope_type"] == "longrope" and rope["original_max_position_embeddings"] == 32
    np.testing.assert_allclose(rope["short_factor"], short, rtol=1e-6)
    np.testing.assert_allclose(rope["long_factor"], long, rtol=1e-6)
    assert split(source, tmp_path / "out").rope_switch_len == 32


def _llama3_divisors(factor, length, dim=32, theta=10000.0):
    """As llama.cpp's converter writes rope_freqs.weight."""
    out = []
    for freq in 1.0 / theta ** (np.arange(0, dim, 2) / dim):
        wavelength = 2 * np.pi / freq
        if wavelength < length / 4:
            out.append(1.0)
        elif wavelength > length:
            out.append(factor)
        else:
            smooth = (length / wavelength - 1) / 3
            out.append(1 / ((1 - smooth) / factor + smooth))
    return out


@pytest.mark.parametrize(("factor", "length"), [(8.0, 8192), (32.0, 8192), (16.0, 4096)])
def test_llama3_scaling_is_found_again_from_its_divisors(tmp_path, factor, length):
    divisors = _llama3_divisors(factor, length)
    path = write_gguf(tmp_path / "m.gguf", _model("llama"), extra_tensors={"rope_freqs.weight": divisors})
    rope = open_source(str(path)).config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("llama3", factor, length)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    inv_freq, _ = ROPE_INIT_FUNCTIONS["llama3"](open_source(str(path)).config, torch.device("cpu"))
    plain = 1.0 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
    torch.testing.assert_close(plain / inv_freq, torch.tensor(divisors, dtype=torch.float32), rtol=1e-4, atol=1e-5)


def test_scalings_that_would_be_lost_are_refused(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", _model("llama"), extra_tensors={"rope_freqs.weight": [1.0, 3.0] * 8})
    with pytest.raises(CheckpointError, match="16 divisors up to 3.0 that are not Llama 3's"):
        open_source(str(path))

    def strange(writer):
        writer.add_string("llama.rope.scaling.type", "strange")

    with pytest.raises(CheckpointError, match="llama.rope.scaling.type is 'strange', llama.rope.scaling.factor 0"):
        open_source(str(write_gguf(tmp_path / "b.gguf", _model("llama"), extra=strange)))

    def linear(writer):
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(4.0)

    config = open_source(str(write_gguf(tmp_path / "c.gguf", _model("llama"), extra=linear))).config
    assert (config.rope_parameters["rope_type"], config.rope_parameters["factor"]) == ("linear", 4.0)


def test_tensors_that_dont_belong_are_refused(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", _model("llama"), extra_tensors={"blk.7.attn_q.weight": np.ones((4, 4))})
    with pytest.raises(CheckpointError, match="tensor blk.7.attn_q.weight: LlamaForCausalLM has no such tensor"):
        split(open_source(str(path)), tmp_path / "out")

    def experts(writer):
        writer.add_expert_count(8)

    with pytest.raises(CheckpointError, match="llama.expert_count is 8, which edgellm can't run from a GGUF"):
        open_source(str(write_gguf(tmp_path / "b.gguf", _model("llama"), extra=experts)))


def test_infinite_scales_are_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", _model("llama"), lambda name: Q.Q8_0)
    source = open_source(str(path))
    info = source._gguf.tensors["blk.1.ffn_up.weight"]
    with open(path, "r+b") as f:
        f.seek(info.offset + 34 * 5)
        f.write(np.float16(np.inf).tobytes())
    with pytest.raises(CheckpointError, match="blk.1.ffn_up.weight: the scales of 1 of 2048 blocks .* not finite"):
        split(open_source(str(path)), tmp_path / "out")


ADVICE = {
    "as converters write it": ({"temp": 0.6, "top_k": 20, "top_p": 0.95}, Sampling(0.6, top_k=20, top_p=0.95)),
    "transformers' top-k where the file has none": ({"temp": 0.7, "min_p": 0.05}, Sampling(0.7, top_k=50, min_p=0.05)),
    "no temperature": ({"top_k": 40, "penalty_repeat": 1.1}, Sampling(top_k=40, repeat_penalty=1.1)),
    "greedy": ({"temp": 0.0}, Sampling()),
    "greedy, as llama.cpp reads it": ({"temp": -1.0}, Sampling()),
}


def _add_advice(values):
    def add(writer):
        for name, value in values.items():
            (writer.add_uint32 if name == "top_k" else writer.add_float32)(f"general.sampling.{name}", value)

    return add


@pytest.mark.parametrize(("advice", "expected"), ADVICE.values(), ids=ADVICE)
def test_the_sampling_that_a_file_advises_is_the_splits(tmp_path, advice, expected):
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra=_add_advice(advice))
    split(open_source(str(path)), tmp_path / "out")
    content = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert Sampling.from_generation_config(content) == expected


@pytest.mark.parametrize("wrong", [{"top_p": 1.5}, {"temp": 1e9}, {"penalty_repeat": 0.0}])
def test_a_sampling_that_no_question_could_use_is_refused(tmp_path, wrong):
    advice = _add_advice({"temp": 0.7, **wrong})
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra=advice)
    with pytest.raises(CheckpointError, match="m.gguf: the sampling that its authors advise can.t be used"):
        split(open_source(str(path)), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.suffix == ".safetensors"] == []
