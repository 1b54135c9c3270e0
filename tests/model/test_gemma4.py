"""Gemma 4 natively: what transformers computes, from a folder, in one process and however it is cut."""

import json

import numpy as np
import pytest
import torch
from gemma4_models import CONFIGS, forward, gemma4_config, gemma4_model
from native_sections import NativeRing, difference, load

from edgellm.check.one_process import rows_into, run_whole
from edgellm.check.reference import Reference
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.kernels import library
from edgellm.model.families.find import find_spec
from edgellm.plan.needs import Needs
from edgellm.plan.types import Settings
from tests.kernels.building import available

IDS = np.random.default_rng(3).integers(3, 500, 60).tolist()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model, folder of its split, manifest), by name and how it is quantized."""
    kept = {}

    def get(name, quantize="none"):
        if (name, quantize) not in kept:
            folder = tmp_path_factory.mktemp(name)
            model = gemma4_model(name)
            model.save_pretrained(folder / "model")
            manifest = split(open_source(str(folder / "model")), folder / "split", quantize)
            kept[name, quantize] = model, folder / "split", manifest
        return kept[name, quantize]

    return get


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_and_the_logits_are_those_of_transformers(name, made):
    model, folder, manifest = made(name)
    logits, expected = forward(model, IDS)
    (section,) = load(manifest, folder, (0, 6))
    got = section.trace(np.array(IDS), 0, section.new_slot(96, "float32"), len(IDS))
    for i in range(5):  # transformers gives the last one after the final norm only
        assert difference(got[i], expected[i + 1][0].numpy()) < 2e-5
    assert difference(NativeRing([section], kv_dtype="float32").logits(IDS, (60,)), logits) < 2e-5
    reference, layers = Reference(manifest, folder).run(IDS, 60)
    assert difference(reference.numpy(), logits) < 1e-6
    assert all(difference(a.numpy(), b[0].numpy()) < 1e-5 for a, b in zip(layers[:5], expected[1:], strict=False))


@pytest.mark.parametrize("name", CONFIGS)
def test_no_bit_depends_on_cuts_chunks_threads_or_instruction_sets(name, made):
    _, folder, manifest = made(name, "int8")
    expected = NativeRing(load(manifest, folder, (0, 6))).logits(IDS, (60,))
    rings = [(1, (0, 6), (1,)), (2, (0, 1, 2, 3, 4, 5, 6), (64, 16)), (3, (0, 2, 5, 6), (7, 30, 1))]
    try:
        for target, (threads, cuts, chunks) in zip(available(), rings * 4, strict=False):
            library.use_target(target)
            library.set_threads(threads)
            got = NativeRing(load(manifest, folder, cuts)).logits(IDS, chunks)
            assert np.array_equal(got, expected), (target, threads, cuts, chunks)
    finally:
        library.use_target(None)
        library.set_threads(1)


def test_a_section_traces_rows_of_the_one_before_as_it_computes_them(made):
    _, folder, manifest = made("per_layer")
    rows = rows_into(manifest, folder, IDS, "float32", {4})[4]
    whole, section = load(manifest, folder, (0, 6))[0], load(manifest, folder, (4, 6))[0]
    expected = whole.trace(np.array(IDS), 0, whole.new_slot(64, "float32"), 60)
    assert np.array_equal(section.trace(rows, 0, section.new_slot(64, "float32"), 60), expected[4:])
    logits = NativeRing([whole], kv_dtype="float32").logits(IDS, (60,))
    assert np.array_equal(run_whole(manifest, folder, IDS, 60, "float32"), logits)


@pytest.mark.parametrize("kv_dtype", ["float16", "int8"])
def test_plans_reserve_just_what_a_section_keeps_wherever_it_is_cut(kv_dtype, made):
    _, folder, manifest = made("per_layer")
    needs = Needs(manifest, Settings(slots=3, context=700, kv_dtype=kv_dtype))
    total = {}
    for start in range(6):
        for end in range(start + 1, 7):
            (section,) = load(manifest, folder, (start, end))
            assert needs.of(start, end).kv == 3 * section.new_slot(700, kv_dtype).ram_bytes
            total[start, end] = needs.total(start, end)
            assert total[start, end] == needs.of(start, end).total
    for (a, b), need in total.items():  # the planner's search rests on that
        assert all(need >= total[c, d] for c in range(a, b) for d in range(c + 1, b + 1))


def test_pages_of_a_section_restore_it_and_are_not_those_of_another_cut(made):
    _, folder, manifest = made("per_layer")
    first, last = load(manifest, folder, (0, 4, 6))
    ring = NativeRing([first, last])
    expected = ring.logits(IDS, (48, 12))
    slots = [first.new_slot(96), last.new_slot(96)]
    for slot, before in zip(slots, ring.slots, strict=True):
        slot.restore(0, 48, before.export(0, 48))
    ring.slots = slots
    assert np.array_equal(ring.step(IDS[48:], 48, 60, 12), expected[48:])
    layouts = {section.page_layout for section in (*load(manifest, folder, (0, 5, 6)), first, last)}
    assert len(layouts) == 3 and load(manifest, folder, (0, 6))[0].page_layout in layouts


def test_a_window_that_others_see_keeps_what_a_long_step_needs(made):
    _, folder, manifest = made("per_layer")
    ids = np.random.default_rng(5).integers(3, 500, 700).tolist()
    sections = load(manifest, folder, (0, 4, 6))
    expected = NativeRing(sections, 1024).logits(ids, (1, 63, 64))
    assert manifest.kv_window_tokens == (9, 0, 9 + 448, 0, 0, 0)  # 64 more are in every ring
    assert np.array_equal(NativeRing(sections, 1024).logits(ids, (700,)), expected)
    assert np.array_equal(NativeRing(load(manifest, folder, (0, 6)), 1024).logits(ids, (512, 7)), expected)


@pytest.mark.parametrize(
    "name, changed, reason",
    [
        ("dense", dict(attention_k_eq_v=True), "attention_bias with attention_k_eq_v"),
        ("dense", dict(use_bidirectional_attention="all"), 'use_bidirectional_attention isn\'t "vision": it doesn\'t '
         "write text from left to right"),
        ("dense", dict(per_layer_config={"1": {"head_dim": 48}}), "layers of type full_attention "
         "have heads of 2 kinds"),
        ("dense", dict(per_layer_config={"1": {"sliding_window": 5}}), "per_layer_config has sliding_window of its own "
         "for layer 1"),
        ("dense", dict(num_kv_shared_layers=5), "num_kv_shared_layers is 5, so no layer of type full_attention "
         "has keys to share"),
        ("per_layer", dict(vocab_size_per_layer_input=500), "vocab_size_per_layer_input is 500, and vocab_size 512"),
        ("per_layer", dict(hidden_size_per_layer_input=24), "hidden_size_per_layer_input is 24, not a multiple of 16"),
        ("experts", dict(top_k_experts=9), "top_k_experts is 9, expected a whole number from 1 to 8"),
        ("dense", dict(rope_parameters={"full_attention": {}}), "rope_parameters has no set for sliding_attention"),
    ],
)  # fmt: skip
def test_what_no_kernel_computes_is_refused_in_words(name, changed, reason):
    config = {**json.loads(gemma4_config(name).to_json_string(use_diff=False)), **changed}
    assert find_spec(config) == (None, f"gemma4_text: {reason}")


def test_the_configs_of_google_say_sizes_by_other_names():
    ours = json.loads(gemma4_config("keys_are_values").to_json_string(use_diff=False))
    theirs = {**ours, "global_head_dim": 32, "num_global_key_value_heads": 1, "use_bidirectional_attention": "vision"}
    del theirs["per_layer_config"]
    wrapped = {"model_type": "gemma4", "text_config": theirs, "vision_config": {}}
    assert find_spec(theirs)[0].layers == find_spec(wrapped)[0].layers == find_spec(ours)[0].layers


def test_rows_that_end_in_no_token_id_are_refused(made):
    from edgellm.errors import ModelError

    _, folder, manifest = made("per_layer")
    (section,) = load(manifest, folder, (2, 6))
    for bad in (-1.0, 512.0, 0.5, np.nan):
        x = section.example()
        x[:, -1] = bad
        with pytest.raises(ModelError, match="rows end in what are no token ids of a vocabulary of 512"):
            section.forward(x, 0, section.new_slot(16), 1, 1)
    assert torch.isfinite(torch.from_numpy(section.forward(section.example(), 0, section.new_slot(16), 1, 1))).all()
