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
    systemd.status("serves layers 0-12, epoch 3")
    systemd.watchdog()
    systemd.stopping()
    assert [listener.recv(1024) for _ in range(4)] == [
        b"READY=1",
        b"STATUS=serves layers 0-12, epoch 3",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_a_status_stays_one_assignment(listener):
    systemd.status("half\nREADY=1\r\n" + "x" * 1000)
    received = listener.recv(4096)
    assert received.startswith(b"STATUS=half READY=1 xx") and b"\n" not in received and len(received) < 300


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
    systemd.status("hello")
    systemd.watchdog()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),  # meant for another process
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
        ({"WATCHDOG_USEC": "30000000", "NOTIFY_SOCKET": ""}, None),
    ],
)
def test_the_watchdogs_interval(variables, expected, monkeypatch):
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval_s() == expected
