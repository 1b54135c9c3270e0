"""Lines, clients that go away or read slowly, and boards that are lost in the middle of an answer."""

import json
import socket
import time

import pytest

from edgellm.server import asking, sse
from tests.cli.commands import answer_to
from tests.server.serving import Serving, events_of, user

CHAT = "/v1/chat/completions"
LONG = {"messages": user("Why?"), "max_tokens": 2500, "speculate": False, "stream": True}


def begin(served, body=LONG):
    """Ask, and return the response and its pieces once the first of them is here."""
    request = served.http.build_request("POST", CHAT, json=body)
    response = served.http.send(request, stream=True)
    assert response.status_code == 200
    pieces = response.iter_text()
    return response, pieces, next(pieces)


def read_until(pieces, text, so_far=""):
    while text not in so_far:
        so_far += next(pieces)
    return so_far


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"stream": False}], ids=str)
def test_a_client_that_goes_away_frees_its_slots_at_once(slow, fields):
    body = json.dumps({**LONG, **fields}).encode()
    with socket.create_connection(("127.0.0.1", slow.port)) as s:
        s.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        slow.wait(lambda: slow.cluster.free_slots() != [2, 2])
    began_s = time.monotonic()
    slow.wait_free()
    assert time.monotonic() - began_s < 5  # the answers would take 25 s


def test_who_waits_in_line_is_told_where_and_leaves_it_without_a_trace(slow):
    open_ = [begin(slow) for _ in range(2)]
    waiting, pieces, first = begin(slow)
    read_until(pieces, "in line, position 1", first)
    last, its, first = begin(slow)
    read_until(its, "in line, position 2", first)
    waiting.close()
    read_until(its, "in line, position 1")
    for response, _, _ in open_:
        response.close()
    read_until(its, '"content":"')
    last.close()
    slow.wait_free()


def test_a_full_line_is_refused_with_when_to_ask_again(slow, monkeypatch):
    monkeypatch.setattr("edgellm.agent.door.MAX_LINE", 1)
    short = slow.chat("Why?", max_tokens=5)  # from which the estimate comes
    assert short.status_code == 200
    open_ = [begin(slow) for _ in range(3)]
    refused = slow.chat("Why?", stream=True)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (503, "busy", "server_error"), error
    assert error["queue"]["position"] == 2 and error["queue"]["eta_seconds"] > 0
    assert int(refused.headers["retry-after"]) >= 1 and "wait already" in error["message"]
    for response, _, _ in open_:
        response.close()
    slow.wait_free()


def test_pings_keep_a_connection_while_nothing_comes(slow, monkeypatch):
    monkeypatch.setattr(asking, "_ACCEPTED_S", 0.01)
    monkeypatch.setattr(asking, "WAITING_S", 0.02)
    slow.cluster.pace.delay_s = 0.1
    response, pieces, first = begin(slow)
    assert read_until(pieces, ": ping\n\n", first)
    response.close()
    slow.cluster.pace.delay_s = 0.0
    slow.wait_free()


def test_progress_of_a_long_prompt_is_told(served):
    text = served.chat("y" * 1500, max_tokens=2, stream=True).text
    assert ": prompt: " in text and " of 1500 tokens" in text
    told = served.events(CHAT, {"messages": user("z" * 1500), "max_tokens": 2, "return_progress": True})
    progress = [c["prompt_progress"] for c in told[:-1] if "prompt_progress" in c]
    assert progress and all(p["total"] == 1500 and 0 < p["processed"] <= 1500 for p in progress)


def test_a_client_that_reads_nothing_costs_a_bounded_buffer_and_is_hung_up_on(served, monkeypatch):
    monkeypatch.setattr(sse, "WRITE_TIMEOUT_S", 0.5)
    sent = []
    write = sse._write

    async def counted(send, piece, more=True):
        await write(send, piece, more)
        sent.append(len(piece))

    monkeypatch.setattr(sse, "_write", counted)
    body = json.dumps({**LONG, "logprobs": True, "top_logprobs": 20}).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", served.port))
        s.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        served.wait(lambda: sent)
        served.wait_free()
    assert sum(sent) < 1_000_000  # of 5.6 MB: what the kernel and uvicorn buffer


def test_a_board_lost_in_mid_stream_costs_time_only(tmp_path):
    served = Serving(tmp_path)
    try:
        served.cluster.pace.delay_s = 0.01
        _, pieces, first = begin(served, {**LONG, "max_tokens": 200})
        text = read_until(pieces, '"content":"', first)
        served.cluster.call(served.cluster.boards.stop(1))
        *chunks, done = events_of(text + "".join(pieces))
        assert done == "[DONE]" and chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == answer_to("Why?", 200)
    finally:
        served.stop()


def test_a_stream_that_can_not_go_on_ends_with_an_error_and_never_looks_whole(tmp_path):
    served = Serving(tmp_path, patience_s=0.3)
    try:
        served.cluster.pace.delay_s = 0.01
        _, pieces, first = begin(served)
        text = read_until(pieces, '"content":"', first)
        for i in range(2):
            served.cluster.call(served.cluster.boards.stop(i))
        *chunks, last = events_of(text + "".join(pieces))
        assert last["error"]["code"] == "cluster_unavailable" and "[DONE]" not in chunks
        assert all(c["choices"][0]["finish_reason"] is None for c in chunks)
        refused = served.chat("Why?")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "cluster_unavailable")
        assert "retry-after" in refused.headers
    finally:
        served.stop()


def test_a_bug_of_ours_is_told_as_one_and_reaches_the_log_not_the_client(served, monkeypatch, caplog):
    monkeypatch.setattr(served.models.clients["fake"].asker, "encode", lambda *_: 1 / 0)
    for stream in (False, True):
        response = served.chat("Why?", stream=stream)
        assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
        assert "division" not in response.text
    assert caplog.text.count("ZeroDivisionError") >= 2
