"""Damaged GGUF files: one line with file, tensor and both numbers, and no memory taken for lengths that lie."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.checkpoint.gguf.file import GGUFFile
from edgellm.checkpoint.sources import open_source
from edgellm.errors import EdgellmError


def _s(text) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(entries=(), tensors=(), data=b"", version=3, num_entries=None, num_tensors=None, magic=b"GGUF") -> bytes:
    """A file out of raw metadata entries and (name, dims fastest first, type, offset) tensors."""
    out = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    out += b"".join(entries)
    for name, dims, kind, offset in tensors:
        out += _s(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return out + bytes(-len(out) % 32) + data


ARCH = _s("general.architecture") + struct.pack("<I", 8) + _s("llama")
GOOD = gguf(
    [
        ARCH,
        _s("llama.block_count") + struct.pack("<II", 4, 1),
        _s("a.list") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<3i", 1, -2, 3),
        _s("a.strings") + struct.pack("<IIQ", 9, 8, 2) + _s("x") + _s(b"\xff"),
        _s("a.flag") + struct.pack("<I?", 7, True),
    ],
    [("one", (4, 2), 0, 0), ("two", (32, 3), 8, 32)],
    bytes(32 + 3 * 34),
)


def test_good_file_is_read(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(GOOD)
    file = GGUFFile.open(path)
    assert file.metadata["a.list"] == [1, -2, 3] and file.metadata["a.flag"] is True
    assert file.metadata["a.strings"] == ["x", "\ufffd"]
    assert {n: (t.type, t.shape, t.bytes) for n, t in file.tensors.items()} == {
        "one": ("F32", (2, 4), 32),
        "two": ("Q8_0", (3, 32), 102),
    }


_HUGE = 1 << 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "doesn't begin with 'GGUF'"),
        (b"GGML" + GOOD[4:], "doesn't begin with 'GGUF'"),
        (b"GGUF", r"the header needs byte 8, the file has 4"),
        (gguf(version=1), "is GGUF version 1, readable are 2 and 3"),
        (gguf(version=3 << 24), "is GGUF version"),
        (GOOD[:60], r"the header needs byte \d+, the file has 60"),
        (GOOD[:-1], r"tensor 'two' ends at byte \d+, the file has \d+"),
        (gguf([ARCH], num_entries=_HUGE)[:-32], "the header needs byte"),
        (gguf([ARCH], num_tensors=_HUGE), "the header needs byte"),
        (gguf([struct.pack("<Q", _HUGE)], num_entries=1), "the header needs byte"),
        (gguf([_s("k") + struct.pack("<IIQ", 9, 8, _HUGE)]), "the header needs byte"),
        (gguf([_s("k") + struct.pack("<IIQ", 9, 0, _HUGE)]), "the header needs byte"),
        (gguf([_s("k") + struct.pack("<IIQ", 9, 9, 1)]), "an array of type 9"),
        (gguf([_s("k") + struct.pack("<I", 77)]), "metadata of type 77"),
        (gguf([ARCH, ARCH]), "'general.architecture' occurs twice"),
        (gguf([_s("general.alignment") + struct.pack("<II", 4, 0)]), "general.alignment is 0"),
        (gguf([_s("general.alignment") + struct.pack("<II", 4, 48)]), "general.alignment is 48"),
        (gguf([_s("general.alignment") + struct.pack("<I", 8) + _s("x")]), "general.alignment is x"),
        (gguf(tensors=[("t", (4, 4, 4, 4, 4), 0, 0)]), "has 5 dimensions"),
        (gguf(tensors=[("t", (4,), 0, 0), ("t", (4,), 0, 0)], data=bytes(32)), "tensor 't' occurs twice"),
        (gguf(tensors=[("t", (4,), 99, 0)]), "has ggml type 99; known are F32"),
        (gguf(tensors=[("t", (31,), 8, 0)]), "has rows of 31 elements, Q8_0 needs a multiple of 32"),
        (gguf(tensors=[("t", (4,), 0, _HUGE)]), r"tensor 't' ends at byte \d+, the file has"),
        (gguf(tensors=[("t", (_HUGE, _HUGE), 0, 0)]), r"tensor 't' ends at byte \d+, the file has"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(EdgellmError, match=message) as e:
        open_source(str(path))
    assert "\n" not in str(e.value) and str(path) in str(e.value)


def _u32(key, value):
    return _s(key) + struct.pack("<II", 4, value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "it holds no model"),
        ([_s("general.architecture") + struct.pack("<I", 8) + _s("nonesuch")], "nonesuch"),
        ([ARCH], "llama.embedding_length is missing, expected a whole number from 1 on"),
        ([ARCH, _u32("llama.attention.head_count", 0), _u32("llama.embedding_length", 8)], "head_count is 0, expected"),
        (
            [
                ARCH,
                _u32("llama.attention.head_count", 3),
                _u32("llama.embedding_length", 8),
                _u32("llama.block_count", 1),
            ],
            "llama",
        ),
    ],
)
def test_metadata_that_describes_no_model_is_refused(tmp_path, entries, message):
    from edgellm.checkpoint.split import split

    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(entries, [("token_embd.weight", (8, 4), 0, 0)], bytes(128)))
    with pytest.raises(EdgellmError, match=message) as e:
        split(open_source(str(path)), tmp_path / "out")
    assert "\n" not in str(e.value)


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(GOOD) - 135), byte=st.integers(0, 255))
def test_any_flipped_header_byte_is_read_or_refused(tmp_path_factory, at, byte):
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    path.write_bytes(GOOD[:at] + bytes([byte]) + GOOD[at + 1 :])
    try:
        file = GGUFFile.open(path)
    except EdgellmError:
        return
    for tensor in file.tensors.values():
        assert tensor.offset + tensor.bytes <= len(GOOD)
