"""Models with recurrent layers compute what transformers computes, and a token's result is the same bits however it is
computed: in any chunk or batch, cut anywhere, again, behind drafts taken back, by any number of threads."""

import numpy as np
import pytest
import torch

from edgellm.errors import ModelError
from edgellm.kernels import library
from edgellm.kernels.abi import constants
from edgellm.model.families.find import find_spec
from edgellm.model.protocols import CHECKPOINT_TOKENS
from edgellm.plan.needs import Needs
from edgellm.plan.types import Settings
from tests.model.native_sections import NativeRing, difference, load, reference_logits, step
from tests.model.recurrent_models import CONFIGS, recurrent_model, split

IDS = np.random.default_rng(3).integers(3, 500, 80).tolist()
LONG = np.random.default_rng(4).integers(3, 500, 300)
LOG_TOKENS = constants.LOG_TOKENS


def layer_outputs(model, ids) -> np.ndarray:
    """transformers' hidden states behind each layer, [layers, tokens, hidden]."""
    found = []
    layers = model.model.layers
    hooks = [layer.register_forward_hook(lambda m, a, out: found.append(out[0] if isinstance(out, tuple) else out))
             for layer in layers]  # fmt: skip
    reference_logits(model, ids)
    for hook in hooks:
        hook.remove()
    return torch.cat(found).numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_each_layer_are_those_of_transformers(name, tmp_path):
    model = recurrent_model(name)
    (section,) = load(split(model, tmp_path), tmp_path, (0, model.config.num_hidden_layers))
    expected = reference_logits(model, IDS)
    assert difference(NativeRing([section], kv_dtype="float32").logits(IDS, (80,)), expected) < 5e-5
    assert difference(NativeRing([section]).logits(IDS, (80,)), expected) < 2e-2
    traced = section.trace(np.array(IDS), 0, section.new_slot(96, "float32"), 80)
    for got, layer in zip(traced, layer_outputs(model, IDS), strict=True):
        assert difference(got, layer) < 2e-5


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_next", "lfm2_odd", "granite4_odd", "nemotron_h"])
def packed(request, tmp_path_factory):
    """Manifest, folder and one section of a model in int8."""
    folder = tmp_path_factory.mktemp(request.param)
    model = recurrent_model(request.param)
    manifest = split(model, folder, "int8")
    return manifest, folder, load(manifest, folder, (0, manifest.num_layers))


@pytest.fixture(scope="module")
def expected(packed):
    return NativeRing(packed[2]).logits(IDS, (80,))


def test_sections_in_a_chain_give_the_bits_of_one(packed, expected):
    manifest, folder, _ = packed
    for cuts in ((0, 1, manifest.num_layers), (0, 1, 2, manifest.num_layers)):
        assert np.array_equal(NativeRing(load(manifest, folder, cuts)).logits(IDS, (80,)), expected)


@pytest.mark.parametrize("chunks", [(1,), (7,), (2, 1, 13), (64, 16), (33, 1), (31, 32)])
def test_any_chunking_gives_the_same_bits(packed, expected, chunks):
    assert np.array_equal(NativeRing(packed[2]).logits(IDS, chunks), expected)


def test_keys_and_values_in_8_bits_lie_beside_states(packed, expected):
    found = NativeRing(packed[2], kv_dtype="int8").logits(IDS, (80,))
    assert np.array_equal(NativeRing(packed[2], kv_dtype="int8").logits(IDS, (7, 1)), found)
    assert difference(found, expected, np.median) < 0.05


def test_threads_and_instruction_sets_change_no_bit(packed, expected):
    try:
        for name in ("avx512vnni", "avx2", "dotprod", "neon", "scalar"):
            for threads in (1, 3):
                try:
                    library.use_target(name)
                except ValueError:
                    continue
                library.set_threads(threads)
                assert np.array_equal(NativeRing(packed[2]).logits(IDS, (40, 1)), expected), (name, threads)
    finally:
        library.use_target(None)
        library.set_threads(1)


def test_a_batch_gives_the_bits_of_its_steps_alone(packed):
    (section,) = packed[2]
    texts = [np.random.default_rng(n).integers(3, 500, n) for n in (5, 70, 33, 2, 16, 64)]
    alone = [NativeRing([section]).logits(text.tolist(), (96,))[-1:] for text in texts]
    slots = [section.new_slot(96) for _ in texts]
    for text, slot in zip(texts, slots, strict=True):
        section.forward(text[:-1], 0, slot, len(text), 0)
    steps = [step(t[-1:], len(t) - 1, slot, len(t), 1) for t, slot in zip(texts, slots, strict=True)]
    assert np.array_equal(np.concatenate(section.forward_many(steps)), np.concatenate(alone))


def test_two_steps_of_one_sequence_in_a_batch_come_one_after_the_other(packed, expected):
    (section,) = packed[2]
    ids, slot = np.array(IDS), section.new_slot(96)
    got = section.forward_many([step(ids[:1], 0, slot, 80, 1), step(ids[1:2], 1, slot, 80, 1),
                                step(ids[2:], 2, slot, 80, 78)])  # fmt: skip
    assert np.array_equal(np.concatenate(got), expected)


@pytest.mark.parametrize("tokens", [1, 5, LOG_TOKENS, LOG_TOKENS + 1, 50])
def test_a_step_may_come_again(packed, expected, tokens):
    ring, at = NativeRing(packed[2]), 21
    ring.step(IDS[:at], 0, 80)
    for _ in range(3):
        ring.step(np.random.default_rng(1).integers(3, 500, tokens).tolist(), at, 80)
    assert np.array_equal(ring.step(IDS[at:], at, 80, 80 - at), expected[at:])


def test_drafts_that_are_taken_back_leave_no_trace(packed, expected):
    """From position 20 on, steps of a token and up to 31 wrong drafts, of which each is taken back."""
    ring, rng = NativeRing(packed[2]), np.random.default_rng(4)
    ring.step(IDS[:20], 0, 80)
    for at in range(20, 48):
        drafts = rng.integers(3, 500, int(rng.integers(0, LOG_TOKENS))).tolist()
        kept = int(rng.integers(0, 2)) * min(2, len(drafts))  # some of them are right
        drafts[:kept] = IDS[at + 1 : at + 1 + kept]
        got = ring.step([IDS[at], *drafts], at, 80, 1 + len(drafts))
        assert np.array_equal(got[: 1 + kept], expected[at : at + 1 + kept])


def test_a_slot_says_where_a_step_may_begin(packed, expected):
    (section,) = packed[2]
    ids, slot = np.array(IDS), section.new_slot(96)
    assert slot.earliest == 0
    section.forward(ids[:40], 0, slot, 80, 0)
    assert (slot.filled, slot.earliest) == (40, 40)
    with pytest.raises(ModelError, match="from position 39 on can't follow a state that has taken in 40"):
        section.forward(ids[39:], 39, slot, 80, 0)
    section.forward(ids[40:60], 40, slot, 80, 0)
    assert (slot.filled, slot.earliest) == (60, 40)
    got = section.forward(ids[41:], 41, slot, 80, 39)  # a step that doesn't fit into the log
    assert np.array_equal(got, expected[41:]) and (slot.filled, slot.earliest) == (80, 80)
    with pytest.raises(ModelError, match="can't follow the 80"):
        section.forward(ids[:1], 81, slot, 80, 0)
    got = section.forward(ids[:10], 0, slot, 80, 10)  # a slot that begins anew remembers nothing
    assert np.array_equal(got, expected[:10]) and (slot.filled, slot.earliest) == (10, 0)


def test_pages_put_back_go_on_with_the_same_bits(packed, expected):
    (section,) = packed[2]
    ids, slot, other = np.array(IDS), section.new_slot(96), section.new_slot(80)
    section.forward(ids[:32], 0, slot, 80, 0)
    first = slot.export(0, 32)
    section.forward(ids[32:48], 32, slot, 80, 0)
    second = slot.export(32, 48)
    assert all(part is not None for part in (*first, *second))
    section.forward(ids[48:50], 48, slot, 80, 0)
    again = slot.export(32, 48)
    for layer, memory in enumerate(section.memories):
        gone = memory.kind == "state"  # neither where it is nor where its checkpoint is
        assert again[layer] is None if gone else np.array_equal(again[layer], second[layer])
    other.restore(0, 32, [None if memory.kind == "state" else part
                          for part, memory in zip(first, section.memories, strict=True)])  # fmt: skip
    other.restore(32, 48, second)
    assert (other.filled, other.earliest) == (48, 48)
    assert np.array_equal(section.forward(ids[48:], 48, other, 80, 32), expected[48:])
    with pytest.raises(ModelError, match="parts of"):
        other.restore(32, 48, [part[:1] for part in second])


def test_a_state_that_a_step_changes_meanwhile_is_no_page(packed, monkeypatch):
    """Another thread copies: whatever the step has done by then, the copy may be of both."""
    (section,) = packed[2]
    ids, slot = np.array(IDS), section.new_slot(96)
    section.forward(ids[:48], 0, slot, 80, 0)
    states = [i for i, memory in enumerate(section.memories) if memory.kind == "state"]
    copied = []
    run = section._native.run
    monkeypatch.setattr(section._native, "run", lambda *step: copied.append(slot.export(0, 48)) or run(*step))
    section.forward(ids[48:49], 48, slot, 80, 0)
    assert copied and all(copied[0][i] is None for i in states)
    assert all(slot.export(0, 48)[i] is not None for i in states)  # its checkpoint


def test_a_page_of_the_checkpoint_is_still_there_behind_it(packed, expected):
    (section,) = packed[2]
    ids, slot, other = np.array(IDS), section.new_slot(96), section.new_slot(80)
    section.forward(ids[:48], 0, slot, 80, 0)
    for at in range(48, 60):
        section.forward(ids[at : at + 1], at, slot, 80, 0)
    other.restore(0, 48, slot.export(0, 48))
    assert np.array_equal(section.forward(ids[48:], 48, other, 80, 32), expected[48:])


def test_a_prompts_state_at_a_multiple_of_256_is_there_for_pages(packed):
    (section,) = packed[2]
    states = [i for i, memory in enumerate(section.memories) if memory.kind == "state"]
    whole = section.forward(LONG, 0, section.new_slot(320), 300, 1)
    slot, other = section.new_slot(320), section.new_slot(320)
    for start, end in ((0, 250), (250, CHECKPOINT_TOKENS), (CHECKPOINT_TOKENS, 299)):
        section.forward(LONG[start:end], start, slot, 300, 0)
    other.restore(0, CHECKPOINT_TOKENS, slot.export(0, CHECKPOINT_TOKENS))
    assert (other.filled, other.earliest) == (CHECKPOINT_TOKENS,) * 2
    assert np.array_equal(section.forward(LONG[CHECKPOINT_TOKENS:], CHECKPOINT_TOKENS, other, 300, 1), whole)
    assert np.array_equal(section.forward(LONG[299:], 299, slot, 300, 1), whole)
    assert (slot.earliest, slot.checkpoint) == (299, CHECKPOINT_TOKENS)
    assert np.array_equal(section.forward(LONG[CHECKPOINT_TOKENS:], CHECKPOINT_TOKENS, slot, 300, 1), whole)
    section.forward(LONG[:40], 0, slot, 300, 0)  # another text: what was kept isn't its state
    parts = slot.export(0, CHECKPOINT_TOKENS)
    assert states and all(parts[i] is None for i in states)


def test_what_a_slot_needs_is_told_before_it_is_made(packed):
    manifest, _, (section,) = packed
    need = Needs(manifest, Settings(context=90, slots=3)).of(0, manifest.num_layers)
    assert need.slots == 3 * section.new_slot(90, "float32").ram_bytes and need.state == 3 * sum(manifest.state_bytes)
    for context in (16, 90):
        slot = section.new_slot(context, "float32")
        layers = section.spec.layers
        assert slot.ram_bytes == sum(layer.slot_bytes(context, "float32") for layer in layers)
        assert slot.ram_bytes - sum(layer.state_bytes for layer in layers) == sum(
            4 * -(-context // 16) * 16 * layer.kv_elements_per_token for layer in layers
        )


def test_a_header_that_no_step_wrote_is_refused(packed):
    (section,) = packed[2]
    slot = section.new_slot(96)
    section.forward(np.array(IDS[:8]), 0, slot, 80, 0)
    header = next(iter(slot.states._headers.values()))
    for bad in ((1 << 63, 0, 0), (8, 9, 0), (8, 0, LOG_TOKENS + 1), (8, 6, 3), (97, 0, 0), (7, 0, 7)):
        header[...] = bad
        slot.filled = 8
        with pytest.raises(ModelError):
            section.forward(np.array(IDS[8:9]), 8, slot, 80, 0)


QWEN = dict(model_type="qwen3_5_text", hidden_size=64, intermediate_size=128, num_hidden_layers=4, vocab_size=512)


@pytest.mark.parametrize("config, reason", [
    ({**QWEN, "linear_num_value_heads": 17}, "17 heads of values over 16 of keys"),
    ({**QWEN, "linear_key_head_dim": 24}, "a side of a head's state is 24, not a multiple of 16"),
    ({**QWEN, "linear_value_head_dim": 1040}, "a head's state of 128 by 1040, at most 1024 each"),
    ({**QWEN, "linear_conv_kernel_dim": 9}, "a convolution over 9 tokens, at most 8"),
    ({**QWEN, "layer_types": ["full_attention"] * 3}, "layer_types is not a list with an entry for each of the 4"),
    ({**QWEN, "layer_types": ["sliding_attention"] * 4}, "a layer is of type 'sliding_attention'"),
    ({"model_type": "lfm2", "hidden_size": 64, "full_attn_idxs": "all"}, "full_attn_idxs is not a list"),
    ({"model_type": "granitemoehybrid", "num_local_experts": 0, "mamba_n_heads": 7}, "isn't 8192 together"),
    ({"model_type": "granitemoehybrid", "num_local_experts": 0, "time_step_limit": [1, 0]}, "time_step_limit is [1"),
    ({"model_type": "granitemoehybrid", "num_local_experts": 0, "logits_scaling": 0}, "logits_scaling is 0"),
    ({"model_type": "nemotron_h", "moe_latent_size": 64}, "moe_latent_size"),
    ({"model_type": "nemotron_h", "n_group": 3}, "8 experts in 3 groups"),
    ({"model_type": "nemotron_h", "hybrid_override_pattern": "MX"}, "hybrid_override_pattern is 'MX'"),
    ({"model_type": "nemotron_h", "hybrid_override_pattern": ""}, "0 layers"),
    ({"model_type": "nemotron_h", "hybrid_override_pattern": "-", "mlp_hidden_act": "relu"}, "mlp_hidden_act is"),
    ({"model_type": "nemotron_h", "hybrid_override_pattern": "M", "n_groups": 3}, "128 heads in 3 groups"),
])  # fmt: skip
def test_what_recurrent_families_do_not_know_they_refuse_with_the_reason(config, reason):
    spec, said = find_spec(config)
    assert spec is None and reason in said


def test_a_multimodal_config_has_the_text_models_layers():
    text, _ = find_spec(QWEN)
    whole, reason = find_spec({"model_type": "qwen3_5", "tie_word_embeddings": True, "text_config": {**QWEN}})
    assert whole is not None, reason
    assert whole.layers == text.layers and whole.tied and not text.tied
