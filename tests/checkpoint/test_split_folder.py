"""Splitting Hugging Face folders: what comes out is what transformers would load."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError, ModelError, UsageError
from edgellm.model.generic.packed import pack
from edgellm.shards.manifest import Manifest
from tests.checkpoint.helpers import CONFIGS, assert_same_weights, encodings, read_split, save, tiny_model
from tests.tiny import write_tokenizer

GPT2_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@pytest.mark.parametrize("shard_size", ["1GB", "60KB"], ids=["single", "indexed"])
@pytest.mark.parametrize("family", CONFIGS)
def test_split_holds_what_transformers_loads(tmp_path, family, shard_size):
    model = tiny_model(family)
    folder = save(model, tmp_path / "source", max_shard_size=shard_size)
    assert (folder / "model.safetensors.index.json").exists() == (shard_size == "60KB")
    manifest = split(open_source(str(folder)), tmp_path / "out")
    assert manifest == Manifest.read(tmp_path / "out")
    assert [s.name for s in manifest.shards] == [
        "embedding.safetensors", "layer-0000.safetensors", "layer-0001.safetensors", "head.safetensors",
    ]  # fmt: skip
    assert (manifest.vocab_size, manifest.hidden_size, manifest.num_layers) == (96, 64, 2)
    assert manifest.eos_token_ids == ((3,) if family == "gpt2" else (2,))
    assert_same_weights(tmp_path / "out", model.state_dict(), GPT2_CONV1D if family == "gpt2" else ())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtypes_are_kept_without_quantize(tmp_path, dtype):
    model = tiny_model("llama", dtype)
    split(open_source(str(save(model, tmp_path / "source"))), tmp_path / "out")
    assert_same_weights(tmp_path / "out", model.state_dict())


def test_checkpoint_of_the_base_model_and_ignored_buffers_are_accepted(tmp_path):
    model = tiny_model("gpt2")
    folder = save(model, tmp_path / "source")
    state = {
        n.removeprefix("transformer."): t.contiguous() for n, t in model.state_dict().items() if n != "lm_head.weight"
    }
    state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    state["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, folder / "model.safetensors")
    split(open_source(str(folder)), tmp_path / "out")
    assert_same_weights(tmp_path / "out", model.state_dict(), GPT2_CONV1D)


def test_rotary_buffers_of_old_llama_checkpoints_are_ignored(tmp_path):
    model = tiny_model("llama")
    folder = save(model, tmp_path / "source")
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(state, folder / "model.safetensors")
    split(open_source(str(folder)), tmp_path / "out")
    assert_same_weights(tmp_path / "out", model.state_dict())


def test_int8_packs_linear_and_embedding_weights_only(tmp_path):
    model = tiny_model("llama", torch.bfloat16)
    manifest = split(open_source(str(save(model, tmp_path / "source"))), tmp_path / "out", "int8")
    found, state = read_split(tmp_path / "out"), model.state_dict()
    layer = encodings(tmp_path / "out", "layer-0000.safetensors")
    assert {n: e for n, e in layer.items() if e != "int8"} == {
        "input_layernorm.weight": "bf16", "post_attention_layernorm.weight": "bf16",
    }  # fmt: skip
    assert encodings(tmp_path / "out", "embedding.safetensors") == {"model.embed_tokens.weight": "int8"}
    assert encodings(tmp_path / "out", "head.safetensors") == {"model.norm.weight": "bf16", "lm_head.weight": "int8"}
    weight = state["model.layers.1.mlp.up_proj.weight"].float()
    got = found["layer:layers.1.mlp.up_proj.weight"]
    assert (got - weight).abs().max() <= weight.abs().max() / 127
    # ram_bytes: packed weights as they lie in the file, norms widened to float32
    packed = sum(state[f"model.layers.0.{n}"].numel() // 32 * 34 for n, e in layer.items() if e == "int8")
    assert manifest.shards[1].ram_bytes == packed + 2 * 64 * 4


def test_int4_keeps_embedding_and_head_at_int8(tmp_path):
    model = tiny_model("qwen2-tied")
    split(open_source(str(save(model, tmp_path / "source"))), tmp_path / "out", "int4")
    layer = encodings(tmp_path / "out", "layer-0001.safetensors")
    assert {n for n, e in layer.items() if e == "int4"} == {n for n in layer if n.endswith("_proj.weight")}
    assert layer["self_attn.q_proj.bias"] == "f32"
    assert encodings(tmp_path / "out", "head.safetensors")["lm_head.weight"] == "int8"
    found, weight = read_split(tmp_path / "out"), model.state_dict()["model.layers.0.mlp.down_proj.weight"]
    assert (found["layer:layers.0.mlp.down_proj.weight"] - weight).abs().max() <= (
        weight.max() - weight.min()
    ) / 30 + 1e-3


def test_packing_piece_by_piece_equals_packing_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.checkpoint.shard._CHUNK_ELEMENTS", 64 * 7)
    model = tiny_model("gpt2")
    split(open_source(str(save(model, tmp_path / "source"))), tmp_path / "out", "int4")
    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "layer-0000.safetensors", "pt") as f:
        got = f.get_tensor("attn.c_attn.weight")
    assert torch.equal(got, pack(model.state_dict()["transformer.h.0.attn.c_attn.weight"].t().contiguous(), "int4"))


def test_rows_that_are_no_multiple_of_32_stay_plain(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=32, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3, pad_token_id=0
    )
    save(AutoModelForCausalLM.from_config(config), tmp_path / "source")
    split(open_source(str(tmp_path / "source")), tmp_path / "out", "int4")
    layer = encodings(tmp_path / "out", "layer-0000.safetensors")
    assert layer["self_attn.q_proj.weight"] == "f32" and layer["mlp.down_proj.weight"] == "int4"


def test_tokenizer_files_are_listed_with_their_hashes(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "source")
    write_tokenizer(folder, ["a", "b"])
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text('{"bos_token": "a"}')
    (folder / "README.md").write_text("not taken")
    manifest = split(open_source(str(folder)), tmp_path / "out")
    names = {f.name for f in manifest.files}
    assert names == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | {s.name for s in manifest.shards} | {
        "manifest.json"
    }


def test_eos_ids_come_from_the_generation_config_first(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "source")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 2, 5]}')
    assert open_source(str(folder)).eos_token_ids == (5, 2)


@pytest.mark.parametrize("value", ["[1, -2]", '"x"', "[[1]]", "true"])
def test_bad_eos_ids_are_refused(tmp_path, value):
    folder = save(tiny_model("llama"), tmp_path / "source")
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
    with pytest.raises(CheckpointError, match="expected token ids"):
        open_source(str(folder))


def _edit(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.layers.1.mlp.up_proj.weight"), r"tensor model.layers.1.mlp.up_proj.weight is missing; "
         r"LlamaForCausalLM needs it with shape \[96, 64\] \(20 of 21 are there\)"),
        (lambda s: s.pop("lm_head.weight"), "tensor lm_head.weight is missing"),
        (lambda s: s.update(extra=torch.ones(2)), "tensor extra: LlamaForCausalLM has no such tensor"),
        (lambda s: s.update({"model.norm.weight": torch.ones(65)}), r"has shape \[65\], the config says \[64\]"),
        (lambda s: s["model.norm.weight"].fill_(float("nan")), "model.norm.weight: 64 of 64 values .* not finite"),
        (lambda s: s["lm_head.weight"][3, 4:6].fill_(float("inf")), "lm_head.weight: 2 of .* not finite"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_refused(tmp_path, change, message):
    folder = save(tiny_model("llama"), tmp_path / "source")
    _edit(folder, change)
    with pytest.raises(CheckpointError, match=message):
        split(open_source(str(folder)), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists() and not list((tmp_path / "out").glob("*.part"))


def test_missing_expert_is_refused(tmp_path):
    folder = save(tiny_model("mixtral"), tmp_path / "source")
    names = [n for n in load_file(folder / "model.safetensors") if "experts" in n]
    _edit(folder, lambda s: s.pop(names[1]))
    with pytest.raises(CheckpointError, match="has shape|don't combine|missing"):
        split(open_source(str(folder)), tmp_path / "out")


def test_unknown_architecture_quantize_and_source_are_refused(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "source")
    source = open_source(str(folder))
    with pytest.raises(UsageError, match="--quantize is 'int2', expected one of none, int8, int4"):
        split(source, tmp_path / "out", "int2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonesuch"}))
    with pytest.raises(ModelError, match="nonesuch"):
        open_source(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CheckpointError, match="method gptq"):
        open_source(str(folder))
    with pytest.raises(CheckpointError, match="SOURCE is a Hugging Face folder, a .gguf file, a hub id"):
        open_source("no such thing")
    with pytest.raises(CheckpointError, match="give the folder that holds it"):
        open_source(str(folder / "model.safetensors"))


def test_pickles_are_refused_and_never_opened(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "source")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only as pytorch_model.bin, a pickle"):
        open_source(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="neither model.safetensors nor"):
        open_source(str(folder))


def test_index_that_lies_is_refused(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "source", max_shard_size="60KB")
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    first = good["weight_map"]["lm_head.weight"]
    shutil.move(folder / first, folder / "aside")
    with pytest.raises(CheckpointError, match=f"{first} is missing"):
        open_source(str(folder))
    shutil.move(folder / "aside", folder / first)
    for file in ("../x.safetensors", ".."):
        index.write_text(json.dumps({"weight_map": good["weight_map"] | {"lm_head.weight": file}}))
        with pytest.raises(CheckpointError, match="not a plain file name"):
            open_source(str(folder))
    other = next(f for f in good["weight_map"].values() if f != first)
    for change, message in (
        ({"lm_head.weight": other}, "but the index says"),
        ({"ghost": other}, "lacks tensor ghost"),
    ):
        index.write_text(json.dumps({"weight_map": good["weight_map"] | change}))
        with pytest.raises(CheckpointError, match=message):
            split(open_source(str(folder)), tmp_path / "out")
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        open_source(str(folder))


def _index_of_parts(names):
    return json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})


def _index_with_a_ghost(names):  # as of a model whose output is tied to its embedding
    return json.dumps({"weight_map": dict.fromkeys([*names, "ghost"], "model.safetensors")})


def _index_with_a_gap(names):
    return json.dumps({"weight_map": dict.fromkeys(sorted(names)[1:], "model.safetensors")})


@pytest.mark.parametrize("stale", [_index_of_parts, _index_with_a_ghost, _index_with_a_gap, lambda names: "{"])
def test_a_whole_file_counts_more_than_the_index_beside_it(tmp_path, stale):
    model = tiny_model("llama")
    folder = save(model, tmp_path / "source")
    (folder / "model.safetensors.index.json").write_text(stale(load_file(folder / "model.safetensors")))
    source = open_source(str(folder))
    assert "the weights are those of model.safetensors alone." in source.notes[0]
    split(source, tmp_path / "out")
    assert_same_weights(tmp_path / "out", model.state_dict())


def test_an_index_that_agrees_with_the_whole_file_needs_no_word(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "source")
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")})
    )
    assert not any("alone" in note for note in open_source(str(folder)).notes)


def test_a_shard_in_an_older_format_is_refused_with_the_command_that_makes_a_new_one(tmp_path):
    from edgellm.errors import ManifestError
    from edgellm.files import sha256_of
    from edgellm.model.generic.shardfile import ShardFile
    from edgellm.shards.manifest import SHARD_FORMAT

    manifest = split(open_source(str(save(tiny_model("llama"), tmp_path / "source"))), tmp_path / "out", "int4")
    shard = manifest.shards[1]
    path = tmp_path / "out" / shard.name
    path.write_bytes(path.read_bytes().replace(SHARD_FORMAT.encode(), b"edgellm-shard-1", 1))
    wanted = "'edgellm-shard-1', expected edgellm-shard-2: split the model again, with edgellm split SOURCE --out"
    with pytest.raises(ManifestError, match=wanted) as caught:
        ShardFile(tmp_path / "out", replace(shard, sha256=sha256_of(path)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_that_fails_whatever_the_prompt_is_is_said_when_splitting(tmp_path):
    from tokenizers import pre_tokenizers

    from tests.tiny import write_tokenizer

    source, notes = save(tiny_model("llama"), tmp_path / "source"), []
    write_tokenizer(source, sorted(pre_tokenizers.ByteLevel.alphabet())[:200])
    for template, words in (("{{ tools | length }}", "TypeError: object of type 'NoneType'"), ("{{ 1 }}", None)):
        (source / "chat_template.jinja").write_text(template)
        split(open_source(str(source)), tmp_path / "out", note=notes.append)
        said = [n for n in notes if "chat template of" in n]
        assert (words is None and not said) or (words in said[0] and str(source) in said[0])
        notes.clear()


@pytest.mark.parametrize("wrong", [{"top_p": 1.5}, {"top_k": "50"}, {"temperature": -1}, {"repetition_penalty": 0}])
def test_a_sampling_that_no_question_could_use_is_refused(tmp_path, wrong):
    folder = save(tiny_model("llama"), tmp_path / "source")
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, **wrong}))
    with pytest.raises(CheckpointError, match="source: the sampling that its authors advise can.t be used"):
        split(open_source(str(folder)), tmp_path / "out")


def test_a_built_in_model_that_was_split_in_an_older_format_is_split_again(tmp_path, monkeypatch):
    from edgellm.checkpoint.builtin import BUILTIN
    from edgellm.cli import models
    from edgellm.manager import local

    out = tmp_path / "smollm2-135m"
    split(open_source(str(save(tiny_model("llama"), tmp_path / "source"))), out)
    calls = []
    monkeypatch.setattr(local, "models_dir", lambda: tmp_path)
    monkeypatch.setattr(models, "split_source_to", lambda *args, **options: calls.append(args[1]))
    assert models.builtin_model() == out and calls == [out]  # without the sampling that its model card says
    (out / "generation_config.json").write_text(json.dumps(BUILTIN["smollm2-135m"].sampling))
    calls.clear()
    assert models.builtin_model() == out and calls == []
    path = out / "embedding.safetensors"
    path.write_bytes(path.read_bytes().replace(b"edgellm-shard-2", b"edgellm-shard-1", 1))
    assert models.builtin_model() == out and calls == [out]
    path.unlink()
    assert models.builtin_model() == out and calls == [out, out]
