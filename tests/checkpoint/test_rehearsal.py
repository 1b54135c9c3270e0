"""What split accepts runs: a tiny model of the same config goes through sections, chunks and slots first."""

import json

import numpy as np
import pytest
import torch
import transformers as hf

from edgellm.checkpoint import rehearsal
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.cli.models import split_source_to
from edgellm.errors import ModelError
from edgellm.model.generic.section import GenericSection
from edgellm.model.generic.structure import trace
from tests.checkpoint.helpers import save
from tests.model.families import CONFIGS

_LATENT = dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    kv_lora_rank=32, q_lora_rank=None, qk_nope_head_dim=16, qk_rope_head_dim=8, moe_intermediate_size=32,
    n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def afresh():
    rehearsal._rehearse.cache_clear()


def rehearse(config) -> bool:
    return rehearsal.rehearse(config, trace(config))


@pytest.fixture
def noted(monkeypatch):
    """The configs of the tiny models that ran."""
    configs, compare = [], rehearsal._compare

    def note(config, *args):
        configs.append(config)
        compare(config, *args)

    monkeypatch.setattr(rehearsal, "_compare", note)
    return configs


def test_values_narrower_than_keys_run(tmp_path, noted):
    config = hf.DeepseekV2Config(**_LATENT, v_head_dim=12, pad_token_id=0)
    folder = save(hf.AutoModelForCausalLM.from_config(config), tmp_path / "source")
    split(open_source(str(folder)), tmp_path / "out")
    assert [c.v_head_dim for c in noted] == [12]


def test_a_model_that_fails_at_its_second_chunk_is_refused_before_anything_is_written(tmp_path):
    # Its latents become keys and values of all heads, yet it says that heads share them: transformers then repeats
    # what is there already, but not in a pass without a mask.
    config = hf.DeepseekV2Config(**_LATENT, v_head_dim=24, num_key_value_heads=2, pad_token_id=0)
    folder = save(hf.AutoModelForCausalLM.from_config(config), tmp_path / "source")
    with pytest.raises(ModelError, match="deepseek_v2: transformers can run it, but not in sections: RuntimeError: Th"):
        split(open_source(str(folder)), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_model_whose_positions_are_not_what_it_is_told_is_refused():
    config = hf.CTRLConfig(vocab_size=96, n_embd=64, n_layer=2, n_head=4, dff=96, n_positions=64)
    with pytest.raises(ModelError, match="ctrl: its sections give different results from transformers; logits"):
        rehearse(config)


@pytest.mark.parametrize(
    "family", ["gemma3", "opt", "falcon_alibi", "cohere2", "smollm3", "llama4", "phi3_longrope", "xglm"]
)
def test_families_that_run_are_let_pass(family, noted, monkeypatch):
    monkeypatch.setattr(rehearsal, "find_spec", lambda config: (None, ""))
    assert rehearse(CONFIGS[family]())
    assert len(noted) == 1


def test_a_model_that_could_not_be_tried_is_split_and_its_owner_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rehearsal, "_MOST_PARAMETERS", 0)
    config = hf.DeepseekV2Config(**_LATENT, v_head_dim=12, pad_token_id=0)
    folder = save(hf.AutoModelForCausalLM.from_config(config), tmp_path / "source")
    split_source_to(folder, tmp_path / "out", "none")
    said = capsys.readouterr().err
    assert "its sections could not be tried before splitting. Run 'edgellm verify'" in said


@pytest.mark.parametrize(
    "config, layers, kept",
    [
        (lambda: hf.Cohere2Config(num_hidden_layers=12, head_dim=128), 4, {"head_dim": 128}),
        (lambda: hf.MixtralConfig(num_hidden_layers=4), 2, {"num_experts_per_tok": 2}),
        (lambda: hf.FalconConfig(num_hidden_layers=4), 2, {"parallel_attn": True}),
        (lambda: hf.Llama4TextConfig(num_hidden_layers=8, head_dim=128), 4, {"head_dim": 128}),
        (lambda: hf.DeepseekV3Config(num_hidden_layers=6), 4, {"kv_lora_rank": 512, "v_head_dim": 128}),
    ],
)
def test_a_large_model_is_rehearsed_small_and_with_each_kind_of_layer(config, layers, kept, noted, monkeypatch):
    monkeypatch.setattr(rehearsal, "find_spec", lambda config: (None, ""))  # also those that run natively
    rehearse(config())
    (tiny,) = noted
    assert tiny.num_hidden_layers == layers and tiny.vocab_size <= 256
    assert {name: getattr(tiny, name) for name in kept} == kept
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(tiny)
    assert sum(p.numel() for p in model.parameters()) < 20e6
    if getattr(config(), "layer_types", None):
        assert set(tiny.layer_types) == set(config().layer_types)


def test_native_families_need_no_rehearsal(noted):
    for family in ("llama", "phi3", "qwen2", "gpt2"):
        rehearse(CONFIGS[family]())
    assert not noted


def test_a_config_that_can_not_be_shrunk_is_let_pass(monkeypatch, noted):
    def fails(model):
        raise RuntimeError("shape '[1, 12, 4, 0, 256]' is invalid")

    monkeypatch.setattr(rehearsal, "_all_at_once", fails)
    rehearse(CONFIGS["mixtral"]())
    assert not noted


def test_a_router_on_a_near_tie_condemns_no_model(monkeypatch):
    seeds, make = [], rehearsal._random_model

    def note(config, seed):
        seeds.append(seed)
        return make(config, seed)

    def off(self, *args, forward=GenericSection.forward):
        out = forward(self, *args)
        return out + 1 if self.is_last and out is not None and seeds[-1] == 1 else out

    monkeypatch.setattr(rehearsal, "_random_model", note)
    monkeypatch.setattr(GenericSection, "forward", off)
    rehearse(CONFIGS["mixtral"]())
    assert seeds == [1, 2]


def test_sections_that_are_wrong_for_every_seed_are_refused(monkeypatch):
    def off(self, x, position, *args, forward=GenericSection.forward):
        out = forward(self, x, position, *args)
        return out * np.float32(1.01) if self.is_last and position == 5 else out

    monkeypatch.setattr(GenericSection, "forward", off)
    with pytest.raises(ModelError, match=r"mixtral: .* differ by 1 % of the largest, 0.1 % is allowed"):
        rehearse(CONFIGS["mixtral"]())


def test_a_rehearsal_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rehearse(CONFIGS["mixtral"]())
    assert torch.equal(torch.rand(3), expected)


def test_the_same_config_is_rehearsed_once(noted):
    for _ in range(2):
        rehearse(CONFIGS["mixtral"]())
    assert len(noted) == 1
    assert json.loads(noted[0].to_json_string())["num_local_experts"] == 4
