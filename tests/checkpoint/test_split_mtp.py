"""Splits of models with heads for multi-token prediction: from GGUFs as from folders, and without one that isn't
whole."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from edgellm.check.reference import Reference
from edgellm.checkpoint.gguf.source import GGUFSource
from edgellm.checkpoint.imagined import imagine
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.model.families.find import find_spec
from edgellm.plan import Needs, Settings
from edgellm.shards.slot_memory import kv_bytes
from tests.checkpoint.gguf_files import _ARCH as ARCHS
from tests.checkpoint.gguf_files import _gguf_tensors, _name_map, write_gguf
from tests.checkpoint.helpers import encodings
from tests.checkpoint.test_gguf_recurrent import _layer, write
from tests.model.mtp_models import Drafting, head_tensors, mtp_model, save
from tests.model.native_sections import difference, reference_logits

IDS = np.random.default_rng(3).integers(3, 500, 40).tolist()
_NAMES = {"eh_proj": "eh_proj", "enorm": "enorm", "hnorm": "hnorm", "post_norm": "shared_head_norm"}


def as_gguf(model, head) -> dict[str, np.ndarray]:
    """A head's tensors as llama.cpp's converters have them."""
    config = model.config
    block, found, shift = config.num_hidden_layers, {}, 1 if config.model_type.startswith("qwen") else 0
    layer = {}
    for name, tensor in head.layers.state_dict().items():
        part, rest = name.removeprefix("0.").split(".", 1)
        if part == "mtp_block":
            layer[rest] = tensor
        else:
            values = tensor.numpy() + (shift if part != "eh_proj" else 0)
            found[f"blk.{block}.nextn.{_NAMES[part]}.weight"] = values
    if shift:
        for rest, tensor in layer.items():
            found |= {f"blk.{block}.{theirs}": w for theirs, w in _layer(config, rest, tensor.numpy())}
        return found
    whole = SimpleNamespace(
        config=config, state_dict=lambda: {f"model.layers.{block}.{rest}": t for rest, t in layer.items()}
    )
    return found | dict(_gguf_tensors(whole, _name_map(ARCHS[config.model_type], block + 1)))


def gguf_of(model, head, tmp_path) -> GGUFSource:
    path, blocks = tmp_path / "m.gguf", model.config.num_hidden_layers + 1
    tensors = as_gguf(model, head)

    def extra(writer):
        writer.add_nextn_predict_layers(1)
        writer.add_block_count(blocks)

    def extra_with_tensors(writer):
        extra(writer)
        for name, values in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))

    if model.config.model_type == "glm4_moe":
        write_gguf(path, model, extra=extra, extra_tensors=tensors)
    else:
        write(path, "qwen3_5" if model.config.model_type == "qwen3_5_text" else "qwen3_5_moe", extra=extra_with_tensors)
    return GGUFSource(path)


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "glm4_moe"])
def test_a_gguf_s_head_drafts_what_transformers_does(tmp_path, name):
    run = Drafting(tmp_path, name, of=gguf_of)
    run.compute(IDS[:-1], 0)
    assert run.drafts(IDS) == run.expected(IDS)
    logits, _ = Reference(run.manifest, tmp_path / "split").run(IDS, len(IDS))
    assert difference(logits.numpy(), reference_logits(run.model, IDS)) < 5e-5


def test_what_a_head_takes_is_in_the_manifest_and_in_plans(tmp_path):
    model, head = mtp_model("qwen3_5_moe")
    save(model, head, tmp_path / "checkpoint")
    manifest = split(open_source(str(tmp_path / "checkpoint")), tmp_path / "split", "int8")
    stored = encodings(tmp_path / "split", "head.safetensors")
    assert {name for name in stored if not name.startswith("mtp.")} == {"model.norm.weight", "lm_head.weight"}
    spec, _ = find_spec(model.config.to_dict())
    assert stored.keys() - {"model.norm.weight", "lm_head.weight"} == spec.mtp.tensors.keys()
    plain = replace(
        manifest, mtp=None,
        shards=(*manifest.shards[:-1], replace(manifest.head, ram_bytes=manifest.head_touched_bytes)),
    )  # fmt: skip
    assert manifest.head_touched_bytes < manifest.head.ram_bytes == manifest.head_touched_bytes + manifest.mtp.ram_bytes
    settings = Settings(96, 3, 32, "float16")
    needs, without, end = Needs(manifest, settings), Needs(plain, settings), manifest.num_layers
    assert needs.total(1, 3) == without.total(1, 3)
    with_head, less = needs.of(1, end), without.of(1, end)
    assert with_head.weights - less.weights == manifest.mtp.ram_bytes
    mtp = manifest.mtp
    assert with_head.kv - less.kv == 3 * kv_bytes(mtp.kv_elements_per_token, mtp.kv_scales_per_token, 0, 96, "float16")
    assert with_head.activations > less.activations and needs.total(1, end) == with_head.total
    assert imagine(str(tmp_path / "split" / "config.json"), "int8").mtp is not None


def drop(tensors: dict) -> None:
    del tensors["mtp.norm.weight"]


def misshape(tensors: dict) -> None:
    tensors["mtp.fc.weight"] = tensors["mtp.fc.weight"][:, :64].clone()


@pytest.mark.parametrize("change", [drop, misshape])
def test_a_head_that_is_not_whole_is_left_out(tmp_path, change):
    model, head = mtp_model("qwen3_5")
    save(model, head, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    manifest = split(open_source(str(tmp_path / "checkpoint")), tmp_path / "split")
    assert manifest.mtp is None
    assert encodings(tmp_path / "split", "head.safetensors").keys() == {"model.norm.weight", "lm_head.weight"}


def test_a_head_s_own_copies_of_both_ends_are_left_out(tmp_path):
    model, head = mtp_model("glm4_moe")
    at = f"model.layers.{model.config.num_hidden_layers}."
    copies = {f"{at}embed_tokens.weight": model.model.embed_tokens.weight.clone(),
              f"{at}shared_head.head.weight": model.lm_head.weight.clone()}  # fmt: skip
    save(model, head, tmp_path / "checkpoint", **copies)
    manifest = split(open_source(str(tmp_path / "checkpoint")), tmp_path / "split")
    assert manifest.mtp is not None and len(head_tensors(model, head)) > 0
    assert "mtp.embed_tokens.weight" in encodings(tmp_path / "split", "head.safetensors")
