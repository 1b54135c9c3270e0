"""Each phase of a request has its time: its head, its body, the line, the answer."""

import socket
import time

import pytest

from edgellm.server import guard

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("head", [b"", b"GET /v1/models HTTP/1.1\r\nHost: loc"], ids=["silent", "half a head"])
def test_a_connection_without_a_request_is_closed(served, monkeypatch, head):
    monkeypatch.setattr("edgellm.server.http.HEAD_TIMEOUT_S", 0.2)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as s:
        s.sendall(head)
        assert s.recv(100) == b""


def test_a_second_request_has_its_own_time(served, monkeypatch):
    whole = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as s:
        for _ in range(2):
            s.sendall(whole)
            told = b""
            while not told.endswith(b"]}"):
                told += s.recv(4096)
        monkeypatch.setattr("edgellm.server.http.HEAD_TIMEOUT_S", 0.2)
        s.sendall(whole[:20])
        assert s.recv(100) == b""


def test_the_time_of_a_head_never_cuts_an_answer(slow, monkeypatch):
    monkeypatch.setattr("edgellm.server.http.HEAD_TIMEOUT_S", 0.1)
    began_s = time.monotonic()
    told = slow.chat("Why?", max_tokens=40, speculate=False).json()
    assert told["usage"]["completion_tokens"] == 40 and time.monotonic() - began_s > 0.2


def test_a_body_that_dribbles_is_refused(served, monkeypatch):
    monkeypatch.setattr(guard, "_BODY_TIMEOUT_S", 0.2)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as s:
        s.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert s.recv(4096).startswith(b"HTTP/1.1 408")
