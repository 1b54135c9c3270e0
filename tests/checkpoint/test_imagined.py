"""A manifest without a split says what the split would."""

import json

import pytest
from click.testing import CliRunner

from edgellm.checkpoint.imagined import imagine
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.cli import main
from edgellm.errors import CheckpointError
from tests.model.families import CONFIGS, random_model

SIZES = "name", "kind", "layer", "bytes", "ram_bytes"
LISTS = (
    "kv_elements_per_token", "kv_scales_per_token", "kv_window_tokens", "state_bytes", "touched_bytes_per_token",
)  # fmt: skip


def sizes(manifest):
    shards = [tuple(getattr(s, name) for name in SIZES) for s in manifest.shards]
    lists = [getattr(manifest, name) for name in LISTS]
    return shards, lists, manifest.activation_elements_per_token, manifest.max_seq_len


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize("family", ["smollm", "phi3_longrope", "gpt2", "qwen2_window"])
def test_a_config_alone_tells_the_sizes_of_a_split(tmp_path, family, quantize):
    folder, bare = tmp_path / "model", tmp_path / "bare"
    random_model(CONFIGS[family]()).save_pretrained(folder)
    made = split(open_source(str(folder)), tmp_path / "split", quantize)
    bare.mkdir()
    (bare / "config.json").write_bytes((folder / "config.json").read_bytes())
    for source in (folder, bare, bare / "config.json"):
        assert sizes(imagine(str(source), quantize)) == sizes(made)


def test_a_plan_needs_no_weights(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGS["llama"]().to_dict()))
    boards = ["--board", "a=1GB,b=1GB", "--context", "128"]
    result = CliRunner().invoke(main, ["plan", str(path), "--quantize", "int4", *boards, "--explain"])
    assert result.exit_code == 0 and "tokens/s" in result.output
    result = CliRunner().invoke(main, ["plan", *boards])
    assert result.exit_code == 2 and "give either a SOURCE" in result.output + result.stderr


@pytest.mark.parametrize("text, said", [("{", "is not JSON"), ('{"model_type": "bert"}', "bert is none of")])
def test_a_config_that_can_t_be_planned_is_refused(tmp_path, text, said):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=said):
        imagine(str(path))
