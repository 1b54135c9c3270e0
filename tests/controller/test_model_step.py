"""`edgellm controller model`: where a split goes, that it is made once, what is said about it."""

import hashlib
import json
import sys

import pytest
from click.testing import CliRunner

from edgellm.cli import main
from edgellm.controller.model import split_folder
from tests.tiny import split_tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    split_tiny(folder)
    return folder / "checkpoint"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words):
        done = CliRunner().invoke(main, ["controller", "model", *map(str, words)])
        return json.loads(done.stdout) if done.exit_code == 0 else done

    return run


def test_a_model_is_split_once_and_described(run, checkpoint, tmp_path):
    told = run(checkpoint)
    folder = split_folder(str(checkpoint), "none")
    assert told["changed"] and told["folder"] == str(folder) and folder.is_relative_to(tmp_path / "cache")
    names = [f["name"] for f in told["files"]]
    assert names[0] == "manifest.json" and sorted(names) == sorted(p.name for p in folder.iterdir())
    for file in told["files"]:
        content = (folder / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert told["total_bytes"] == sum(p.stat().st_size for p in folder.iterdir())
    assert told["manifest_sha256"] == told["files"][0]["sha256"]
    shards = ["layer-0002.safetensors", "layer-0004.safetensors", "head.safetensors"]  # of five layers
    assert [n for n in told["measure"] if n.endswith(".safetensors")] == shards
    assert {"manifest.json", "config.json", "tokenizer.json"} <= set(told["measure"])
    assert told["path"] == "native"

    assert run(checkpoint) == {**told, "changed": False}


def test_a_split_that_is_there_is_not_looked_into_again(run, checkpoint, tmp_path, monkeypatch):
    told = run(checkpoint)
    monkeypatch.setattr(sys.modules["edgellm.cli.controller.model"], "split_source_to", None)
    assert run(checkpoint) == {**told, "changed": False}
    (split_folder(str(checkpoint), "none") / "layer-0001.safetensors").write_bytes(b"short")
    assert run(checkpoint).exit_code  # it would be split again


def test_a_changed_checkpoint_takes_its_forerunners_place(run, checkpoint, tmp_path):
    import shutil

    mine = tmp_path / "mine"
    shutil.copytree(checkpoint, mine)
    first = run(mine)
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
    second = run(mine)
    assert second["changed"] and second["folder"] == first["folder"]
    assert second["manifest_sha256"] != first["manifest_sha256"]
    assert not run(mine)["changed"]


def test_a_changed_template_is_taken_over_and_shards_stay(run, checkpoint, tmp_path):
    import shutil

    mine = tmp_path / "mine"
    shutil.copytree(checkpoint, mine)
    first = run(mine)
    (mine / "chat_template.jinja").write_text("{{ messages[0].content }}")
    second = run(mine)
    assert second["changed"] and second["manifest_sha256"] != first["manifest_sha256"]
    files = [{f["name"]: f["sha256"] for f in told["files"]} for told in (first, second)]
    assert {name for name in files[1] if files[0].get(name) != files[1][name]} == {
        "manifest.json", "chat_template.jinja",
    }  # fmt: skip
    assert not run(mine)["changed"]


def test_a_lost_shard_is_split_again(run, checkpoint):
    told = run(checkpoint)
    (split_folder(str(checkpoint), "none") / "layer-0001.safetensors").unlink()
    again = run(checkpoint)
    assert again["changed"] and again["manifest_sha256"] == told["manifest_sha256"]


def test_quantizations_do_not_clash(run, checkpoint):
    told = [run(checkpoint, "--quantize", q) for q in ("none", "int8", "int4")]
    assert all(t["changed"] for t in told) and len({t["folder"] for t in told}) == 3
    assert not run(checkpoint, "--quantize", "int8")["changed"]


def test_a_folder_that_split_made_is_taken_as_it_is(run, checkpoint):
    told = run(checkpoint.parent / "split")
    assert not told["changed"] and told["folder"] == str(checkpoint.parent / "split")


def test_a_folder_that_split_made_otherwise_or_that_is_damaged_is_refused(run, checkpoint, tmp_path):
    import shutil

    done = run(checkpoint.parent / "split", "--quantize", "int8")
    assert done.exit_code == 2 and "was split with --quantize none, not int8" in done.stderr
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint.parent / "split", damaged)
    (damaged / "head.safetensors").write_bytes(b"short")
    done = run(damaged)
    assert done.exit_code == 1 and "head.safetensors has 5 bytes" in done.stderr


def test_an_unknown_source_is_one_line(run):
    done = run("no-such-model")
    assert done.exit_code == 1 and len(done.stderr.strip().splitlines()) == 1 and not done.stdout


@pytest.mark.parametrize(
    "source, quantize, name",
    [
        ("smollm2-135m", "none", "smollm2-135m"),  # where ask looks for it
        ("smollm2-135m", "int4", "smollm2-135m+int4"),
        ("org/Model-1.5B", "none", "org--Model-1.5B"),
        ("org/Model-int8", "none", "org--Model-int8"),
        ("org/Model", "int8", "org--Model+int8"),
    ],
)
def test_names_in_the_cache(tmp_path, source, quantize, name):
    assert split_folder(source, quantize, tmp_path) == tmp_path / name


def test_paths_in_the_cache_are_safe_and_told_apart(tmp_path):
    folders = []
    for place in ("a", "b"):
        path = tmp_path / place / ".. my model; rm -rf"
        path.mkdir(parents=True)
        folders.append(split_folder(str(path), "none", tmp_path))
    assert folders[0] != folders[1]
    assert all(f.parent == tmp_path and f.name.replace("-", "").replace("_", "").isalnum() for f in folders)


def test_a_draft_model_has_the_tokens_of_the_one_that_it_drafts_for(run, checkpoint, tmp_path):
    split_tiny(tmp_path / "same", "same", "qwen3")
    split_tiny(tmp_path / "other", "other", "qwen3", words="v")
    run(checkpoint)
    assert run(tmp_path / "same" / "same", "--drafts-for", checkpoint)["model"] == "same"
    refused = run(tmp_path / "other" / "other", "--drafts-for", checkpoint)
    assert refused.exit_code and refused.stderr.endswith(
        "edgellm: other can't draft for checkpoint: token 256 is 'v256' in other, and 'w256' in checkpoint. Choose a "
        "model of the same family.\n"
    )
