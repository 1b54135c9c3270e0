"""verify says equal when it is, and names the first layer that isn't."""

import asyncio

import pytest
import torch

from edgellm.check.compare import verify
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import ClusterError, UsageError
from tests.fakes import Boards, run
from tests.model.families import CONFIGS, random_model
from tests.model.recurrent_models import recurrent_model

PROMPT = [(7 * i + 3) % 500 for i in range(20)]


def checked(tmp_path, family, quantize, count, harm=lambda boards: None, **settings):
    """The result of verify on two agents, after `harm` was done to them."""
    model = random_model(CONFIGS[family]()) if family in CONFIGS else recurrent_model(family)
    cut, layers = model.config.num_hidden_layers // 2, model.config.num_hidden_layers
    model.save_pretrained(tmp_path / "checkpoint")
    split(open_source(str(tmp_path / "checkpoint")), tmp_path / "split", quantize)

    async def go():
        async with Boards(tmp_path / "split", 2, real=True) as boards:
            plan = await boards.form((0, cut, layers), chunk=8, context=64, **settings)
            harm(boards)
            told = []
            return await asyncio.to_thread(
                verify, boards.folder, plan, boards.addresses, PROMPT, count, lambda *step: told.append(step)
            )

    return run(go(), 100)


# A longrope sequence of 20 + 24 tokens crosses its switch at 32.
@pytest.mark.parametrize(
    "family, quantize",
    [("llama", "none"), ("llama", "int4"), ("gpt2", "int8"), ("phi3_longrope", "none"), ("cohere", "int4")],
)
def test_a_sound_cluster_is_equal(tmp_path, family, quantize):
    result = checked(tmp_path, family, quantize, 24)
    assert result.equal, result.to_text()
    assert len(result.tokens) == 24 and [x.layer for x in result.layers] == [0, 1, 2, 3, 4]
    assert "tokens   equal, all 24" in result.to_text()
    assert result.to_dict()["equal"] is True


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_next", "lfm2", "granite4_odd", "nemotron_h"])
def test_a_cluster_of_a_model_with_recurrent_layers_is_equal(tmp_path, family):
    result = checked(tmp_path, family, "none", 24)
    assert result.equal, result.to_text()
    assert len(result.tokens) == 24


def test_the_first_layer_that_differs_is_named_with_its_board(tmp_path):
    def harm(boards):
        model = boards.agents[1].stage.section.model
        norm = model.model.layers[3].input_layernorm
        norm.weight = torch.nn.Parameter(norm.weight * 1.3)  # the old one is the mapped file

    result = checked(tmp_path, "cohere", "int8", 12, harm)
    assert not result.equal
    assert (result.first_layer_that_differs.layer, result.first_layer_that_differs.board) == (3, "b1")
    assert result.logits_difference > result.logits_tolerance
    assert "the first that differs is 3 on board b1" in result.to_text()


def test_a_native_section_that_is_off_is_named_with_its_board(tmp_path):
    def harm(boards):
        section = boards.agents[1].stage.section
        cos, sin = section._tables[0]
        section._tables[0] = cos * 0.5, sin  # every layer of the board goes wrong
        section._native.set_rope(0, *section._tables[0])

    result = checked(tmp_path, "llama", "int8", 12, harm)
    assert (result.first_layer_that_differs.layer, result.first_layer_that_differs.board) == (2, "b1")
    assert not result.equal and result.logits_difference > 0


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_native_sections_give_the_bits_of_one_process_and_layers_near_those_of_transformers(tmp_path, kv_dtype):
    result = checked(tmp_path, "llama", "int4", 12, kv_dtype=kv_dtype)
    assert (result.logits_difference, result.logits_tolerance, result.tolerance) == (0, 0, 0.1)
    assert 0 < max(x.difference for x in result.layers) < 0.05
    assert "no bit may differ" in result.to_text()


def test_float16_kv_is_within_its_wider_tolerance(tmp_path):
    result = checked(tmp_path, "cohere", "none", 12, kv_dtype="float16")
    assert result.tolerance == 1e-2 and 0 < result.logits_difference < 1e-2 and result.first_layer_that_differs is None


def test_what_does_not_fit_in_a_slot_or_is_another_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match="20 prompt tokens and 60 more; a slot of this cluster holds 64"):
        checked(tmp_path, "llama", "none", 60)

    def another_model(boards):
        (boards.folder / "manifest.json").write_text(boards.manifest.to_json().replace("llama", "lama"))

    with pytest.raises(ClusterError, match="not the model that the cluster serves"):
        checked(tmp_path / "again", "llama", "none", 5, another_model)
