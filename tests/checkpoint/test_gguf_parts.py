"""GGUFs in parts: any part names the whole, and a part that is missing or of another model is named."""

import re

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from edgellm.checkpoint.gguf.parts import open_gguf
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from tests.checkpoint.gguf_files import write_gguf
from tests.checkpoint.helpers import tiny_model


def _write_part(path, number, count, total, tensors, metadata=()):
    writer = GGUFWriter(path, "llama")
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", total)
    for key, value in metadata:
        writer.add_key_value(key, value.contents(), value.types[0])
    for tensor in tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def parts(tmp_path):
    """(the whole file, its three parts): the first has the metadata and no tensor, as gguf-split can make it."""
    whole = write_gguf(tmp_path / "whole.gguf", tiny_model("llama"))
    reader = GGUFReader(whole)
    keys = [(k, f) for k, f in reader.fields.items() if not k.startswith("GGUF.") and k != "general.architecture"]
    paths = [tmp_path / f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    total = len(reader.tensors)
    _write_part(paths[0], 0, 3, total, [], keys)
    _write_part(paths[1], 1, 3, total, reader.tensors[:5])
    _write_part(paths[2], 2, 3, total, reader.tensors[5:])
    return whole, paths


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_is_the_whole_model(tmp_path, parts, given):
    whole, paths = parts
    source = open_source(str(paths[given]))
    assert (source.name, source.path) == ("m", paths[0])
    manifest = split(source, tmp_path / "parts")
    expected = split(open_source(str(whole)), tmp_path / "whole")
    assert [s.sha256 for s in manifest.shards] == [s.sha256 for s in expected.shards]
    assert source.fingerprint == open_source(str(paths[0])).fingerprint


def test_every_part_counts_in_the_fingerprint(parts):
    whole, paths = parts
    before = open_source(str(paths[0])).fingerprint
    paths[2].touch()
    assert open_source(str(paths[0])).fingerprint != before


@pytest.mark.parametrize("given", [0, 1])
def test_a_missing_part_is_named(parts, given):
    whole, paths = parts
    paths[2].unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{paths[2]}: part 3 of 3 is missing")) as e:
        open_source(str(paths[given]))
    assert "\n" not in str(e.value)


def test_a_part_under_another_name_is_refused(tmp_path, parts):
    whole, paths = parts
    other = paths[1].rename(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=r"is one of 3 parts.*NAME-00001-of-00003.gguf to NAME-00003-of-00003"):
        open_source(str(other))


def test_parts_that_dont_belong_together_are_refused(parts):
    whole, paths = parts
    content = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"00002-of-00003.gguf says that it is part 3 of 3, expected part 2 of 3"):
        open_gguf(paths[0])
    paths[1].write_bytes(content)
    reader = GGUFReader(paths[1])
    tensors = list(reader.tensors)
    _write_part(paths[1].with_name("t"), 1, 3, 0, tensors[:-1])
    paths[1].with_name("t").rename(paths[1])
    with pytest.raises(CheckpointError, match=r"the 3 parts have \d+ tensors, split.tensors.count says \d+"):
        open_gguf(paths[0])
    _write_part(paths[1].with_name("t"), 1, 3, 0, [*tensors, *GGUFReader(paths[2]).tensors[:1]])
    paths[1].with_name("t").rename(paths[1])
    with pytest.raises(CheckpointError, match=r"00003-of-00003.gguf: tensor '.*' is in m-00002-of-00003.gguf too"):
        open_gguf(paths[0])
