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


# Several models


def test_models_are_split_one_after_another_each_once():
    assert shards.model_steps(["phi3"], "", "int4") == [
        {"name": "model", "command": ["model", "phi3", "--quantize", "int4"]},
    ]  # fmt: skip
    steps = shards.model_steps(["./a b.gguf"], " qwen , ./a b.gguf,owner/name, ", "none")
    assert [(s["name"], s["command"][1]) for s in steps] == [
        ("model", "./a b.gguf"), ("model 1", "qwen"), ("model 2", "owner/name"),
    ]  # fmt: skip
    drafts = shards.model_steps(["phi3"], "qwen", "int4", " qwen ")
    assert [(s["name"], s["command"][1]) for s in drafts] == [("model", "phi3"), ("model 1", "qwen"), ("draft", "qwen")]
    assert drafts[-1]["command"][2:] == ["--quantize", "int4", "--drafts-for", "phi3"]


def test_a_further_model_that_is_the_default_one_or_comes_twice_counts_once():
    answers = {
        "model": {"manifest_sha256": "a" * 64}, "model 1": {"manifest_sha256": "b" * 64},
        "model 2": {"manifest_sha256": "a" * 64}, "model 3": {"manifest_sha256": "b" * 64},
    }  # fmt: skip
    assert [model["id"] for model in shards.further_models(answers)] == ["b" * 12]
    assert shards.further_models({"model": {"manifest_sha256": "a" * 64}}) == []


@pytest.mark.parametrize("of, answers", [("b", [True]), ("c", [True, False]), ("a", [True])])
def test_a_model_that_drafts_is_pushed_too_but_answers_only_if_it_is_a_further_one(of, answers):
    told = {"model": {"manifest_sha256": "a" * 64}, "model 1": {"manifest_sha256": "b" * 64}}
    found = shards.further_models({**told, "draft": {"manifest_sha256": of * 64}})
    assert [model["answers"] for model in found] == answers


FURTHER = [
    {"id": name, "folder": f"/split/{name}", "files": FILES, "measure": ["layer-0002.safetensors"]} for name in "bc"
]


def test_models_share_a_board_s_disk_in_the_order_of_the_inventory():
    names = [f["name"] for f in FILES]
    assert [f["name"] for f in shards.beside(FURTHER)] == [f"../{m}/{n}" for m in "bc" for n in names]
    said = f"layer-0000.safetensors: OK\n../b/{names[0]}: OK\n../c/{names[1]}: FAILED\n"

    def pushes(free_mb: int) -> list[dict]:
        stdout = said + DF.format(free_mb * 10**6 // 1024 + 1)
        return shards.push_further(stdout, FURTHER, "pi1", 200, 300 * 10**6)

    first, second = pushes(5000)
    assert first["names"] == names[1:] and first["whole"] == names[:1] and not first["short"]
    assert second["names"] == names and second["corrupt"] == names[1:2] and second["folder"] == "/split/c"
    first, second = pushes(950)  # 300 for the default model, 300 for b, 200 to spare: 150 for c
    assert first["names"] == names[1:] and not first["short"]
    assert second["names"] == names[2:3] and second["short"] and not second["problem"]
    assert "c" not in pushes(850)[1]["names"] and "has 50 MB to spare" in pushes(850)[1]["problem"]


def test_models_that_were_dropped_are_removed_and_the_further_ones_stay(tmp_path):
    for name in ("a", "b", "c", "old", "before"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "versions" / "1").mkdir(parents=True)
    (tmp_path / "model").symlink_to("models/a")
    (tmp_path / "current").symlink_to("versions/1")
    script = (ROOT / "ansible/roles/agent/files/prune.sh").read_text()
    script = script.replace("/var/lib/edgellm", str(tmp_path)).replace("/opt/edgellm", str(tmp_path))
    done = subprocess.run(
        ["sh", "-c", script, "sh", "1", "before", "b", "c"], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/models/old/\n")
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["a", "b", "before", "c"]


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
