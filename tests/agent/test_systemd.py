"""Words to systemd, received on a socket as systemd would; silence everywhere else."""

import os
import socket

import pytest

from edgellm.agent import systemd


@pytest.fixture
def listener(tmp_path, monkeypatch):
    """A notify socket with a path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_literal_words(listener):
    systemd.ready()
    systemd.watchdog()
    systemd.stopping()
    assert [listener.recv(1024) for _ in range(3)] == [
        b"READY=1",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_an_abstract_socket(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"edgellm-test-{os.getpid()}"
        sock.bind("\0" + name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        systemd.ready()
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("place", [None, "", "/nowhere/at/all", "vsock:2:1234", "@" + "x" * 300])
def test_silent_where_nobody_listens(place, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if place is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", place)
    systemd.ready()
    systemd.watchdog()
