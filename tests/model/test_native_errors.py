"""What doesn't fit is refused: by file and tensor when a native section loads, by a status at the C ABI; no crash."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
from families import CONFIGS, random_model
from make_split import make_split
from native_sections import NativeRing, load
from test_section import (
    _add,
    _claimed_shape,
    _drop,
    _integers,
    _no_list,
    _norm_shape,
    _packed_norm,
    _plain_shape,
    _unknown_encoding,
    _unknown_name,
    flip_byte,
    rewritten,
)

from edgellm.agent.load import load_section
from edgellm.errors import ManifestError, ModelError, UsageError
from edgellm.kernels.abi import NULL, ffi
from edgellm.model.native.abi import new_layers, new_section, new_steps
from edgellm.model.native.section import NativeSection, read_spec
from tests.native_abi import call, put


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(manifest, folder, section) of a tiny llama in int8."""
    folder = tmp_path_factory.mktemp("llama")
    manifest = make_split(random_model(CONFIGS["llama"]()), folder, "int8")
    return manifest, folder, load(manifest, folder, (0, 5))[0]


@pytest.fixture
def copied(tmp_path):
    """(manifest, folder) of a split of the test's own."""
    return make_split(random_model(CONFIGS["llama"]()), tmp_path, "int8"), tmp_path


@pytest.mark.parametrize(
    "change, message",
    [
        (_drop, "self_attn.o_proj.weight is missing"),
        (_add, "'self_attn.extra' is not a tensor of this model"),
        (_norm_shape, r"input_layernorm.weight has shape \[63\], the model needs \[64\]"),
        (_plain_shape, r"mlp.up_proj.weight has shape \[128, 32\], the model needs \[128, 64\]"),
        (_claimed_shape, r"mlp.up_proj.weight has shape \[64, 64\], the model needs \[128, 64\]"),
        (_integers, "mlp.up_proj.weight has dtype I32"),
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
        load_section(manifest, folder, 0, 2)


def test_a_corrupt_shard_a_changed_config_and_another_model_are_refused_by_name(copied):
    manifest, folder = copied
    flip_byte(folder / "layer-0003.safetensors")
    load_section(manifest, folder, 0, 3)
    with pytest.raises(ManifestError, match="layer-0003.safetensors: SHA-256 is"):
        load_section(manifest, folder, 3, 5)
    with pytest.raises(ManifestError, match="config.json: hidden_size is 64, the manifest says 65"):
        load_section(dataclasses.replace(manifest, hidden_size=65), folder, 0, 1)
    less = dataclasses.replace(manifest, kv_window_tokens=(0, 8, 0, 0, 0))  # than a slot of this model needs
    with pytest.raises(ManifestError, match="layer 1 has a window of 0 tokens .* the manifest says 8 and 0"):
        load_section(less, folder, 0, 1)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(ManifestError, match="config.json: SHA-256 is"):
        load_section(manifest, folder, 0, 1)


def test_a_section_is_generic_if_asked_for_and_where_the_family_is_unknown(llama, tmp_path):
    manifest, folder, _ = llama
    assert load_section(manifest, folder, 0, 5).path == "native"
    assert load_section(manifest, folder, 0, 5, path="generic").path == "generic"
    other = make_split(random_model(CONFIGS["cohere"]()), tmp_path)
    assert load_section(other, tmp_path, 0, 5).path == "generic"
    with pytest.raises(UsageError, match="path is 'fast'"):
        load_section(manifest, folder, 0, 5, path="fast")


@pytest.mark.parametrize(
    "x, position, logits, message",
    [
        (np.array([512]), 0, 1, "not within the vocabulary of 512"),
        (np.array([-1]), 0, 1, "not within the vocabulary of 512"),
        (np.array([1.0]), 0, 1, "takes int64"),
        (np.array([], np.int64), 0, 1, "takes int64"),
        (np.array([1]), 1, 1, "position 1 on can't follow the 0"),
        (np.array([1] * 9), 0, 1, "positions 0 to 9 don't fit a slot of 8 tokens"),
        (np.array([1, 2]), 0, 3, "logits of 3 tokens of a step of 2"),
    ],
)
def test_forward_refuses_what_does_not_fit(llama, x, position, logits, message):
    section = llama[2]
    with pytest.raises(ModelError, match=message):
        section.forward(x, position, section.new_slot(8), 9, logits)


def test_slots_and_sections_that_can_not_be_are_refused(llama):
    manifest, folder, section = llama
    for arguments, message in (((257,), "a slot of 257 tokens; the model is made for 256"), ((0,), "can hold nothing"),
                               ((8, "int4"), "kv_dtype is 'int4'")):  # fmt: skip
        with pytest.raises(ModelError, match=message):
            section.new_slot(*arguments)
    with pytest.raises(ModelError, match="section 3-6 is not within the model's 5 layers"):
        NativeSection(section.spec, manifest, folder, 3, 6)
    with pytest.raises(ManifestError, match="lists no config.json"):
        read_spec(dataclasses.replace(manifest, files=()), folder)


def test_a_section_without_ends_takes_and_gives_hidden_states(llama):
    section = load_section(llama[0], llama[1], 0, 5, without_ends=True)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    assert section.forward(x, 0, section.new_slot(8), 3, True).shape == (3, 64)
    assert section.forward(section.example(), 0, section.new_slot(8), 1, True).shape == (1, 64)
    assert section.ram_bytes < llama[2].ram_bytes
    with pytest.raises(ModelError, match=r"takes float32 \[tokens, 64\], not float32 \[1, 65\]"):
        section.forward(np.zeros((1, 65), np.float32), 0, section.new_slot(8), 1, 0)


def test_memory_is_free_as_soon_as_a_section_and_its_slots_are_dropped(llama):
    section = NativeSection(llama[2].spec, llama[0], llama[1], 1, 3)
    slot = section.new_slot(32)
    held = [weakref.ref(x) for x in (section, slot, section._loaded, slot._memory)]
    gc.collect()
    gc.disable()
    try:
        del section, slot
        assert [ref() for ref in held if ref() is not None] == []
    finally:
        gc.enable()


BAD_STEPS = [
    (dict(tokens=0), 3), (dict(tokens=513), 3), (dict(logits=2), 3), (dict(long_rope=2), 3), (dict(slot_bytes=0), 4),
    (dict(position=96), 3), (dict(position=1 << 63), 3), (dict(context=1 << 62), 3), (dict(context=80), 4),
    (dict(slot=None), 1), (dict(slot_bytes=8), 4), (dict(kv_encoding=0), 2), (dict(kv_encoding=-1), 2),
    (dict(kv_encoding=4), 4),
]  # fmt: skip


@pytest.mark.parametrize("change, status", BAD_STEPS, ids=str)
def test_the_abi_refuses_a_step_that_does_not_fit(llama, change, status):
    section = llama[2]
    slot, steps = section.new_slot(96), new_steps()
    section._steps = steps
    section._set_step(0, 1, 0, slot, 1, 1)
    for name, value in change.items():
        put(steps[0], (name,), value)
    ids, logits = np.array([5]), np.empty((1, 512), np.float32)
    arguments = [section._native._handle, steps, 1, 0, 5, ids.ctypes.data, None, 1, None, 0, logits.ctypes.data, 512]
    assert call("edgellm_section_run", *arguments) == status
    section._set_step(0, 1, 0, slot, 1, 1)
    assert call("edgellm_section_run", *arguments) == 0


@pytest.mark.parametrize("at, value, status", [
    (0, None, 1), (1, None, 1), (2, 0, 3), (2, 65, 3), (3, 6, 3), (4, 6, 3), (5, None, 1), (7, 2, 4), (9, 64, 4),
    (10, None, 1), (11, 511, 4),
])  # fmt: skip
def test_the_abi_refuses_a_run_that_does_not_fit(llama, at, value, status):
    section = llama[2]
    section._steps = new_steps()
    slot = section.new_slot(96)
    section._set_step(0, 1, 0, slot, 1, 1)
    ids, logits = np.array([5]), np.empty((1, 512), np.float32)
    arguments = [section._native._handle, section._steps, 1, 0, 5, ids.ctypes.data, None, 1, None, 0,
                 logits.ctypes.data, 512]  # fmt: skip
    arguments[at] = value
    assert call("edgellm_section_run", *arguments) == status


@pytest.mark.parametrize("path, value, status", [
    ("hidden", 65, 3), ("layers.attention.heads", 0, 3), ("layers.attention.kv_heads", 3, 3),
    ("layers.attention.head_dim", 24, 3), ("layers.attention.rotary_dim", 34, 3), ("layers.attention.rotary_dim", 7, 3),
    ("layers.attention.rope", 4, 3), ("layers.attention.gated", 2, 3), ("layers.mixer", 9, 3), ("layers.mixer", -1, 3),
    ("num_layers", 1 << 40, 3), ("vocab", 1 << 30, 3), ("layers.attention.q.bytes", 7, 4),
    ("layers.attention.q.encoding", 99, 2), ("layers.attention.q.in", 32, 3), ("layers.attention.q.first", 16, 3),
    ("layers.attention.q.experts", 2, 3), ("layers.attention.q.data", None, 1), ("layers.mlp.activation", 2, 3),
    ("layers.before_feed_forward.weight.count", 63, 4), ("head.rows", 511, 3), ("final_norm.weight.data", None, 1),
    ("final_norm.weight.data", 3, 1),
])  # fmt: skip
def test_the_abi_refuses_a_section_that_does_not_fit(llama, path, value, status):
    spec, layers = new_section({}), new_layers(5)
    spec[0] = llama[2]._loaded.spec[0]
    for i in range(5):
        layers[i] = spec.layers[i]
    spec.layers = layers
    at, path = (layers[4], path.removeprefix("layers.")) if path.startswith("layers.") else (spec, path)
    put(at, tuple(path.split(".")), value)
    into, size = ffi.new("Section **"), ffi.sizeof("SectionSpec")
    assert call("edgellm_section_new", spec, size, into) == status
    assert call("edgellm_section_new", spec, size - 8, into) == 4
    assert call("edgellm_section_new", None, size, into) == 1 and into[0] == NULL


def test_structs_have_no_padding_that_a_compiler_could_lay_out_differently():
    assert ffi.sizeof("StepSpec") == 64 and ffi.sizeof("SectionSpec") == 8 * 12 + 3 * 80 + 32


def test_refused_calls_leave_the_section_as_it_was(llama):
    ring = NativeRing([llama[2]])
    assert ring.generate([5, 6, 7], 4) == NativeRing([llama[2]]).generate([5, 6, 7], 4)
