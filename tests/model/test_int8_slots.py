"""Keys and values in 8 bits: what is stored, how far results are from those in float32, and the same bits however."""

import numpy as np
import pytest

from edgellm.agent.load import load_section
from edgellm.errors import ModelError
from edgellm.kernels import library
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split
from tests.model.native_sections import NativeRing, difference, load, step

IDS = np.random.default_rng(7).integers(3, 500, 150).tolist()
FAMILIES = ["llama", "gpt2", "qwen3", "mistral_window", "gemma3"]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    """Manifest and folder of a model."""
    folder = tmp_path_factory.mktemp(request.param)
    return make_split(random_model(CONFIGS[request.param]()), folder), folder


@pytest.fixture(scope="module")
def whole(made):
    """Logits after every token, of one token at a time."""
    return NativeRing(load(*made, (0, 5)), 160, "int8").logits(IDS, (1,))


def test_logits_are_near_those_of_keys_and_values_in_float32(made, whole):
    exact = NativeRing(load(*made, (0, 5)), 160, "float32").logits(IDS, (150,))
    assert 1e-5 < difference(whole, exact, np.mean) < 0.05 and difference(whole, exact) < 0.2


@pytest.mark.parametrize("chunks", [(150,), (64,), (7, 100, 1)])
def test_any_chunks_and_cuts_give_the_same_bits(made, whole, chunks):
    for cuts in ((0, 5), (0, 1, 4, 5)):
        assert np.array_equal(NativeRing(load(*made, cuts), 160, "int8").logits(IDS, chunks), whole)


def test_batches_give_the_same_bits(made, whole):
    (section,) = load(*made, (0, 5))
    ends = (3, 64, 130, 148)
    slots = [section.new_slot(160, "int8") for _ in ends]
    for end, slot in zip(ends, slots, strict=True):
        section.forward(np.array(IDS[:end]), 0, slot, end, 0)
    steps = [step(np.array(IDS[end : end + 2]), end, slot, end + 2, 2) for end, slot in zip(ends, slots, strict=True)]
    for end, result in zip(ends, section.forward_many(steps), strict=True):
        assert np.array_equal(result, whole[end : end + 2])


def test_instruction_sets_and_threads_change_no_bit(made, whole):
    (section,) = load(*made, (0, 5))
    tried = []
    try:
        for name in ("scalar", "avx2", "avx512vnni", "neon", "dotprod"):
            try:
                library.use_target(name)
            except ValueError:
                continue
            tried.append(name)
            library.set_threads(1 + len(tried) % 3)
            assert np.array_equal(NativeRing([section], 160, "int8").logits(IDS, (40, 1, 90)), whole), name
    finally:
        library.use_target(None)
        library.set_threads(1)
    assert "scalar" in tried


def heads_of(part, heads, dim, kv_dtype):
    """Keys and values [heads, tokens, dim] of an exported page of 16 tokens, as float32."""
    if kv_dtype == "float32":
        keys, values = np.split(part.view(np.float32), 2)
        return keys.reshape(heads, dim, 16).transpose(0, 2, 1), values.reshape(heads, 16, dim)
    keys, values = np.split(part, 2)
    found = []
    for each, is_key in ((keys, True), (values, False)):
        q, scales = each[: heads * 16 * dim].view(np.int8), each[heads * 16 * dim :].view(np.float32)
        q = q.reshape(heads, dim, 16).transpose(0, 2, 1) if is_key else q.reshape(heads, 16, dim)
        found.append((q, scales.reshape(heads, 16)))
    return found


def test_what_is_stored_is_what_the_rule_says(made):
    manifest, folder = made
    section = load_section(manifest, folder, 0, 1)  # what goes into its keys and values doesn't depend on the slot
    mixer = section.spec.layers[0].mixer
    exact, rounded = (section.new_slot(64, kv_dtype) for kv_dtype in ("float32", "int8"))
    for slot in (exact, rounded):
        section.forward(np.array(IDS[:16]), 0, slot, 16, 0)
    expected = heads_of(exact.export(0, 16)[0], mixer.kv_heads, mixer.head_dim, "float32")
    stored = heads_of(rounded.export(0, 16)[0], mixer.kv_heads, mixer.head_dim, "int8")
    for x, (q, scale) in zip(expected, stored, strict=True):
        largest = np.abs(x).max(axis=2)
        assert np.array_equal(scale, largest / np.float32(127)) and largest.all()
        assert np.array_equal(q, np.rint(x * (np.float32(127) / largest)[..., None]))
        assert np.abs(q).max(axis=2).min() == 127


def test_pages_are_restored_to_the_bit_in_slots_of_another_length(made, whole):
    (section,) = load(*made, (0, 5))
    first, second = section.new_slot(160, "int8"), section.new_slot(150, "int8")
    section.forward(np.array(IDS[:130]), 0, first, 130, 0)
    for start in (0, 64):
        second.restore(start, start + 64, first.export(start, start + 64))
    assert np.array_equal(section.forward(np.array(IDS[128:]), 128, second, 150, 1)[0], whole[-1])


def test_a_slot_takes_little_more_than_half(made):
    (section,) = load(*made, (0, 5))
    for context in (16, 100, 160):
        slots = {kv_dtype: section.new_slot(context, kv_dtype) for kv_dtype in ("int8", "float16")}
        for kv_dtype, slot in slots.items():
            assert slot.ram_bytes == sum(layer.slot_bytes(context, kv_dtype) for layer in section.spec.layers)
            section.forward(np.array(IDS[:1]), 0, slot, 1, 0)  # the library counts the same
        dim = section.spec.layers[0].mixer.head_dim
        assert slots["int8"].ram_bytes / slots["float16"].ram_bytes == pytest.approx((dim + 4) / (2 * dim))


def test_generic_sections_refuse(made):
    section = load_section(*made, 0, 1, path="generic")
    with pytest.raises(ModelError, match="keys and values in int8 need native sections.*plan with float32 or float16"):
        section.new_slot(16, "int8")
