"""plan and split as a user sees them."""

import json

import pytest

from tests.cli.commands import CONTEXT, call, fails
from tests.fakes import make_manifest, make_plan


@pytest.fixture
def manifest(tmp_path):
    """Six layers of 100 MB."""
    from dataclasses import replace

    manifest = make_manifest()
    shards = tuple(replace(s, bytes=100_000_000, ram_bytes=100_000_000) for s in manifest.shards)
    folder = tmp_path / "model"
    folder.mkdir()
    replace(manifest, shards=shards).write(folder)
    return folder


def test_plan_says_who_gets_what_and_explains(manifest):
    boards = ["--board", "pi1=700MB,pi2=700MB"]
    result = call("plan", "--manifest", manifest, *boards, "--objective", "throughput")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "pi1: layers 0-3\npi2: layers 3-6\n"  # 0-4 would be as fast, and pi1 fuller
    result = call("plan", "--manifest", manifest / "manifest.json", *boards, "--explain")
    assert result.exit_code == 0 and "pi1" in result.stdout and "MB" in result.stdout and "free" in result.stdout
    result = call("plan", "--manifest", manifest, *boards, "--json")
    plan = json.loads(result.stdout)["plan"]
    assert sum(s["end"] - s["start"] for s in plan["sections"]) == 6
    result = call("plan", "--manifest", manifest, *boards, "--json", "--explain")
    assert set(json.loads(result.stdout)) == {"plan", "explain"}


def test_a_plan_that_does_not_fit_says_offer_need_and_what_would(manifest):
    line = fails(1, "plan", "--manifest", manifest, "--board", "pi1=300MB", "--board", "pi2=200MB")
    assert "pi1" in line and "pi2" in line and "0.30 GB" in line and "0.20 GB" in line, line


def test_plan_refuses_odd_boards_and_contexts(manifest):
    plan = ["plan", "--manifest", manifest]
    assert "expected NAME=SIZE" in fails(2, *plan, "--board", "pi1")
    assert "pi1 is given 2 times" in fails(2, *plan, "--board", "pi1=1GB,pi1=2GB")
    assert "--context is 9999" in fails(2, *plan, "--board", "pi1=1GB", "--context", 9999)
    assert "does not exist" in fails(2, "plan", "--manifest", "nowhere", "--board", "pi1=1GB")
    (manifest / "manifest.json").write_text("{}")
    assert "manifest has format None" in fails(1, *plan, "--board", "pi1=1GB")


@pytest.mark.parametrize(
    ("options", "chunk", "said"),
    [
        (["--context", 8, "--chunk", 9], 8, "--chunk is 9, but a slot holds 8 tokens: chunks will have 8.\n"),
        (["--context", 8, "--chunk", 8192], 8, "--chunk is 8192, but a slot holds 8 tokens: chunks will have 8.\n"),
        (["--context", 8, "--chunk", 8], 8, ""),
        (["--context", 8], 8, ""),  # nobody asked for the default
        (["--context", 48, "--chunk", 40], 40, ""),
    ],
)
def test_no_chunk_is_longer_than_the_context(manifest, options, chunk, said):
    result = call("plan", "--manifest", manifest, "--board", "pi1=2GB", "--json", *options)
    plan = json.loads(result.stdout)["plan"]
    assert (plan["chunk"], plan["context"], result.stderr) == (chunk, options[1], said)


def test_split_of_nonsense_says_what_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("hello")
    for source, words in (
        (tmp_path / "nowhere", "nowhere"),
        (tmp_path / "empty", "config.json"),
        (tmp_path / "text.gguf", "text.gguf"),
        ("a/b/c", "a/b/c"),
    ):
        line = fails(1, "split", source, "--out", tmp_path / "out")
        assert words in line, line
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_plan_for_the_test_model_is_as_the_cluster_holds_it(cluster):
    assert make_plan(cluster.boards.manifest, (0, 3, 6), context=CONTEXT, slots=2, chunk=16) == cluster.plan
