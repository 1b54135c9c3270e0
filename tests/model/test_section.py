"""Sections: idempotent steps, slots that don't disturb one another, mapped weights, files that aren't what they say."""

import dataclasses
import gc
import json
import os
import re
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from families import CONFIGS, random_model
from make_split import make_split, round_weights
from ring import Ring, load
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from edgellm.errors import ManifestError, ModelError
from edgellm.files import sha256_of
from edgellm.model.generic.section import GenericSection
from edgellm.model.generic.structure import trace

PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(model, manifest, folder) of a tiny llama, int8; the model's weights are what int8 makes of them."""
    folder = tmp_path_factory.mktemp("llama")
    model = random_model(CONFIGS["llama"]())
    round_weights(model, trace(model.config), "int8")
    return model, make_split(model, folder, "int8"), folder


@pytest.fixture(scope="module")
def sections(llama):
    return load(llama[1], llama[2], (0, 2, 5))


def resealed(manifest, folder, name):
    """`manifest` with shard `name` as it is now."""
    path = folder / name
    shards = tuple(
        dataclasses.replace(s, bytes=path.stat().st_size, sha256=sha256_of(path)) if s.name == name else s
        for s in manifest.shards
    )
    return dataclasses.replace(manifest, shards=shards)


def rewritten(manifest, folder, name, change):
    """Shard `name` with `change(tensors, encodings)` applied, and a manifest that knows of it."""
    from safetensors import safe_open

    with safe_open(folder / name, "pt") as f:
        metadata = f.metadata()
    tensors, encodings = load_file(folder / name), json.loads(metadata["encodings"])
    change(tensors, encodings)
    save_file(tensors, folder / name, {**metadata, "encodings": json.dumps(encodings)})
    return resealed(manifest, folder, name)


def test_feeding_a_position_again_changes_nothing(sections):
    ring, undisturbed = Ring(sections), Ring(sections)
    first = [ring.step([t], i, i + 1) for i, t in enumerate(PROMPT)]
    again = [ring.step([t], i, i + 1) for i, t in list(enumerate(PROMPT))[5:9]]
    for a, b in zip(first[5:9], again, strict=True):
        assert np.array_equal(a, b)
    after = ring.step([7], 20, 21)
    for i, t in enumerate(PROMPT):
        undisturbed.step([t], i, i + 1)
    assert np.array_equal(after, undisturbed.step([7], 20, 21))


def test_a_chunk_fed_again_overwrites_what_another_sequence_left(sections):
    used, fresh = Ring(sections), Ring(sections)
    used.generate([9, 8, 7] * 10, 8)
    used.ids, used.done = [], 0
    assert used.generate(PROMPT, 12) == fresh.generate(PROMPT, 12)


def test_two_interleaved_slots_do_not_disturb_one_another(sections):
    prompts = PROMPT, [300, 17, 5, 450]
    alone = [Ring(sections).generate(p, 10) for p in prompts]
    rings = [Ring(sections) for _ in prompts]
    out = [[ring.feed(p)] for ring, p in zip(rings, prompts, strict=True)]
    for _ in range(9):
        for ring, tokens in zip(rings, out, strict=True):
            tokens.append(ring.feed(tokens[-1:]))
    assert out == alone


def test_trace_gives_every_layers_output(llama, sections):
    model, x = llama[0], np.array(PROMPT)

    def trace(section, x):
        slot, pieces = section.new_slot(32), [0, 10, *range(11, 21)]
        return np.concatenate([section.trace(x[a:b], a, slot, 20) for a, b in pairwise(pieces)], axis=1)

    first = trace(sections[0], x)
    second = trace(sections[1], first[-1])
    assert first.shape == (2, 20, 64) and second.shape == (3, 20, 64)
    expected = model(torch.tensor([PROMPT]), output_hidden_states=True).hidden_states
    got = np.concatenate([first, second])
    for i in range(4):  # transformers gives the last one after the final norm only
        assert np.allclose(got[i], expected[i + 1][0].numpy(), rtol=1e-3, atol=1e-3)
    whole = sections[0].forward(x, 0, sections[0].new_slot(32), 20, 0)
    assert np.allclose(whole, first[-1], rtol=1e-4, atol=1e-4)  # which computes half of it token by token


def test_embeddings_are_the_last_hidden_states_of_transformers(llama, sections):
    x = sections[0].forward(np.array(PROMPT), 0, sections[0].new_slot(32), 20, 0)
    slot = sections[1].new_slot(32)
    got = np.concatenate([sections[1].embed(x[a:b], a, slot, 20) for a, b in pairwise((0, 10, 20))])
    with torch.inference_mode():
        expected = llama[0].base_model(torch.tensor([PROMPT])).last_hidden_state[0].numpy()
    assert np.allclose(got, expected, rtol=1e-3, atol=1e-3) and slot.filled == 20
    assert sections[1].forward(x[19:], 19, slot, 20, 1).shape == (1, sections[1].vocab_size)
    with pytest.raises(ModelError, match="section 0-2 isn't the last one, which embeddings come from"):
        sections[0].embed(np.array(PROMPT), 0, sections[0].new_slot(32), 20)


def test_half_precision_kv_takes_half_the_memory_and_says_much_the_same(sections):
    whole, half = Ring(sections), Ring(sections, kv_dtype="float16")
    assert half.slots[0].ram_bytes * 2 == whole.slots[0].ram_bytes == 2 * 2 * 2 * 96 * 16 * 4
    a, b = whole.step(PROMPT, 0, 20), half.step(PROMPT, 0, 20)
    assert not np.array_equal(a, b) and np.linalg.norm(a - b) < 0.01 * np.linalg.norm(a)


def test_only_the_last_section_gives_logits_and_only_if_asked(sections):
    ring = Ring(sections)
    assert ring.step(PROMPT, 0, 20, logits=0) is None
    assert ring.step([3], 20, 21).shape == (1, 512)
    assert [(s.start, s.end, s.is_first, s.is_last, s.path) for s in sections] == [
        (0, 2, True, False, "generic"),
        (2, 5, False, True, "generic"),
    ]


def test_a_section_without_ends_takes_and_gives_hidden_states(llama):
    section = GenericSection.load(llama[1], llama[2], 0, 5, without_ends=True)
    assert section.forward(np.ones((3, 64), np.float32), 0, section.new_slot(8), 3, 1).shape == (3, 64)
    assert section.ram_bytes < GenericSection.load(llama[1], llama[2], 0, 5).ram_bytes


@pytest.mark.parametrize("family", ["llama", "phi3_longrope", "gemma2", "mixtral", "gpt2"])
def test_memory_is_free_as_soon_as_a_section_and_its_slots_are_dropped(tmp_path, family):
    """Without waiting for the garbage collector: a board has no room for two sections."""
    manifest = make_split(random_model(CONFIGS[family]()), tmp_path, "f32")
    section = GenericSection.load(manifest, tmp_path, 1, 3)
    slot = section.new_slot(32)
    section.forward(np.zeros((4, manifest.hidden_size), np.float32), 0, slot, 4, 0)
    keys = [layer.keys for layer in slot.layers if hasattr(layer, "keys") and layer.keys is not None]
    held = [weakref.ref(x) for x in (section, slot, section.model, *section.model.parameters(), *keys)]
    assert len(keys) == 2 and len(held) > 8
    gc.collect()
    gc.disable()
    try:
        del section, slot, keys
        assert [ref() for ref in held if ref() is not None] == []
    finally:
        gc.enable()


def test_progress_counts_bytes(llama):
    seen = []
    GenericSection.load(llama[1], llama[2], 3, 5, progress=lambda *args: seen.append(args))
    total = sum(s.bytes for s in llama[1].section_shards(3, 5))
    assert [name for name, _, _ in seen] == ["layer-0003.safetensors", "layer-0004.safetensors", "head.safetensors"]
    assert seen[-1][1:] == (total, total)


@pytest.mark.parametrize(
    "x, position, message",
    [
        (np.array([512]), 0, "not within the vocabulary of 512"),
        (np.array([-1]), 0, "not within the vocabulary of 512"),
        (np.array([1.0]), 0, "takes int64"),
        (np.array([], np.int64), 0, "takes int64"),
        (np.array([1]), 1, "position 1 on can't follow the 0"),
        (np.array([1] * 9), 0, "positions 0 to 9 don't fit a slot of 8 tokens"),
    ],
)
def test_forward_refuses_what_does_not_fit(sections, x, position, message):
    with pytest.raises(ModelError, match=message):
        sections[0].forward(x, position, sections[0].new_slot(8), 9, 0)


def test_a_generic_section_gives_logits_of_one_token_only(sections):
    with pytest.raises(ModelError, match="logits of 2 tokens; a generic section gives those of a step's last token"):
        sections[1].forward(np.zeros((3, 64), np.float32), 0, sections[1].new_slot(8), 3, 2)


def test_a_slot_longer_than_the_model_is_made_for_is_refused(sections):
    with pytest.raises(ModelError, match="a slot of 257 tokens; the model is made for 256"):
        sections[0].new_slot(257)


def test_a_manifest_without_a_config_is_refused(llama):
    with pytest.raises(ManifestError, match="lists no config.json"):
        GenericSection.load(dataclasses.replace(llama[1], files=()), llama[2], 0, 1)


def test_forward_refuses_hidden_states_of_another_size(sections):
    with pytest.raises(ModelError, match=r"takes float32 \[tokens, 64\], not float32 \[1, 65\]"):
        sections[1].forward(np.zeros((1, 65), np.float32), 0, sections[1].new_slot(8), 1, 0)


@pytest.fixture
def copied(llama, tmp_path):
    """(manifest, folder) of a split of the test's own."""
    return make_split(llama[0], tmp_path, "int8"), tmp_path


def flip_byte(path):
    with open(path, "r+b") as f:
        f.seek(-100, os.SEEK_END)
        byte = f.read(1)[0]
        f.seek(-100, os.SEEK_END)
        f.write(bytes([byte ^ 1]))


def test_a_corrupt_shard_is_refused_by_name(copied):
    manifest, folder = copied
    flip_byte(folder / "layer-0003.safetensors")
    GenericSection.load(manifest, folder, 0, 3)
    expected = f"layer-0003.safetensors: SHA-256 is [0-9a-f]{{64}}, the manifest says {manifest.layer(3).sha256}; push"
    with pytest.raises(ManifestError, match=expected):
        GenericSection.load(manifest, folder, 2, 4)
    GenericSection.load(manifest, folder, 2, 4, verify_sha256=False)


def test_a_truncated_a_missing_and_an_empty_shard_are_refused_by_name(copied):
    manifest, folder = copied
    path = folder / "head.safetensors"
    os.truncate(path, 1000)
    with pytest.raises(ManifestError, match=f"head.safetensors: 1000 bytes, the manifest says {manifest.head.bytes}"):
        GenericSection.load(manifest, folder, 4, 5, verify_sha256=False)
    os.truncate(path, 0)
    with pytest.raises(ManifestError, match="head.safetensors: .*empty"):
        GenericSection.load(manifest, folder, 4, 5)
    path.unlink()
    with pytest.raises(ManifestError, match="head.safetensors: No such file"):
        GenericSection.load(manifest, folder, 4, 5)


def test_a_changed_config_is_refused(copied):
    manifest, folder = copied
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(ManifestError, match="config.json: SHA-256 is"):
        GenericSection.load(manifest, folder, 0, 1)


def test_a_config_of_another_model_is_refused(copied):
    manifest, folder = copied
    with pytest.raises(ManifestError, match="config.json: hidden_size is 64, the manifest says 65"):
        GenericSection.load(dataclasses.replace(manifest, hidden_size=65), folder, 0, 1)


def _drop(tensors, encodings):
    del tensors["self_attn.o_proj.weight"], encodings["self_attn.o_proj.weight"]


def _add(tensors, encodings):
    tensors["self_attn.extra"] = torch.zeros(3)


def _norm_shape(tensors, encodings):
    tensors["input_layernorm.weight"] = torch.ones(63)


def _plain_shape(tensors, encodings):
    tensors["mlp.up_proj.weight"] = torch.zeros(128, 32)
    del encodings["mlp.up_proj.weight"]


def _claimed_shape(tensors, encodings):
    encodings["mlp.up_proj.weight"] = ["int8", [64, 64]]


def _packed_bytes(tensors, encodings):
    tensors["mlp.up_proj.weight"] = torch.zeros(128, 67, dtype=torch.uint8)


def _integers(tensors, encodings):
    tensors["mlp.up_proj.weight"] = torch.zeros(128, 64, dtype=torch.int32)
    del encodings["mlp.up_proj.weight"]


def _packed_norm(tensors, encodings):
    tensors["input_layernorm.weight"] = torch.zeros(1, 68, dtype=torch.uint8)
    encodings["input_layernorm.weight"] = ["int8", [1, 64]]


def _unknown_encoding(tensors, encodings):
    encodings["mlp.up_proj.weight"] = ["int2", [128, 64]]


def _unknown_name(tensors, encodings):
    encodings["nothing"] = ["int8", [128, 64]]


def _no_list(tensors, encodings):
    encodings["mlp.up_proj.weight"] = 5


@pytest.mark.parametrize(
    "change, message",
    [
        (_drop, "self_attn.o_proj.weight is missing"),
        (_add, "'self_attn.extra' is not a tensor of this model"),
        (_norm_shape, r"input_layernorm.weight has shape \[63\], the model needs \[64\]"),
        (_plain_shape, r"mlp.up_proj.weight has shape \[128, 32\], the model needs \[128, 64\]"),
        (_claimed_shape, r"mlp.up_proj.weight has shape \[64, 64\], the model needs \[128, 64\]"),
        (_packed_bytes, r"mlp.up_proj.weight: .*\[8, 1088\], not \[128, 67\]"),
        (_integers, "mlp.up_proj.weight has dtype torch.int32"),
        (_packed_norm, "input_layernorm.weight has shape"),
        (_unknown_encoding, "mlp.up_proj.weight has encoding 'int2'"),
        (_unknown_name, "encodings names 'nothing'"),
        (_no_list, "its list of encodings can't be read"),
    ],
)
def test_a_shard_with_the_wrong_content_is_refused_by_file_and_tensor(copied, change, message):
    manifest, folder = copied
    manifest = rewritten(manifest, folder, "layer-0001.safetensors", change)
    with pytest.raises(ManifestError, match="layer-0001.safetensors: " + message):
        GenericSection.load(manifest, folder, 0, 2)


def test_bytes_that_are_no_shard_are_refused(copied):
    manifest, folder = copied
    for content in (b"\xff" * 64, b"\x02" + bytes(7) + b"{}", b"\x05" + bytes(7) + b"[1,2]", b"{}"):
        (folder / "layer-0001.safetensors").write_bytes(content)
        with pytest.raises(ManifestError, match="layer-0001.safetensors: "):
            GenericSection.load(resealed(manifest, folder, "layer-0001.safetensors"), folder, 1, 2)


def resident(kind: str) -> int:
    """Bytes that this process holds: RssAnon (its own), RssFile (mapped files)."""
    with open("/proc/self/status") as f:
        return int(re.search(kind + r":\s+(\d+) kB", f.read())[1]) << 10


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux's /proc")
@pytest.mark.parametrize("encoding", ["int8", "f32", "bf16"])
def test_weights_stay_in_the_mapped_file(encoding, tmp_path):
    config = LlamaConfig(
        hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, vocab_size=4096
    )
    manifest = make_split(random_model(config), tmp_path, encoding)
    warm = GenericSection.load(manifest, tmp_path, 0, 1)  # what transformers and torch allocate once
    warm.forward(np.array([1]), 0, warm.new_slot(8), 1, 0)
    del warm
    before = resident("RssAnon")
    section = GenericSection.load(manifest, tmp_path, 0, 4)
    slot = section.new_slot(8)
    for position in range(4):
        section.forward(np.array([1]), position, slot, position + 1, 1)
    size = sum(s.bytes for s in manifest.shards)
    assert resident("RssAnon") - before < 0.1 * size
    assert abs(section.ram_bytes - size) < 0.02 * size
    with open("/proc/self/smaps") as f:
        mapped = re.findall(rf"{re.escape(str(tmp_path))}/(\S+)\n(?:\w+:.*\n)*?Anonymous:\s+(\d+) kB", f.read())
    assert {name for name, _ in mapped} == {s.name for s in manifest.shards}
    assert {own for _, own in mapped} == {"0"}
