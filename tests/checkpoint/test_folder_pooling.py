"""How a model's authors make an embedding goes from its source into the manifest."""

import json

import pytest
from gguf_files import write_gguf
from helpers import save, tiny_model

from edgellm.checkpoint.folder_pooling import read_pooling
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from edgellm.shards.manifest import Manifest

ST = "sentence_transformers.models"
MODULES = [{"idx": 0, "name": "0", "path": "", "type": f"{ST}.Transformer"},
           {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{ST}.Pooling"},
           {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{ST}.Normalize"}]  # fmt: skip
DENSE = {"idx": 3, "name": "3", "path": "3_Dense", "type": f"{ST}.Dense"}


def flags(*on: str) -> dict:
    modes = "cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"
    return {"word_embedding_dimension": 64, "include_prompt": True, **{f"pooling_mode_{m}": m in on for m in modes}}


def write(folder, config, modules=MODULES, name="1_Pooling"):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "config.json").write_text(json.dumps(config))
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(("config", "pool"), [
    (flags("mean_tokens"), "mean"),
    (flags("lasttoken"), "last"),
    (flags("cls_token"), "cls"),
    (flags("weightedmean_tokens"), "weighted_mean"),
    (flags("max_tokens"), "other"),
    (flags("cls_token", "mean_tokens"), "other"),  # one after the other
    (flags(), "other"),
    ({"embedding_dimension": 64, "pooling_mode": "lasttoken"}, "last"),
    ({"pooling_mode": ["mean"]}, "mean"),
    ({"pooling_mode": ["mean", "cls"]}, "other"),
    ({"pooling_mode": 3}, "other"),
])  # fmt: skip
def test_each_way_of_pooling(tmp_path, config, pool):
    write(tmp_path, config)
    assert read_pooling(tmp_path) == pool
    (tmp_path / "modules.json").unlink()
    assert read_pooling(tmp_path) == pool


@pytest.mark.parametrize(("modules", "pool"), [
    (MODULES[:2], "last"),
    ([{**MODULES[0], "type": "sentence_transformers.base.modules.transformer.Transformer"}, MODULES[1]], "last"),
    ([*MODULES, DENSE], "other"),
    ([*MODULES, MODULES[1]], "other"),
    (MODULES[:1], ""),
    ([MODULES[0], {**MODULES[1], "path": "../x"}], "other"),
    ([MODULES[0], {**MODULES[1], "path": ".."}], "other"),
    ([MODULES[0], {**MODULES[1], "path": "elsewhere"}], ""),
    ({}, "other"),
    ([3], "other"),
])  # fmt: skip
def test_further_modules_count(tmp_path, modules, pool):
    write(tmp_path / "source", flags("lasttoken"), modules)
    write(tmp_path / "x", flags("mean_tokens"), None)
    assert read_pooling(tmp_path / "source") == pool


def test_a_folder_that_does_not_say_and_one_that_is_damaged(tmp_path):
    assert read_pooling(tmp_path) == ""
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"modules\.json is not JSON"):
        read_pooling(tmp_path)


def test_the_manifest_has_it_and_one_of_another_model_is_as_before(tmp_path):
    source, out = save(tiny_model("llama"), tmp_path / "source"), tmp_path / "out"
    plain = split(open_source(str(source)), out)
    assert plain.pooling == "" and "pooling" not in json.loads((out / "manifest.json").read_text())
    write(source, flags("lasttoken"))
    told: list[str] = []
    again = split(open_source(str(source)), out, note=told.append)
    assert again.pooling == Manifest.read(out).pooling == "last" and again.shards == plain.shards
    assert told[-1] == f"{out}: updated pooling. The shards are unchanged."


def test_the_owner_is_told_of_a_way_that_boards_can_not_do(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "source")
    write(folder, flags("max_tokens"))
    note = open_source(str(folder)).notes[0]
    assert note == f"{folder}: its authors make embeddings in a way that edgellm doesn't know; it makes none."


@pytest.mark.parametrize(("number", "pool"), [(0, ""), (1, "mean"), (2, "cls"), (3, "last")])
def test_a_gguf_names_it_by_number(tmp_path, number, pool):
    def add(writer):
        writer.add_uint32("llama.pooling_type", number)

    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), extra=add)
    assert split(open_source(str(path)), tmp_path / "out").pooling == pool
