"""Layers with a window keep only that: far beyond it, results are transformers' and the same bits however computed."""

import functools

import numpy as np
import pytest

from edgellm.agent.load import load_section
from edgellm.errors import ModelError
from edgellm.plan import Settings, section_need
from edgellm.plan.make import manifest_sha256
from edgellm.shards.manifest import Manifest
from edgellm.shards.slot_memory import kept_positions, kv_bytes
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split
from tests.model.native_sections import NativeRing, difference, load, reference_logits, step

TOKENS, CONTEXT = 250, 256
IDS = np.random.default_rng(7).integers(3, 500, TOKENS).tolist()
KEPT = 128  # of a window of 8: a multiple of 64 with room for 64 more
FAMILIES = ["mistral_window", "qwen2_window", "gemma2", "gemma3"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return random_model(CONFIGS[family]())


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """Of a model: cuts → its sections."""
    folder = tmp_path_factory.mktemp("split")
    manifest = make_split(model, folder)
    return functools.lru_cache(lambda *cuts: load(manifest, folder, cuts))


@pytest.fixture(scope="module")
def whole(made):
    """Logits after every token, of one token at a time."""
    return NativeRing(made(0, 5), CONTEXT).logits(IDS, (1,))


def test_logits_are_those_of_transformers_far_beyond_the_window(made, model):
    ring = NativeRing(made(0, 5), CONTEXT, "float32")
    assert difference(ring.logits(IDS, (TOKENS,)), reference_logits(model, IDS)) < 2e-5
    assert ring.slots[0].earliest == TOKENS - KEPT + 8 - 1


@pytest.mark.parametrize("chunks", [(250,), (64,), (65,), (7, 100, 1), (129, 121)])
def test_any_chunks_and_cuts_give_the_same_bits(made, whole, chunks):
    for cuts in ((0, 5), (0, 1, 4, 5)):
        assert np.array_equal(NativeRing(made(*cuts), CONTEXT).logits(IDS, chunks), whole)


def test_batches_give_the_same_bits(made, whole):
    (section,) = made(0, 5)
    ends = (3, 130, 200, 249)  # in a slot of each
    slots = [section.new_slot(CONTEXT) for _ in ends]
    for end, slot in zip(ends, slots, strict=True):
        section.forward(np.array(IDS[:end]), 0, slot, end, 0)
    for count in (1, 5):
        steps = [step(np.array(IDS[end : end + count]), end, slot, end + count, 1)
                 for end, slot in zip(ends, slots, strict=True) if end + count <= TOKENS]  # fmt: skip
        for one, result in zip(steps, section.forward_many(steps), strict=True):
            assert np.array_equal(result[0], whole[one.position + len(one.x) - 1])


def test_several_steps_of_one_slot_may_come_in_one_call(made, whole):
    (section,) = made(0, 5)
    slot = section.new_slot(CONTEXT)
    parts = ((0, 200), (200, 201), (201, 250), (0, 10), (10, 20))  # begins anew in between
    results = section.forward_many([step(np.array(IDS[a:b]), a, slot, b, 1) for a, b in parts])
    assert all(np.array_equal(result[0], whole[b - 1]) for result, (_, b) in zip(results, parts, strict=True))
    assert slot.filled == 20 and slot.earliest == 0


@pytest.mark.parametrize("filled", [128, 129, 200])
def test_what_was_drafted_can_be_taken_back_as_far_as_a_slot_says(made, whole, filled):
    (section,) = made(0, 5)
    slot = section.new_slot(CONTEXT)
    section.forward(np.array(IDS[: filled - 16]), 0, slot, filled, 0)
    section.forward(np.array(IDS[50:66]), filled - 16, slot, filled, 0)  # other tokens
    assert slot.filled == filled and slot.earliest == {128: 0, 129: 8, 200: 79}[filled]
    for position in (filled - 16, max(slot.earliest, 1)):
        result = section.forward(np.array(IDS[position : filled + 30]), position, slot, filled + 30, 1)
        assert np.array_equal(result[0], whole[filled + 29])
        slot, before = section.new_slot(CONTEXT), slot
        section.forward(np.array(IDS[:filled]), 0, slot, filled, 0)
        assert before.filled == filled + 30


def test_before_that_a_step_is_refused_and_leaves_the_slot_as_it_was(made, whole):
    (section,) = made(0, 5)
    slot = section.new_slot(CONTEXT)
    section.forward(np.array(IDS[:200]), 0, slot, 200, 0)
    for position in (1, slot.earliest - 1):
        with pytest.raises(ModelError, match=f"position {position} on see more than what a window keeps of 200; it "):
            section.forward(np.array(IDS[position:240]), position, slot, 240, 1)
    assert np.array_equal(section.forward(np.array(IDS[200:]), 200, slot, TOKENS, 1)[0], whole[-1])


def test_a_step_at_0_begins_anew(made, whole):
    (section,) = made(0, 5)
    slot = section.new_slot(CONTEXT)
    section.forward(np.array(IDS[:240]), 0, slot, 240, 0)
    section.forward(np.array(IDS[:90]), 0, slot, 90, 0)
    assert slot.filled == 90 and slot.earliest == 0
    with pytest.raises(ModelError, match="can't follow the 90"):
        section.forward(np.array(IDS[100:110]), 100, slot, 110, 0)
    assert np.array_equal(section.forward(np.array(IDS[90:]), 90, slot, TOKENS, 1)[0], whole[-1])


def test_traces_and_embeddings_go_beyond_the_window_too(made):
    (section,) = made(0, 5)
    expected = section.trace(np.array(IDS[:90]), 0, section.new_slot(128), 90)
    slot = section.new_slot(CONTEXT)
    for start, end in ((0, 200), (200, TOKENS)):
        traced = section.trace(np.array(IDS[start:end]), start, slot, TOKENS)
    slot = section.new_slot(CONTEXT)
    assert np.array_equal(section.trace(np.array(IDS), 0, slot, TOKENS)[:, 200:], traced)
    assert slot.filled == TOKENS and slot.earliest > 0
    assert np.array_equal(section.trace(np.array(IDS[:90]), 0, slot, 90), expected), "anew"
    embedded = section.embed(np.array(IDS), 0, section.new_slot(CONTEXT), TOKENS)
    slot = section.new_slot(CONTEXT)
    parts = [section.embed(np.array(IDS[a:b]), a, slot, TOKENS) for a, b in ((0, 190), (190, TOKENS))]
    assert np.array_equal(np.concatenate(parts), embedded)


def test_pages_have_what_a_window_still_holds_and_another_slot_goes_on_from_them(made, whole):
    (section,) = made(0, 5)
    windowed = [memory.kind == "window" for memory in section.memories]
    assert any(windowed) and not section.reuses_any
    assert {memory.reach for memory in section.memories if memory.kind == "window"} == {8}
    first = section.new_slot(CONTEXT)
    section.forward(np.array(IDS[:200]), 0, first, 200, 0)
    pages = {start: first.export(start, start + 64) for start in (0, 64, 128)}
    for start, parts in pages.items():
        assert [part is None for part in parts] == [w and start < 200 - KEPT for w in windowed]
    for slot in (section.new_slot(240), section.new_slot(CONTEXT)):
        for start, parts in pages.items():
            given = zip(windowed, parts, strict=True)
            slot.restore(start, start + 64, [None if w and start < 128 else part for w, part in given])
        assert slot.filled == 192 and slot.earliest == 128 + 8 - 1
        with pytest.raises(ModelError, match="keeps of 192"):
            section.forward(np.array(IDS[130:192]), 130, slot, 192, 0)
        result = section.forward(np.array(IDS[192:240]), 192, slot, 240, 1)
        assert np.array_equal(result[0], whole[239])
        for mine, theirs in zip(slot.export(192, 208), _exported(section, 208), strict=True):
            assert np.array_equal(mine, theirs)
        slot.restore(0, 64, pages[0])  # anew
        assert slot.filled == 64 and slot.earliest > 64, "of the windows nothing is there"
        with pytest.raises(ModelError, match="keeps of 64"):
            section.forward(np.array(IDS[64:70]), 64, slot, 70, 0)
        assert np.array_equal(section.forward(np.array(IDS[:70]), 0, slot, 70, 1)[0], whole[69])


def _exported(section, end):
    slot = section.new_slot(CONTEXT)
    section.forward(np.array(IDS[:end]), 0, slot, end, 0)
    return slot.export(end - 16, end)


def test_a_page_that_goes_round_the_ring_is_put_together(made, whole):
    (section,) = made(0, 5)
    first = section.new_slot(CONTEXT)
    section.forward(np.array(IDS[:180]), 0, first, 180, 0)
    second = section.new_slot(CONTEXT)
    for start, end in ((0, 96), (96, 176)):  # 128 lies in its middle
        parts = first.export(start, end)
        second.restore(start, end, parts)
    assert np.array_equal(section.forward(np.array(IDS[176:]), 176, second, TOKENS, 1)[0], whole[-1])


# Sizes


@pytest.mark.parametrize("window, context, kept", [
    (0, 100, 112), (0, 16, 16), (8, 8, 16), (8, 112, 112), (8, 113, 128), (8, 129, 128), (8, 32768, 128),
    (64, 4096, 128), (65, 4096, 192), (512, 32768, 576), (4096, 4000, 4000), (1 << 40, 100, 112),
])  # fmt: skip
def test_a_ring_has_the_window_and_64_more_in_multiples_of_64(window, context, kept):
    assert kept_positions(window, context) == kept
    assert kv_bytes(10, 3, window, context, "float16") == 20 * kept
    assert kv_bytes(10, 3, window, context, "int8") == (10 + 3 * 4) * kept


@pytest.mark.parametrize("kv_dtype", ["float16", "float32"])
def test_the_library_counts_a_slots_bytes_as_layers_do_and_refuses_any_other(made, kv_dtype):
    (section,) = made(0, 5)
    for context in (1, 16, 100, 113, 128, 129, 144, 256):
        slot = section.new_slot(context, kv_dtype)
        said = sum(layer.slot_bytes(context, kv_dtype) for layer in section.spec.layers)
        assert slot.ram_bytes == said
        section.forward(np.array(IDS[:1]), 0, slot, 1, 0)
        for wrong in (-64, 64, 16):
            slot.ram_bytes = said + wrong
            with pytest.raises(ModelError, match="libedgellm refused to run a step"):
                section.forward(np.array(IDS[:1]), 0, slot, 1, 0)


def test_plans_count_what_native_and_generic_slots_hold(tmp_path):
    make_split(random_model(CONFIGS["gemma3"]()), tmp_path)
    manifest, settings = Manifest.read(tmp_path), Settings(CONTEXT)
    held = {}
    for path, planned in (("auto", manifest), ("generic", manifest.as_generic())):
        held[path] = load_section(manifest, tmp_path, 0, 5, path=path).new_slot(CONTEXT, "float32").ram_bytes
        assert section_need(planned, settings, 0, 5).kv == held[path]
    assert held["generic"] > 1.5 * held["auto"], "a generic slot keeps all positions of a window, too"
    assert manifest_sha256(manifest.as_generic()) == manifest.sha256, "it's the same model"
