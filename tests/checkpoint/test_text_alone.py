"""Of a model for images too, its text model is split: as if it had been published alone."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.model.families.find import find_spec
from tests.checkpoint.helpers import assert_same_weights

_SIZES = dict(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=128, pad_token_id=0, eos_token_id=2,
)  # fmt: skip
MODELS = {
    "gemma3": lambda: hf.Gemma3TextConfig(**_SIZES),
    "mistral3": lambda: hf.Ministral3Config(**_SIZES, tie_word_embeddings=False),
}
BEFORE, TODAY = ("language_model.model.", "language_model.lm_head."), ("model.language_model.", "lm_head.")


def whole_folder(folder, whole, model, names):
    """Write the whole model's folder: tensors under its names, those of a vision tower among them."""
    folder.mkdir()
    inner, head = names
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("lm_head."):
            if not model.config.tie_word_embeddings:
                state[name.replace("lm_head.", head)] = value.clone()
            continue
        state[name.replace("model.", inner, 1)] = value.clone()
    prefix = "model." if names is TODAY else ""
    state |= {f"{prefix}{name}": torch.ones(3) for name in ("vision_tower.a.weight", "multi_modal_projector.b")}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    text = {k: v for k, v in model.config.to_dict().items() if k not in ("tie_word_embeddings", "eos_token_id")}
    config = {"model_type": whole, "text_config": text, "vision_config": {"model_type": "x"}, "eos_token_id": [3]}
    (folder / "config.json").write_text(json.dumps(config))
    return config


@pytest.mark.parametrize("names", [BEFORE, TODAY])
@pytest.mark.parametrize("whole", MODELS)
def test_the_text_model_alone_is_split(tmp_path, whole, names):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(MODELS[whole]())
    config = whole_folder(tmp_path / "whole", whole, model, names)
    source = open_source(str(tmp_path / "whole"))
    assert any("Its text model alone is split: it reads no images." in note for note in source.notes)
    manifest = split(source, tmp_path / "split")
    assert_same_weights(tmp_path / "split", model.state_dict())
    written = json.loads((tmp_path / "split" / "config.json").read_text())
    assert written["tie_word_embeddings"] == model.config.tie_word_embeddings
    assert (manifest.architecture, manifest.eos_token_ids) == (type(model).__name__, (3,))
    for content in (written, config):
        spec, reason = find_spec(content)
        assert spec is not None, reason
        assert (spec.model_type, spec.num_layers) == (model.config.model_type, 2)


def test_sizes_that_a_text_config_leaves_out_are_the_families():
    """As in Gemma 3's own config.json."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}  # fmt: skip
    spec, reason = find_spec({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    assert spec is not None, reason
    assert (spec.vocab_size, spec.num_layers, spec.max_seq_len, spec.tied) == (262208, 34, 131072, True)
    mixers = [layer.mixer for layer in spec.layers]
    assert {(m.heads, m.kv_heads, m.head_dim) for m in mixers} == {(8, 4, 256)}
    assert [i for i, m in enumerate(mixers) if not m.window] == [5, 11, 17, 23, 29]
    assert {m.window for m in mixers} == {0, 1024}
    full, sliding = (spec.rotaries[mixers[i].rope].frequencies[0] for i in (5, 0))
    assert full[1] == pytest.approx(1e6 ** (-2 / 256) / 8) and sliding[1] == pytest.approx(1e4 ** (-2 / 256))
