"""What an agent found right is known to the next one: written down when a section is loaded, in its state folder."""

import asyncio
import shutil
import sys

import pytest

from edgellm.agent import load, serve
from edgellm.agent.serve import AgentOptions
from edgellm.errors import ManifestError
from edgellm.shards import mapped, verified
from edgellm.shards.manifest import Manifest
from edgellm.shards.verified import Verified
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Starts an agent's memory anew, where files count as left alone for long."""
    monkeypatch.setattr(verified, "_SETTLED_NS", 0)
    (tmp_path / "boot_id").write_text("1\n")
    monkeypatch.setattr(verified, "_BOOT_ID", tmp_path / "boot_id")

    def start() -> Verified:
        files = Verified()
        for module in (mapped, load, serve):
            monkeypatch.setattr(module, "verified", files)
        return files

    return start


def test_what_is_right_is_written_down_although_another_shard_is_not(fresh, tmp_path):
    folder, state = tmp_path / "split", tmp_path / "state"
    folder.mkdir()
    manifest = make_split(random_model(CONFIGS["llama"]()), folder, "int8")
    path = folder / manifest.layer(1).name
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    fresh().keep_in(state, "b1")
    with pytest.raises(ManifestError, match="layer-0001.safetensors: SHA-256"):
        load.load_section(manifest, folder, 0, 2)
    later = fresh()
    later.keep_in(state, "b1")
    right = [s.sha256 for s in (manifest.embedding, manifest.layer(0))]
    assert set(right) < set(later._known.values()) and manifest.layer(1).sha256 not in later._known.values()
    shutil.rmtree(state)
    with pytest.raises(ManifestError, match="layer-0001.safetensors: SHA-256"):
        load.load_section(manifest, folder, 1, 2)
    path.write_bytes(good)
    assert load.load_section(Manifest.read(folder), folder, 0, 2).path == "native"


def test_an_agent_keeps_it_in_its_state_folder(fresh, tmp_path, monkeypatch):
    class Idle:
        def __init__(self, *arguments):
            self.stop = None

        async def run(self, ready):
            return None

    interval = sys.getswitchinterval()
    files = fresh()
    monkeypatch.setattr(serve, "Agent", Idle)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    try:
        asyncio.run(serve.serve(AgentOptions(tmp_path, "127.0.0.1", 0, "b1")))
    finally:
        sys.setswitchinterval(interval)
    assert files._path == tmp_path / "verified-b1.json"
