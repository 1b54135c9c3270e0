"""What every command is tried on: an empty home, and a cluster of two boards."""

import pytest

from tests.cli.commands import Cluster
from tests.tiny import environment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home without an ssh-agent, and an empty working folder."""
    for name, value in environment(tmp_path).items():
        if name.startswith("XDG_") or name == "HOME":
            monkeypatch.setenv(name, value)
    for name in ("EDGELLM_CLUSTER", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def own(tmp_path_factory):
    """A cluster for one test."""
    cluster = Cluster(tmp_path_factory.mktemp("own"))
    yield cluster
    cluster.stop()
