"""What a split's manifest says of each layer: what slots keep, and which weights a token touches."""

from dataclasses import replace

import pytest

from edgellm.checkpoint.layer_facts import _touched_bytes, layer_facts
from edgellm.checkpoint.shard import make_entry, make_plan
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.model.families.feed_forwards import Experts, Router
from edgellm.model.families.find import find_spec
from edgellm.model.families.parts import Matrix, Projection, whole
from tests.checkpoint.helpers import save, tiny_model
from tests.model.families import CONFIGS


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_a_manifest_says_what_slots_keep(tmp_path, family):
    source = open_source(str(save(tiny_model(family), tmp_path / "source")))
    manifest = split(source, tmp_path / "out")
    assert manifest.state_bytes == (0, 0)
    spec, _ = find_spec(tiny_model(family).config.to_dict())
    if spec is None:  # sections keep everything
        assert manifest.kv_window_tokens == (0, 0)
        assert manifest.kv_scales_per_token == tuple(n // 16 for n in manifest.kv_elements_per_token)
        assert manifest.touched_bytes_per_token == tuple(s.ram_bytes for s in manifest.shards[1:-1])
    else:
        assert manifest.kv_scales_per_token == tuple(layer.kv_scales_per_token for layer in spec.layers)


def test_windows_are_those_of_the_layers():
    facts = layer_facts(find_spec(CONFIGS["qwen2_window"]().to_dict())[0], [])
    assert facts["kv_window_tokens"] == (0, 0, 8, 8, 8) and facts["kv_scales_per_token"] == (4,) * 5
    assert layer_facts(None, []) == {}


class Tensor:
    encoding = "f16"

    def __init__(self, *shape):
        self.shape = shape


def test_a_token_touches_the_experts_that_are_chosen():
    spec, _ = find_spec(CONFIGS["llama"]().to_dict())
    up, down = (Projection(Matrix(f"mlp.experts.{n}", 96, 64, 8), 0, 96) for n in ("up", "down"))
    experts = Experts(Router(whole("mlp.gate", 8, 64), 8, 3), None, up, down)
    layer = replace(spec.layers[0], feed_forward=experts)
    entries = [
        make_entry("mlp.experts.up", Tensor(8, 96, 64), False, True, "layer", "none"),
        make_entry("mlp.experts.down", Tensor(8, 64, 96), False, True, "layer", "none"),
        make_entry("mlp.gate.weight", Tensor(8, 64), False, True, "layer", "none"),
        make_entry("norm", Tensor(64), False, False, "layer", "none"),
    ]
    plan = make_plan("layer-0000.safetensors", "layer", 0, entries)
    assert _touched_bytes(layer, plan) == 3 * 2 * 96 * 64 * 2 + 8 * 64 * 2 + 64 * 4
    assert _touched_bytes(spec.layers[0], plan) == plan.ram_bytes == 8 * 2 * 96 * 64 * 2 + 8 * 64 * 2 + 64 * 4
