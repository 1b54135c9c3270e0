"""Families with experts natively: what transformers computes, in one process and however it is cut."""

import json

import numpy as np
import pytest
import torch
from expert_models import CONFIGS, expert_model, read_from
from families import generate
from make_split import make_spec_split
from native_sections import NativeRing, difference, load, reference_logits, step
from test_families import prompt

from edgellm.kernels import library
from edgellm.model.families.find import find_spec
from tests.kernels.building import available

IDS = np.random.default_rng(3).integers(3, 500, 80).tolist()


def split_of(name, folder, encoding="f32"):
    """(model, manifest)"""
    model = expert_model(name)
    config = json.loads(model.config.to_json_string(use_diff=False))
    spec, reason = find_spec(config)
    assert spec, reason
    return model, make_spec_split(spec, config, folder, read_from(model, spec), encoding)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_and_the_logits_are_those_of_transformers(name, tmp_path):
    model, manifest = split_of(name, tmp_path)
    (section,) = load(manifest, tmp_path, (0, 5))
    got = section.trace(np.array(IDS), 0, section.new_slot(96, "float32"), len(IDS))
    with torch.inference_mode():
        expected = model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    for i in range(4):  # transformers gives the last one after the final norm only
        assert difference(got[i], expected[i + 1][0].numpy()) < 2e-5
    logits = reference_logits(model, IDS)
    assert difference(NativeRing([section], kv_dtype="float32").logits(IDS, (80,)), logits) < 2e-5
    assert difference(NativeRing([section]).logits(IDS, (80,)), logits, np.median) < 2e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_generate(name, tmp_path):
    model, manifest = split_of(name, tmp_path)
    expected = generate(model, prompt(), 24)
    assert len(set(expected)) > 5, "the reference's output is too dull to prove anything"
    ring = NativeRing(load(manifest, tmp_path, (0, 2, 5)), kv_dtype="float32")
    assert ring.generate(prompt(), 24) == expected


@pytest.mark.parametrize("name", ["qwen3_moe_options", "gpt_oss", "granitemoeshared", "glm4_moe_options",
                                  "many_heads", "glm4_moe_lite"])
def test_no_bit_depends_on_cuts_chunks_threads_or_instruction_sets(name, tmp_path):
    _, manifest = split_of(name, tmp_path, "int8")
    expected = NativeRing(load(manifest, tmp_path, (0, 5))).logits(IDS, (80,))
    try:
        for target in available():
            library.use_target(target)
            for threads, cuts, chunks in ((1, (0, 5), (1,)), (3, (0, 1, 4, 5), (7, 30, 1)), (2, (0, 2, 5), (64, 16))):
                library.set_threads(threads)
                got = NativeRing(load(manifest, tmp_path, cuts)).logits(IDS, chunks)
                assert np.array_equal(got, expected), (target, threads, cuts, chunks)
    finally:
        library.use_target(None)
        library.set_threads(1)


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
def test_a_slot_keeps_latents_alone_and_gives_them_back(kv_dtype, tmp_path):
    _, manifest = split_of("glm4_moe_lite", tmp_path, "int8")
    (section,) = load(manifest, tmp_path, (0, 5))
    whole = NativeRing([section], 100, kv_dtype).logits(IDS, (1,))
    first, second = section.new_slot(100, kv_dtype), section.new_slot(90, kv_dtype)
    per_token = {"float32": 4 * 48, "float16": 2 * 48, "int8": 48 + 2 * 4}[kv_dtype]  # 32 of the latent, 16 that turn
    assert (first.ram_bytes, second.ram_bytes) == (5 * 112 * per_token, 5 * 96 * per_token)
    assert set(manifest.kv_elements_per_token) == {48} and set(manifest.kv_scales_per_token) == {2}
    section.forward(np.array(IDS[:70]), 0, first, 70, 0)
    pages = first.export(0, 64)
    assert {page.nbytes for page in pages} == {64 * per_token}
    second.restore(0, 64, pages)
    steps = [step(np.array(IDS[at:]), at, slot, 80, 80 - at) for slot, at in ((first, 70), (second, 64))]
    for at, result in zip((70, 64), section.forward_many(steps), strict=True):
        assert np.array_equal(result, whole[at:])


@pytest.mark.parametrize(
    "name, changed, reason",
    [
        ("olmoe", dict(clip_qkv=3.0), "olmoe: clip_qkv is given"),
        ("gpt_oss", dict(swiglu_alpha=1.0), "gpt_oss: swiglu_alpha is 1, the native path knows 1.702"),
        ("qwen3_moe", dict(mlp_only_layers=["1"]), "qwen3_moe: mlp_only_layers is no list of layers' numbers"),
        ("qwen3_moe", dict(num_experts_per_tok=9), "qwen3_moe: num_experts_per_tok is 9, expected a whole number "
         "from 1 to 8"),
        ("granitemoe", dict(logits_scaling=0), "granitemoe: logits_scaling is 0, by which logits can't be divided"),
        ("glm4_moe", dict(n_group=3), "glm4_moe: 8 experts in 3 groups, 1 chosen"),
        ("glm4_moe", dict(n_group=4), "glm4_moe: 3 experts of 1 groups of 2"),
        ("deepseek_v2", dict(v_head_dim=12), "deepseek_v2: v_head_dim is 12, not a multiple of 16"),
        ("deepseek_v2", dict(num_key_value_heads=2), "deepseek_v2: 4 heads share 2 of keys and values, the native "
         "path knows as many"),
        ("deepseek_v2", dict(topk_method="noaux_tc"), "deepseek_v2: topk_method is 'noaux_tc', the native path knows "
         "'greedy', 'group_limited_greedy'"),
        ("deepseek_v3", dict(kv_lora_rank=2048), "deepseek_v3: kv_lora_rank is 2048, at most 1024"),
        ("glm4_moe_lite", dict(mlp_layer_types=["dense"]), "glm4_moe_lite: mlp_layer_types doesn't say dense or sparse "
         "for each of the 5 layers"),
        ("granitemoeshared", dict(shared_intermediate_size=100), "granitemoeshared: the shared expert's size is 100, "
         "not a multiple of 16"),
    ],
)  # fmt: skip
def test_what_no_kernel_computes_is_refused_in_words(name, changed, reason):
    config = {**json.loads(CONFIGS[name]().to_json_string(use_diff=False)), **changed}
    assert find_spec(config) == (None, reason)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("options", [{}, dict(attention_factor=0.7), dict(mscale=0.8, mscale_all_dim=0.5),
                                     dict(beta_fast=4, beta_slow=4), dict(factor=1.0)])  # fmt: skip
def test_yarn_is_that_of_transformers(options, truncate):
    import transformers as hf
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from edgellm.model.families.rotary import rotary_of

    given = dict(rope_type="yarn", rope_theta=15e4, factor=32.0, truncate=truncate)
    given |= dict(original_max_position_embeddings=4096)
    config = hf.GptOssConfig(head_dim=64, rope_parameters=given | options)
    frequencies, scaling = ROPE_INIT_FUNCTIONS["yarn"](config)
    found = rotary_of({"rope_parameters": given | options}, 64, 131072, partial=True)
    np.testing.assert_allclose(found.frequencies[0], frequencies.numpy(), rtol=3e-7)
    assert found.scaling == pytest.approx(scaling, rel=1e-12)
