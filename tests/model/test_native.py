"""Native sections compute what transformers computes, and a token's result is the same bits however it is computed."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers as hf
from families import _BASE, _LONGROPE, CONFIGS, generate, random_model
from make_split import make_split, round_weights
from native_sections import NativeRing, difference, load, reference_logits, rounded_inputs, step
from test_families import prompt

from edgellm.errors import ModelError
from edgellm.kernels import library
from edgellm.model.families.rotary import rotary_of
from edgellm.model.generic.structure import trace

_LINEAR = dict(rope_type="linear", rope_theta=1e4, factor=4.0)
_YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64, beta_fast=8.0)
_PARTIAL = dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)
_TIED = {k: v for k, v in _BASE.items() if k != "tie_word_embeddings"}  # by default
_ODD_ROPES = {"full_attention": {**_LINEAR, "rope_theta": 2e5}, "sliding_attention": {"rope_theta": 3e3}}
FAMILIES = {
    **{name: CONFIGS[name] for name in (
        "gpt2", "gpt2_tied", "gpt2_inverse_layer", "llama", "llama_tied", "smollm", "llama3_rope", "phi3",
        "phi3_longrope", "qwen2", "qwen2_window", "qwen3", "mistral_window", "gemma2", "gemma3",
    )},
    "llama_mha": lambda: hf.LlamaConfig(**{**_BASE, "num_key_value_heads": 4}),
    "llama_mqa_biases": lambda: hf.LlamaConfig(
        **{**_BASE, "num_key_value_heads": 1}, attention_bias=True, mlp_bias=True
    ),
    "llama_linear": lambda: hf.LlamaConfig(**_BASE, rope_parameters=_LINEAR),
    "llama_wide_heads": lambda: hf.LlamaConfig(**_BASE, head_dim=48),
    "phi3_partial": lambda: hf.Phi3Config(**_BASE, rope_parameters=_PARTIAL),
    "phi3_window": lambda: hf.Phi3Config(**_BASE, sliding_window=11),
    "gemma": lambda: hf.GemmaConfig(**_TIED, head_dim=16),
    "gemma_odd": lambda: hf.GemmaConfig(**_BASE, head_dim=32, attention_bias=True, rope_parameters=_LINEAR),
    "gemma2_odd": lambda: hf.Gemma2Config(
        **_BASE, head_dim=32, query_pre_attn_scalar=24, attn_logit_softcapping=2.5, final_logit_softcapping=1.5,
        sliding_window=5, attention_bias=True, rope_parameters=_LINEAR,
        layer_types=[*["full_attention"] * 2, *["sliding_attention"] * 3],
    ),
    "gemma2_uncapped": lambda: hf.Gemma2Config(
        **_BASE, head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=None, final_logit_softcapping=None,
    ),
    "gemma3_odd": lambda: hf.Gemma3TextConfig(
        **_BASE, head_dim=32, query_pre_attn_scalar=24, final_logit_softcapping=1.5, sliding_window=5,
        attention_bias=True, rope_parameters=_ODD_ROPES, rms_norm_eps=1e-3,
        layer_types=["full_attention", "sliding_attention", *["full_attention"] * 3],
    ),
    "smollm3": CONFIGS["smollm3"],
    "smollm3_odd": lambda: hf.SmolLM3Config(
        **_BASE, no_rope_layers=[0, 1, 1, 0, 0], use_sliding_window=True, sliding_window=7, attention_bias=True,
        mlp_bias=True, rope_parameters=_LINEAR,
    ),
    "olmo2": CONFIGS["olmo2"],
    "olmo2_odd": lambda: hf.Olmo2Config(
        **{**_BASE, "num_key_value_heads": 1}, attention_bias=True, rope_parameters=_LINEAR, rms_norm_eps=1e-3
    ),
    "olmo3": lambda: hf.Olmo3Config(**_BASE, sliding_window=6),
    "olmo3_odd": lambda: hf.Olmo3Config(
        **_BASE, sliding_window=9, attention_bias=True, layer_types=["full_attention", *["sliding_attention"] * 4],
        rope_parameters={"full_attention": _YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 3e3}},
    ),
    "granite": lambda: hf.GraniteConfig(
        **_BASE, embedding_multiplier=3.0, logits_scaling=0.7, residual_multiplier=0.3, attention_multiplier=0.2,
        attention_bias=True, mlp_bias=True,
    ),
    "ministral": lambda: hf.MinistralConfig(
        **_BASE, head_dim=32, sliding_window=6,
        layer_types=[*["sliding_attention", "full_attention"] * 2, "full_attention"]
    ),
    "ministral3": lambda: hf.Ministral3Config(
        **_BASE, head_dim=32, sliding_window=21,
        rope_parameters={**_YARN, "llama_4_scaling_beta": 0.7, "original_max_position_embeddings": 16},
    ),
    "glm4": lambda: hf.Glm4Config(**_BASE, head_dim=16),
    "glm4_odd": lambda: hf.Glm4Config(
        **_BASE, head_dim=32, attention_bias=False, rms_norm_eps=1e-3,
        rope_parameters={**_LINEAR, "partial_rotary_factor": 0.75},
    ),
    "starcoder2": lambda: hf.Starcoder2Config(**_TIED, sliding_window=7),
    "starcoder2_odd": lambda: hf.Starcoder2Config(**_BASE, use_bias=False, norm_epsilon=1e-2, rope_parameters=_LINEAR),
    "phi4_mini": lambda: hf.Phi3Config(
        **{**_BASE, "tie_word_embeddings": True}, original_max_position_embeddings=32,
        rope_parameters={**_LONGROPE, "partial_rotary_factor": 0.75, "short_factor": [1.0 + 0.1 * i for i in range(6)],
                         "long_factor": [2.0 + 0.5 * i for i in range(6)]},
    ),
    "odd_vocab": lambda: hf.LlamaConfig(**{**_BASE, "vocab_size": 509}),
}  # fmt: skip
_DULL = ("gemma",)  # a head that is the embedding, which is scaled, says the same token again and again
IDS = np.random.default_rng(3).integers(3, 500, 80).tolist()


def sections_of(family, folder, encoding="f32", head=None, cuts=(0, 5)):
    """(model with the weights as the encoding has them, sections)"""
    model = random_model(FAMILIES[family]())
    if encoding != "f32":
        round_weights(model, trace(model.config), encoding, head)
    return model, load(make_split(model, folder, encoding, head), folder, cuts)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, tmp_path):
    model, sections = sections_of(family, tmp_path)
    expected = reference_logits(model, IDS)
    assert difference(NativeRing(sections, kv_dtype="float32").logits(IDS, (80,)), expected) < 2e-5
    assert difference(NativeRing(sections).logits(IDS, (80,)), expected) < 2e-2


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in _DULL])
def test_greedy_tokens_are_those_of_generate(family, tmp_path):
    model, sections = sections_of(family, tmp_path, cuts=(0, 2, 5))
    expected = generate(model, prompt(), 24)
    assert len(set(expected)) > 5, "the reference's output is too dull to prove anything"
    assert NativeRing(sections, kv_dtype="float32").generate(prompt(), 24) == expected


@pytest.mark.parametrize("prompt_len", [28, 32, 33, 40])
def test_longrope_switches_where_generate_does(prompt_len, tmp_path):
    model, sections = sections_of("phi3_longrope", tmp_path)
    expected = generate(model, IDS[:prompt_len], 16)
    assert NativeRing(sections, kv_dtype="float32").generate(IDS[:prompt_len], 16) == expected


@pytest.mark.parametrize(
    "encoding, head", [("bf16", None), ("f16", None), ("int8", None), ("int4", "int8"), ("int4s", "int8")]
)
@pytest.mark.parametrize("family", [
    "gpt2", "llama", "qwen2", "qwen3", "phi3", "mistral_window", "odd_vocab", "gemma3_odd", "glm4", "olmo2",
    "starcoder2",
])  # fmt: skip
def test_packed_weights_give_the_logits_of_the_unpacked_model(family, encoding, head, tmp_path):
    """With packed weights the reference rounds what goes into its products too. A value that lies just between two
    steps may be rounded the other way: from that token on the wider bound holds."""
    model, sections = sections_of(family, tmp_path, encoding, head)
    got = NativeRing(sections, kv_dtype="float32").logits(IDS, (80,))
    if encoding in ("bf16", "f16"):
        assert difference(got, reference_logits(model, IDS)) < 2e-5
        return
    with rounded_inputs(model):
        expected = reference_logits(model, IDS)
    assert difference(got, expected, np.min) < 1e-5 and difference(got, expected) < 0.1


@pytest.fixture(scope="module", params=[
    "llama", "gpt2", "phi3_longrope", "qwen3", "mistral_window", "gemma2_odd", "gemma3_odd", "glm4_odd", "granite",
    "ministral3", "olmo3_odd", "smollm3_odd", "starcoder2",
])  # fmt: skip
def packed(request, tmp_path_factory):
    """Manifest, folder and one section of a model in int4, or int8 where widths aren't made for it."""
    folder = tmp_path_factory.mktemp(request.param)
    model = random_model(FAMILIES[request.param]())
    manifest = make_split(model, folder, "int4", "int8")
    return manifest, folder, load(manifest, folder, (0, 5))


def test_sections_in_a_chain_give_the_bits_of_one(packed):
    manifest, folder, whole = packed
    expected = NativeRing(whole).logits(IDS, (80,))
    for cuts in ((0, 2, 5), (0, 1, 4, 5)):
        assert np.array_equal(NativeRing(load(manifest, folder, cuts)).logits(IDS, (80,)), expected)


@pytest.mark.parametrize("chunks", [(1,), (7,), (2, 1, 13), (64, 16), (33, 1)])
def test_any_chunking_gives_the_same_bits(packed, chunks):
    expected = NativeRing(packed[2]).logits(IDS, (80,))
    assert np.array_equal(NativeRing(packed[2]).logits(IDS, chunks), expected)


def test_a_batch_gives_the_bits_of_its_steps_alone(packed):
    (section,) = packed[2]
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, 500, n) for n in (5, 70, 33, 2, 16, 64)]
    alone, slots = [], [section.new_slot(96) for _ in texts]
    for text in texts:
        slot = section.new_slot(96)
        section.forward(text[:-1], 0, slot, len(text) - 1, 0)
        alone.append(section.forward(text[-1:], len(text) - 1, slot, len(text), 1))
    for text, slot in zip(texts, slots, strict=True):
        section.forward(text[:-1], 0, slot, len(text) - 1, 0)
    steps = [step(t[-1:], len(t) - 1, slot, len(t), 1) for t, slot in zip(texts, slots, strict=True)]
    for got, expected in zip(section.forward_many(steps), alone, strict=True):
        assert np.array_equal(got, expected)


def test_chunks_and_decode_steps_in_one_batch_give_the_bits_of_each_alone(packed):
    (section,) = packed[2]
    a, b, c = (np.array(IDS[i : i + 30]) for i in (0, 20, 40))

    def run(together):
        slots = [section.new_slot(40) for _ in range(3)]
        section.forward(a[:29], 0, slots[0], 30, 0)
        steps = [step(a[29:], 29, slots[0], 30, 1), step(b, 0, slots[1], 30, 4), step(c[:20], 0, slots[2], 30, 0)]
        return section.forward_many(steps) if together else [section.forward_many([s])[0] for s in steps]

    together, alone = run(True), run(False)
    assert together[2] is None and alone[2] is None
    assert [r.shape for r in together[:2]] == [(1, 512), (4, 512)]
    assert all(np.array_equal(x, y) for x, y in zip(together[:2], alone[:2], strict=True))


def test_two_chunks_of_one_sequence_in_a_batch_come_one_after_the_other(packed):
    (section,) = packed[2]
    ids, slot = np.array(IDS), section.new_slot(96)
    got = section.forward_many([step(ids[:1], 0, slot, 80, 1), step(ids[1:2], 1, slot, 80, 1),
                                step(ids[2:], 2, slot, 80, 78)])  # fmt: skip
    assert np.array_equal(np.concatenate(got), NativeRing([section]).logits(IDS, (80,)))


def test_threads_change_no_bit(packed):
    expected = NativeRing(packed[2]).logits(IDS, (40, 1))
    try:
        for count in (2, 3):
            library.set_threads(count)
            assert np.array_equal(NativeRing(packed[2]).logits(IDS, (40, 1)), expected)
    finally:
        library.set_threads(1)


def test_instruction_sets_change_no_bit(packed):
    """Of 30 and of 80 tokens: LongRoPE has other factors from 33 on."""
    texts = IDS[:30], IDS
    expected = [NativeRing(packed[2]).logits(text, (29, 1)) for text in texts]
    tried = []
    try:
        for name in ("scalar", "avx2", "avx512vnni", "neon", "dotprod"):
            try:
                library.use_target(name)
            except ValueError:
                continue
            tried.append(name)
            for text, right in zip(texts, expected, strict=True):
                assert np.array_equal(NativeRing(packed[2]).logits(text, (25, 1, 13)), right), name
    finally:
        library.use_target(None)
    assert "scalar" in tried


def test_feeding_a_position_again_changes_nothing(packed):
    ring, undisturbed = NativeRing(packed[2]), NativeRing(packed[2])
    first = ring.logits(IDS[:30], (1,))
    again = ring.step(IDS[10:20], 10, 30, 10)
    assert np.array_equal(again, first[10:20])
    undisturbed.logits(IDS[:30], (30,))
    assert np.array_equal(ring.step([7], 30, 31), undisturbed.step([7], 30, 31))


def test_what_another_sequence_left_in_a_slot_does_not_matter(packed):
    used, fresh = NativeRing(packed[2]), NativeRing(packed[2])
    used.logits(IDS[::-1], (80,))
    assert np.array_equal(used.logits(IDS[:50], (17,)), fresh.logits(IDS[:50], (50,)))


def test_a_prompt_longer_than_a_call_takes_is_cut_without_a_trace(tmp_path):
    model = random_model(hf.LlamaConfig(**{**_BASE, "max_position_embeddings": 2048}))
    sections = load(make_split(model, tmp_path, "bf16"), tmp_path, (0, 2, 5))
    ids = np.random.default_rng(1).integers(3, 500, 1200).tolist()
    whole = NativeRing(sections, 1200).step(ids, 0, 1200, 600)
    chunked = NativeRing(sections, 1200).logits(ids, (500, 128))
    assert np.array_equal(whole, chunked[-600:])


def test_trace_gives_every_layers_output(tmp_path):
    model, sections = sections_of("llama", tmp_path, cuts=(0, 2, 5))
    x = np.array(IDS)

    def trace(section, x, pieces):
        slot = section.new_slot(80, "float32")
        return np.concatenate([section.trace(x[a:b], a, slot, len(x)) for a, b in pairwise(pieces)], axis=1)

    first = trace(sections[0], x, (0, 50, 80))
    second = trace(sections[1], first[-1], (0, 40, *range(41, 81)))
    got = np.concatenate([first, second])
    with torch.inference_mode():
        expected = model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
    for i in range(4):  # transformers gives the last one after the final norm only
        assert difference(got[i], expected[i + 1][0].numpy()) < 2e-5
    whole = sections[0].forward(x, 0, sections[0].new_slot(80, "float32"), 80, 0)
    assert np.array_equal(whole, first[-1])
    again = trace(sections[1], np.asfortranarray(first[-1]), (0, 80))
    assert np.array_equal(again, second)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "phi3_longrope"])
def test_embeddings_are_the_last_hidden_states_of_transformers(family, tmp_path):
    model, (first, last) = sections_of(family, tmp_path, cuts=(0, 2, 5))
    with torch.inference_mode():
        expected = model.base_model(torch.tensor([IDS])).last_hidden_state[0].numpy()
    x = first.forward(np.array(IDS), 0, first.new_slot(80, "float32"), 80, 0)
    slot = last.new_slot(80, "float32")
    got = np.concatenate([last.embed(x[a:b], a, slot, 80) for a, b in pairwise((0, 30, 31, 80))])
    assert difference(got, expected) < 2e-5 and slot.filled == 80
    assert np.array_equal(last.embed(x, 0, last.new_slot(80, "float32"), 80), got)
    with pytest.raises(ModelError, match="section 0-2 isn't the last one, which embeddings come from"):
        first.embed(np.array(IDS), 0, first.new_slot(80), 80)


def test_half_precision_kv_takes_half_the_memory():
    from edgellm.model.families.find import find_spec
    from edgellm.model.native.slot import NativeSlot

    spec, _ = find_spec(FAMILIES["llama"]().to_dict())
    assert NativeSlot(spec.layers[:2], 96, "float16").ram_bytes == 2 * 2 * 2 * 96 * 16 * 2
    assert NativeSlot(spec.layers[:2], 96, "float32").ram_bytes == 2 * 2 * 2 * 96 * 16 * 4


def test_rotary_frequencies_are_the_same_bits_on_every_processor():
    """Whatever float32 powers NumPy has there: these were computed on x86-64 and on aarch64."""
    (found,) = rotary_of({"rope_theta": 100000.0}, 64, 8192, partial=False).frequencies
    exact = [1 / np.float32(100000.0 ** float(np.float32(i / 64))) for i in range(0, 64, 2)]
    assert found.tolist() == exact
    words = {4: "23d4723e", 7: "5609a53d", 10: "d254e03c", 31: "6d6b7037"}
    assert {i: found[i].tobytes().hex() for i in words} == words
