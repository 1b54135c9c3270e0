"""Damaged safetensors files: one line with file, tensor and both numbers."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from edgellm.errors import CheckpointError
from edgellm.shards.safetensors_file import SafetensorsFile

GOOD = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)})


def _with_header(header, data=GOOD[-32:]) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def test_good_file_is_read(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(GOOD)
    file = SafetensorsFile.open(path)
    assert {n: (t.dtype, t.shape, t.bytes) for n, t in file.tensors.items()} == {
        "a": ("F32", (2, 3), 24), "b": ("F16", (4,), 8),
    }  # fmt: skip


def _entry(**changes) -> dict:
    return {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends at byte 8, the file has 0"),
        (GOOD[:5], "ends at byte 8, the file has 5"),
        (GOOD[:40], r"the header claims \d+ bytes, the file has 32"),
        (GOOD[:-1], r"tensor '[ab]' ends at byte \d+, the file has \d+"),
        (b"\xff" * 16, "the header claims"),
        (_with_header(b"{nonsense"), "are not JSON"),
        (_with_header(b"[" * 9000), "not JSON"),
        (_with_header(b"[]"), "not a JSON object"),
        (_with_header({"__metadata__": 3}), "__metadata__"),
        (_with_header({"a": 3}), "lacks a dtype"),
        (_with_header(_entry(dtype="F33")), "has dtype 'F33', known are"),
        (_with_header(_entry(dtype=[])), "has dtype"),
        (_with_header(_entry(shape=[2, 4])), r"holds 24 bytes, its shape \[2, 4\] in F32 needs 32"),
        (_with_header(_entry(shape=[-2, -3])), "bad shape"),
        (_with_header(_entry(shape="abc")), "bad shape"),
        (_with_header(_entry(shape=[2, 3.0])), "bad shape"),
        (_with_header(_entry(data_offsets=[0])), "lacks"),
        (_with_header(_entry(data_offsets=[-24, 0])), "bad offsets"),
        (_with_header(_entry(data_offsets=[24, 48])), r"ends at byte \d+, the file has \d+"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as e:
        SafetensorsFile.open(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(GOOD) - 33), byte=st.integers(0, 255))
def test_any_flipped_header_byte_is_read_or_refused(tmp_path_factory, at, byte):
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(GOOD[:at] + bytes([byte]) + GOOD[at + 1 :])
    try:
        file = SafetensorsFile.open(path)
    except CheckpointError:
        return
    for tensor in file.tensors.values():
        assert tensor.offset + tensor.bytes <= len(GOOD)
