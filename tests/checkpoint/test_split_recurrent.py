"""Folders of models with recurrent layers are split natively, without a trace, and compute what transformers does."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from tests.model.native_sections import NativeRing, difference, load, reference_logits
from tests.model.recurrent_models import recurrent_model

IDS = np.random.default_rng(3).integers(3, 500, 60).tolist()


@pytest.mark.parametrize("name", ["qwen3_5_odd", "qwen3_next", "lfm2_odd", "granite4_moe", "nemotron_h_moe"])
def test_a_folder_is_split(tmp_path, name):
    model = recurrent_model(name)
    model.save_pretrained(tmp_path / "checkpoint")
    manifest = split(open_source(str(tmp_path / "checkpoint")), tmp_path / "split", "none")
    sections = load(manifest, tmp_path / "split", (0, 1, manifest.num_layers))
    found = NativeRing(sections, kv_dtype="float32").logits(IDS, (60,))
    assert difference(found, reference_logits(model, IDS)) < 5e-5
    assert any(manifest.state_bytes)


def test_of_a_model_for_images_too_the_text_model_is_split(tmp_path):
    model, folder = recurrent_model("qwen3_5"), tmp_path / "checkpoint"
    model.save_pretrained(folder)
    text = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": text}
    (folder / "config.json").write_text(json.dumps(whole))
    tensors = {name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: tensor
               for name, tensor in load_file(folder / "model.safetensors").items()}  # fmt: skip
    tensors["model.visual.patch_embed.proj.bias"] = tensors["lm_head.weight"][0].clone()
    tensors["mtp.fc.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    manifest = split(open_source(str(folder)), tmp_path / "split", "int8")
    sections = load(manifest, tmp_path / "split", (0, 4))
    found = NativeRing(sections, kv_dtype="float32").logits(IDS, (60,))
    assert difference(found, reference_logits(model, IDS), np.median) < 0.1
