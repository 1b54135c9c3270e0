"""The manifest parses what it writes, and refuses everything else by field."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgellm.errors import ManifestError
from edgellm.files import write_atomically
from edgellm.shards.manifest import Manifest, Mtp
from tests.fakes import make_manifest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [*json.loads(make_manifest().to_json()), "pooling", "kv_sources", "row_elements", "mtp"]


def test_what_is_written_is_read(tmp_path):
    make_manifest().write(tmp_path)
    read = Manifest.read(tmp_path)
    assert read == make_manifest() and len(read.sha256) == 64
    assert list(tmp_path.iterdir()) == [tmp_path / "manifest.json"]


@pytest.mark.parametrize("name", FIELDS)
@example(value=[{"\n": 0}])
@given(value=JSON)
def test_a_field_of_another_kind_is_refused_or_harmless(name, value):
    content = json.loads(make_manifest().to_json())
    content[name] = value
    try:
        parsed = Manifest.from_json(json.dumps(content))
    except ManifestError as e:
        assert "\n" not in str(e)
        return
    assert Manifest.from_json(parsed.to_json()) == parsed


def test_a_layer_sees_the_keys_of_no_later_one_and_rows_have_hidden_states():
    content = json.loads(make_manifest().to_json())
    layers, hidden = content["num_layers"], content["hidden_size"]
    rows = [hidden, *[hidden + 5] * (layers - 1)]
    assert Manifest.from_json(json.dumps({**content, "row_elements": rows})).widest_row == hidden + 5
    for name, values, said in (
        ("kv_sources", [*range(layers - 1), layers], f"kv_sources has {layers} for layer {layers - 1}"),
        ("kv_sources", [0, 0, 1, *range(3, layers)], "kv_sources has 1 for layer 2, which isn't"),
        ("kv_sources", [0], "kv_sources has 1 entries"),
        ("row_elements", [hidden - 1] * layers, f"row_elements has {hidden - 1}, less than hidden_size"),
    ):
        with pytest.raises(ManifestError, match=said):
            Manifest.from_json(json.dumps({**content, name: values}))


@pytest.mark.parametrize("place", ["shards", "files"])
@pytest.mark.parametrize("field", ["name", "kind", "layer", "bytes", "ram_bytes", "sha256"])
@given(value=JSON)
def test_an_odd_shard_or_file_is_refused_or_harmless(place, field, value):
    content = json.loads(make_manifest().to_json())
    content["files"] = [{"name": "config.json", "bytes": 1, "sha256": "0" * 64}]
    content[place][0][field] = value
    try:
        Manifest.from_json(json.dumps(content))
    except ManifestError as e:
        assert "manifest" in str(e)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", "x\n"])
def test_no_name_leaves_the_folder(name):
    content = json.loads(make_manifest().to_json())
    content["shards"][1]["name"] = name
    with pytest.raises(ManifestError, match="not a plain file name"):
        Manifest.from_json(json.dumps(content))


def test_another_format_says_what_to_do():
    content = json.loads(make_manifest().to_json()) | {"format": 9}
    with pytest.raises(ManifestError, match="format 9, this edgellm reads 1 and 2. Split the model again"):
        Manifest.from_json(json.dumps(content))


SINCE_2 = ("kv_scales_per_token", "kv_window_tokens", "state_bytes", "touched_bytes_per_token")


def test_format_1_is_read_and_what_it_lacks_is_filled_in():
    content = json.loads(make_manifest(2).to_json()) | {"format": 1, "kv_elements_per_token": [2, 33]}
    for name in SINCE_2:
        del content[name]
    text = json.dumps(content)
    read = Manifest.from_json(text)
    assert [getattr(read, name) for name in SINCE_2] == [(1, 3), (0, 0), (0, 0), (8, 8)]
    assert read.format == 1 and read.sha256 == hashlib.sha256(text.encode()).hexdigest()
    again = json.loads(read.to_json())
    assert again["format"] == 2 and again["touched_bytes_per_token"] == [8, 8], "written in the newest format"
    for format, extra in ((1, {"state_bytes": [0, 0]}), (2, {}), (2, dict.fromkeys(SINCE_2, [])), (True, {})):
        with pytest.raises(ManifestError):
            Manifest.from_json(json.dumps(content | extra | {"format": format}))


@pytest.mark.parametrize("name", ["kv_elements_per_token", *SINCE_2])
@pytest.mark.parametrize("value", [[], [1], [1, 2, 3], [1, -1], [1, 1 << 51], [1, True], [1, "2"], 7, None])
def test_a_list_needs_an_entry_for_each_layer(name, value):
    content = json.loads(make_manifest(2).to_json()) | {name: value}
    with pytest.raises(ManifestError, match="manifest"):
        Manifest.from_json(json.dumps(content))


def test_a_missing_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(ManifestError, match="edgellm split SOURCE --out"):
        Manifest.read(tmp_path)


def test_a_section_has_its_layers_and_the_ends_it_touches():
    manifest = make_manifest(4)
    assert [s.name for s in manifest.section_shards(0, 2)] == [
        "embedding.safetensors", "layer-0000.safetensors", "layer-0001.safetensors",
    ]  # fmt: skip
    assert [s.kind for s in manifest.section_shards(2, 4)] == ["layer", "layer", "head"]
    assert len(manifest.section_shards(0, 4)) == 6


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomically(path, b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_bytes_of_experts_are_there_only_where_there_are_experts():
    plain = make_manifest(2)
    assert "expert_bytes" not in json.loads(plain.to_json()) and plain.touched_expert_bytes == 0
    some = replace(plain, expert_bytes=(4, 0), touched_bytes_per_token=(5, 8))
    assert Manifest.from_json(some.to_json()) == some
    assert some.touched_expert_bytes == 1, "of 8 bytes 4 are experts, and a token touches 5"
    content = json.loads(some.to_json())
    for wrong in ([4], [4, 9], [4, -1], [], "x"):
        with pytest.raises(ManifestError, match="manifest"):
            Manifest.from_json(json.dumps(content | {"expert_bytes": wrong}))


def test_a_head_that_drafts_is_part_of_the_head():
    plain = make_manifest()
    assert plain.mtp is None and "mtp" not in plain.to_json()
    drafting = replace(plain, mtp=Mtp(plain.head.ram_bytes // 2, 64, 4))
    assert Manifest.from_json(drafting.to_json()) == drafting
    assert drafting.head_touched_bytes == plain.head.ram_bytes - plain.head.ram_bytes // 2
    with pytest.raises(ManifestError, match="mtp is .* at most the 8 bytes of the head"):
        replace(plain, mtp=Mtp(plain.head.ram_bytes + 1, 64, 4))
