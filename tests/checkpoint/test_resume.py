"""An interrupted split goes on where it was; a half-written file is never taken for a whole one."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from edgellm.checkpoint import journal as journal_module
from edgellm.checkpoint.journal import JOURNAL_NAME
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
from edgellm.errors import CheckpointError
from edgellm.files import locked, sha256_of
from edgellm.shards.manifest import Manifest
from tests.checkpoint.helpers import save, tiny_model
from tests.tiny import write_tokenizer

SHARDS = ["embedding.safetensors", "layer-0000.safetensors", "layer-0001.safetensors", "head.safetensors"]


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tiny_model("llama"), tmp_path_factory.mktemp("model") / "source")


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The manifest of an uninterrupted split."""
    return split(open_source(str(folder)), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("shard", SHARDS)
def test_goes_on_at_the_shard_where_it_stopped(tmp_path, folder, whole, shard):
    def stop(name, done, total):
        if name == shard and done > 0:
            raise Stop

    with pytest.raises(Stop):
        split(open_source(str(folder)), tmp_path, progress=stop)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    assert list(before) and sorted(before) == sorted(SHARDS[: SHARDS.index(shard)]) or shard == SHARDS[0]
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "manifest.json").exists()
    assert split(open_source(str(folder)), tmp_path) == whole
    assert all((tmp_path / name).stat().st_mtime_ns == at for name, at in before.items())
    assert not (tmp_path / JOURNAL_NAME).exists()


def test_killed_process_leaves_nothing_that_looks_whole(tmp_path, folder, whole):
    code = f"""
import os, signal
from edgellm.checkpoint.sources import open_source
from edgellm.checkpoint.split import split
def die(name, done, total):
    if name == "layer-0001.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)
split(open_source({str(folder)!r}), {str(tmp_path)!r}, progress=die)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=100)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "layer-0001.safetensors.part").exists() and not (tmp_path / "layer-0001.safetensors").exists()
    with open(tmp_path / JOURNAL_NAME, "a") as f:
        f.write('{"name": "layer-00')  # a line torn by a power loss
    os.truncate(tmp_path / "layer-0000.safetensors", 100)
    calls = []
    assert split(open_source(str(folder)), tmp_path, progress=lambda n, d, t: calls.append((n, d, t))) == whole
    assert calls[0][0] == "embedding.safetensors" and calls[0][1] == whole.embedding.bytes
    assert calls[-1][1] == calls[-1][2] == sum(s.bytes for s in whole.shards)
    assert not list(tmp_path.glob("*.part"))


def test_second_run_changes_nothing(tmp_path, folder):
    first = split(open_source(str(folder)), tmp_path)
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    calls = []
    assert split(open_source(str(folder)), tmp_path, progress=lambda *a: calls.append(a)) == first
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == times
    assert [c[0] for c in calls] == ["manifest.json"]


def _cut_off(*args):
    raise Stop


def _times(folder, pattern):
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.glob(pattern)}


def test_changed_files_beside_the_weights_are_taken_over_and_shards_stay(tmp_path, folder):
    copy, out, notes = tmp_path / "copy", tmp_path / "out", []
    shutil.copytree(folder, copy)
    write_tokenizer(copy, ["a", "b"])
    (copy / "chat_template.jinja").write_text("OLD {{ messages[0].content }}")
    first, shards = split(open_source(str(copy)), out), _times(out, "*.safetensors")

    (copy / "chat_template.jinja").write_text("NEW {{ messages[0].content }}")
    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    second = split(open_source(str(copy)), out, note=notes.append)
    assert (out / "chat_template.jinja").read_text().startswith("NEW") and second.eos_token_ids == (7, 9)
    assert notes == [
        f"{out}: updated chat_template.jinja, generation_config.json, eos_token_ids. The shards are unchanged."
    ]
    assert second.shards == first.shards and second.sha256 != first.sha256 and _times(out, "*.safetensors") == shards
    assert all(sha256_of(out / f.name) == f.sha256 for f in second.files)
    assert not (out / JOURNAL_NAME).exists() and not list(out.glob(".*"))

    (copy / "chat_template.jinja").unlink()  # what is gone there is gone here
    third = split(open_source(str(copy)), out)
    assert not (out / "chat_template.jinja").exists() and "chat_template.jinja" not in {f.name for f in third.files}
    assert split(open_source(str(copy)), out) == third and _times(out, "*.safetensors") == shards


def test_a_manifest_of_format_1_is_written_again_and_the_shards_stay(tmp_path, folder, whole):
    notes: list[str] = []
    split(open_source(str(folder)), tmp_path)
    path, shards = tmp_path / "manifest.json", _times(tmp_path, "*.safetensors")
    content = json.loads(path.read_text()) | {"format": 1}
    for name in ("kv_scales_per_token", "kv_window_tokens", "state_bytes", "touched_bytes_per_token"):
        del content[name]
    path.write_text(json.dumps(content))
    assert split(open_source(str(folder)), tmp_path, note=notes.append) == whole
    assert notes == [f"{tmp_path}: updated manifest.json. The shards are unchanged."]
    assert json.loads(path.read_text())["format"] == 2 and _times(tmp_path, "*.safetensors") == shards


def test_taking_files_over_can_be_cut_off_anywhere(tmp_path, folder, monkeypatch):
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(folder, copy)
    split(open_source(str(copy)), out)
    shards = _times(out, "*.safetensors")
    (copy / "generation_config.json").write_text('{"eos_token_id": 7}')
    with monkeypatch.context() as patch:
        patch.setattr("edgellm.checkpoint.split.Manifest.write", _cut_off)
        with pytest.raises(Stop):
            split(open_source(str(copy)), out)
    assert not (out / "manifest.json").exists()
    assert split(open_source(str(copy)), out).eos_token_ids == (7,) and _times(out, "*.safetensors") == shards


def test_force_writes_every_shard_again(tmp_path, folder, whole):
    split(open_source(str(folder)), tmp_path)
    before = _times(tmp_path, "*.safetensors")
    assert split(open_source(str(folder)), tmp_path, replace=True) == whole
    assert _times(tmp_path, "*.safetensors") == before
    assert split(open_source(str(folder)), tmp_path, force=True) == whole
    assert not set(before.items()) & set(_times(tmp_path, "*.safetensors").items())


def test_files_of_the_model_before_are_gone(tmp_path, folder):
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text('{"eos_token_id": 7}')
    split(open_source(str(copy)), out)
    (copy / "generation_config.json").unlink()
    other = save(tiny_model("llama", seed=1), tmp_path / "other")
    (other / "generation_config.json").unlink()
    split(open_source(str(other)), out, force=True)
    assert not (out / "generation_config.json").exists()


def test_finished_split_that_lost_a_shard_is_mended(tmp_path, folder, whole):
    split(open_source(str(folder)), tmp_path)
    (tmp_path / "layer-0001.safetensors").unlink()
    calls = []
    assert split(open_source(str(folder)), tmp_path, progress=lambda n, d, t: calls.append((n, d))) == whole
    assert sum(name == "embedding.safetensors" for name, _ in calls) == 1


def test_another_quantize_or_source_is_refused_until_forced(tmp_path, folder):
    split(open_source(str(folder)), tmp_path)
    with pytest.raises(CheckpointError, match="split of source with --quantize none, not .* int8. Give another"):
        split(open_source(str(folder)), tmp_path, "int8")
    assert split(open_source(str(folder)), tmp_path, "int8", force=True).quantization == "int8"
    other = save(tiny_model("llama", seed=1), tmp_path.with_name("other"))
    with pytest.raises(CheckpointError, match="--force to replace"):
        split(open_source(str(other)), tmp_path, "int8")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="manifest.*--force"):
        split(open_source(str(folder)), tmp_path)


def test_unfinished_split_of_something_else_is_refused_until_forced(tmp_path, folder, whole):
    def stop(name, done, total):
        if name == "layer-0001.safetensors":
            raise Stop

    with pytest.raises(Stop):
        split(open_source(str(folder)), tmp_path, "int8", progress=stop)
    with pytest.raises(CheckpointError, match="unfinished split of source with --quantize int8"):
        split(open_source(str(folder)), tmp_path)
    assert split(open_source(str(folder)), tmp_path, force=True) == whole


def test_foreign_folders_are_left_alone(tmp_path, folder):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds thesis.txt but no split"):
        split(open_source(str(folder)), tmp_path)
    with pytest.raises(CheckpointError, match="source's own folder"):
        split(open_source(str(folder)), folder, force=True)
    assert split(open_source(str(folder)), tmp_path, force=True) and (tmp_path / "thesis.txt").read_text() == "mine"


def test_two_splits_into_one_folder_dont_mix(tmp_path, folder):
    with locked(tmp_path), pytest.raises(CheckpointError, match="another split writes here"):
        split(open_source(str(folder)), tmp_path)
    split(open_source(str(folder)), tmp_path)


def test_changed_source_is_another_source(tmp_path, folder):
    copy = save(tiny_model("llama"), tmp_path / "copy")
    before = open_source(str(copy)).fingerprint
    assert open_source(str(copy)).fingerprint == before
    os.utime(copy / "model.safetensors", ns=(1, 1))
    assert open_source(str(copy)).fingerprint != before


def test_too_little_space_is_said_before_any_work(tmp_path, folder, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("edgellm.checkpoint.split.shutil.disk_usage", lambda p: usage)
    with pytest.raises(CheckpointError, match=r"the shards need \d+ bytes, 1000 are free"):
        split(open_source(str(folder)), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {JOURNAL_NAME}


def test_disk_that_fills_up_leaves_no_part_and_can_go_on(tmp_path, folder, whole, monkeypatch):
    from edgellm.checkpoint import shard

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.fsync
    calls = []

    def fsync(fd):
        calls.append(fd)
        if os.readlink(f"/proc/self/fd/{fd}").endswith("layer-0001.safetensors.part"):
            full(fd)
        real(fd)

    monkeypatch.setattr(shard.os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"layer-0001.safetensors: the disk is full: this file needs \d+") as e:
        split(open_source(str(folder)), tmp_path)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "manifest.json").exists()
    monkeypatch.setattr(shard.os, "fsync", real)
    assert split(open_source(str(folder)), tmp_path) == whole


def test_journal_with_garbage_starts_over(tmp_path, folder, whole):
    head = journal_module.Journal(tmp_path, {"fingerprint": whole.source_sha256})
    head.start()
    with open(tmp_path / JOURNAL_NAME, "ab") as f:
        f.write(b'\xff\xfe\n[1]\n{"name": 3}\n' + json.dumps({"no": "shard"}).encode() + b"\n")
    assert split(open_source(str(folder)), tmp_path) == whole
    assert Manifest.read(tmp_path) == whole
