"""Which files a board lacks, and what its scripts do on this machine."""

import hashlib
import json
import subprocess
import time

import pytest

from tests.playbooks.plugins import ROOT, plugin

boards = plugin("filter", "boards")
shards = plugin("filter", "shards")


FILES = [{"name": f"layer-000{i}.safetensors", "bytes": 100 * 10**6, "sha256": str(i)} for i in range(4)]
DF = "/dev/x 1 1 {} 1% /\n"


def pushed(stdout: str, free_mb: int, least=("layer-0002.safetensors",), cache_gb="0") -> dict:
    return shards.push(stdout + DF.format(free_mb * 10**6 // 1024 + 1), FILES, list(least), "pi1", 200, cache_gb)


def test_a_board_gets_what_it_lacks():
    push = pushed("layer-0000.safetensors: OK\nlayer-0001.safetensors: FAILED\n", 1000)
    assert push["names"] == [f["name"] for f in FILES[1:]] and push["corrupt"] == ["layer-0001.safetensors"]
    assert not push["short"] and not push["problem"]


@pytest.mark.parametrize("cached_mb, short", [(0, True), (450, False)])
def test_a_board_gets_all_shards_only_if_prompts_have_room_beside_them(cached_mb, short):
    push = pushed(f"edgellm_cache_kb={cached_mb * 10**6 // 1024}\n", 700, cache_gb="0.5")
    assert push["short"] is short and not push["problem"]
    whole = "".join(f"{file['name']}: OK\n" for file in FILES)
    assert not pushed(whole, 0, cache_gb=5)["short"]  # nothing is left to push


def test_a_board_with_little_room_gets_what_it_needs():
    push = pushed("", 350)
    assert push["short"] and push["names"] == ["layer-0002.safetensors"] and not push["problem"]
    assert push["disk_bytes"] == pytest.approx(150e6, abs=2048)


def test_a_board_without_room_is_named_with_both_numbers():
    assert "has 50 MB to spare in /var/lib, but the files it must hold take 100 MB" in pushed("", 250)["problem"]


def test_corrupt_files_need_room_for_one():
    assert pushed("".join(f"{f['name']}: FAILED\n" for f in FILES), 310)["names"] == [f["name"] for f in FILES]


def test_a_section_has_its_layers_and_its_ends():
    files = [*FILES, {"name": "embedding.safetensors"}, {"name": "head.safetensors"}, {"name": "manifest.json"}]
    sections = [{"board": "pi1", "start": 0, "end": 1}, {"board": "pi2", "start": 1, "end": 4}]
    assert shards.section_files(sections, "pi1", files, ["manifest.json"]) == [
        "layer-0000.safetensors", "embedding.safetensors", "manifest.json",
    ]  # fmt: skip
    assert "head.safetensors" in shards.section_files(sections, "pi2", files, [])


# Scripts for boards, on this machine


def test_the_probe_says_what_this_machine_is():
    script = (ROOT / "ansible/roles/preflight/files/probe.sh").read_text()
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    found = boards.board_facts(done.stdout, time.time())
    assert done.returncode == 0 and abs(found["clock_ahead_s"]) < 60
    assert found["ram_kb"] > 0 and found["rooms"]["/opt/edgellm/versions"]["free_kb"] > 0


def test_a_model_with_another_tokenizer_takes_its_shards_from_the_model_before(tmp_path):
    old, new, other = (tmp_path / name for name in ("old", "new", "other"))
    for folder in (old, new, other):
        folder.mkdir()

    def entry(name: str, content: bytes) -> dict:
        return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    held = {"layer-0000.safetensors": b"weights", "head.safetensors": b"head", "tokenizer.json": b"old words"}
    for name, content in held.items():
        (old / name).write_bytes(content)
    (old / "manifest.json").write_text(json.dumps({"files": [entry(*item) for item in held.items()]}, indent=1))
    (other / "layer-0001.safetensors").write_bytes(b"without a manifest")
    (old / "head.safetensors").write_bytes(b"h3ad")  # a bit has flipped since

    wanted = {**held, "tokenizer.json": b"new words", "layer-0001.safetensors": b"without a manifest"}
    files = [entry(*item) for item in wanted.items()]

    def run(script: str) -> str:
        text = (ROOT / "ansible/roles/shards/files" / script).read_text()
        done = subprocess.run(
            ["sh", "-c", text, "sh", new], input=shards.checksums(files), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0
        return done.stdout

    assert run("link.sh").split() == ["layer-0000.safetensors", "head.safetensors"]
    assert (new / "layer-0000.safetensors").samefile(old / "layer-0000.safetensors")
    push = shards.push(run("read.sh"), files, [], "pi1", 0)
    assert sorted(push["names"]) == ["head.safetensors", "layer-0001.safetensors", "tokenizer.json"]
    assert push["corrupt"] == ["head.safetensors"]
    assert run("link.sh") == ""


@pytest.mark.parametrize("script", sorted((ROOT / "ansible/roles").rglob("*.sh")), ids=lambda p: p.name)
def test_scripts_are_sound(script):
    subprocess.run(["sh", "-n", script], check=True, timeout=20)
