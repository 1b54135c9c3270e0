"""Every message has its literal bytes, both ways; docs/wire.md describes the same."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import RemoteProtocolError
from edgellm.wire import messages as m

LITERAL = [
    (m.Hello("manager", "pc"), b'EDGE\x00\x04{"role":"manager","name":"pc","oldest":4}'),
    (m.Refuse("too late"), b"too late"),
    (m.Ping(258), b"\0\0\0\0\0\0\x01\x02"),
    (m.Pong(1, 2, 3), b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03"),
    (m.AskStatus(258), b"\0\0\x01\x02"),
    (m.Status({"name": "pi1"}, 9), b'\0\0\0\x09{"name":"pi1"}'),
    (m.Assign({"board": "pi1"}, 9), b'\0\0\0\x09{"board":"pi1"}'),
    (m.Assigned({"error": None}, 9), b'\0\0\0\x09{"error":null}'),
    (m.Claim({"replaces": None, "epoch": 7}, 9), b'\0\0\0\x09{"replaces":null,"epoch":7}'),
    (m.Claimed({"error": None, "epoch": 6}, 9), b'\0\0\0\x09{"error":null,"epoch":6}'),
    (m.Commit({"epoch": 7}, 9), b'\0\0\0\x09{"epoch":7}'),
    (m.Committed({"error": "pi1 is stopping"}, 9), b'\0\0\0\x09{"error":"pi1 is stopping"}'),
    (m.Reach({"boards": {"pi2": ["h", 1]}}, 9), b'\0\0\0\x09{"boards":{"pi2":["h",1]}}'),
    (m.Reached({"boards": {}}, 9), b'\0\0\0\x09{"boards":{}}'),
    (
        m.Open(1, 2, {"a": 1}, (5, 258)),
        b'\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x07\0\0\0\x02{"a":1}\x05\0\0\0\x02\x01\0\0',
    ),
    (
        m.Opened(1, 2, 258, True, 3, (64, 256)),
        b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\x01\x02\x01\0\0\0\x03\x40\0\0\0\0\x01\0\0",
    ),
    (m.Queued(1, 2, 3), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03"),
    (m.Start(1, 2, 258, True), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\x01\x02\x01"),
    (
        m.Hidden(1, 2, 3, 4, 1, (1,), b"\0\0\x80?", drafts=15),
        b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\0\x01\0\0\0\x04\x01\0\x0f\0\x01\0\0\0\0\0\x80?",
    ),
    (
        m.Tokens(1, 2, 3, 1, (4, 258)),
        b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\x01\0\x04\0\0\0\x02\x01\0\0",
    ),
    (
        m.Tokens(1, 2, 3, 0, (4,), (258, 5)),
        b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\x02\x04\0\0\0\x02\x01\0\0\x05\0\0\0",
    ),
    (m.Close(1, 2), b"\0\0\0\x01\0\0\0\0\0\0\0\x02"),
    (m.Closed(1, 2, {}), b"\0\0\0\x01\0\0\0\0\0\0\0\x02{}"),
    (m.Failed(1, 2, 1, "busy"), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\x01\0busy"),
    (m.Failed(1, 2, 4, "cut", "pi3"), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\x04\x03pi3cut"),
    (m.Logits(1, 2, 3, b"\0\0\x80?"), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\x80?"),
    (
        m.Logprobs(1, 2, 3, (4, 5), (-1.0, 0.0)),
        b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\x04\0\0\0\x05\0\0\0\0\0\x80\xbf\0\0\0\0",
    ),
    (m.Prefilled(1, 2, 3), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03"),
    (m.Embedded(1, 2, b"\0\0\x80?"), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\x80?"),
    (
        m.Trace(1, 2, 1, b"\0\0\x80?", 3, 4, 5, 9),
        b"\0\0\0\x09\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0\x02\0\0\0\x04\0\0\0\x05\0\0\0\x01\0\0\x80?",
    ),
    (
        m.Traced(1, 2, 1, b"\0\0\x80?", 4, 9),
        b"\0\0\0\x09\0\0\0\x01\0\0\0\x02\0\0\0\x04\0\0\0\x01\0\0\x80?",
    ),
]


@pytest.mark.parametrize("message, body", LITERAL, ids=lambda v: type(v).__name__)
def test_literal_bytes_both_ways(message, body):
    assert message.encode() == body
    assert type(message).decode(body) == message
    assert m.encode(message) == (1 + len(body)).to_bytes(4, "big") + bytes([message.TYPE]) + body
    assert len(body) <= message.LIMIT


def test_every_message_has_a_literal_and_a_type_of_its_own():
    assert {type(message) for message, _ in LITERAL} == set(m.MESSAGES)
    assert len(m.BY_TYPE) == len(m.MESSAGES)


def test_a_decode_step_costs_one_hidden_state_and_less_than_64_bytes():
    hidden = bytes(3072 * 4)
    assert len(m.encode(m.Hidden(1, 2, 3, 4, 1, (1,), hidden))) - len(hidden) <= 64


@pytest.mark.parametrize("kind", m.MESSAGES)
@given(body=st.binary(max_size=80))
def test_any_body_decodes_or_is_refused(kind, body):
    try:
        message = kind.decode(body)
    except RemoteProtocolError:
        return
    assert isinstance(message, kind)


def _hidden(position: int, count: int, pass_len: int, logits: int, size: int) -> bytes:
    return bytes(12) + struct.pack(">IIIB3x", position, count, pass_len, logits) + bytes(size)


@pytest.mark.parametrize(
    "kind, body, reason",
    [
        (m.Hello, b"EDGF\x00\x03{}", "starts with b'EDGF'"),
        (m.Hello, b'EDGE\x00\x01{"role":"manager","name":""}', "version 1, this edgellm speaks 4"),
        (m.Hello, b'EDGE\x00\x09{"role":"manager","name":"","oldest":5}', "versions 5 to 9, this edgellm speaks 4"),
        (m.Hello, b'EDGE\x00\x09{"role":"manager","name":""}', "version 9, this edgellm speaks 4"),
        (m.Hello, b'EDGE\x00\x04{"role":"manager","name":"","oldest":5}', "oldest must be a version up to 4"),
        (m.Hello, b'EDGE\x00\x04{"role":"manager","name":"","oldest":"4"}', "oldest must be a version up to 4"),
        (m.Hello, b'EDGE\x00\x04{"role":"root","name":""}', "role must be manager or board"),
        (m.Ping, b"123", "3 bytes, expected 8"),
        (m.AskStatus, b"123", "3 bytes, expected 4"),
        (m.Status, b"123", "status: 3 bytes, expected at least 4"),
        (m.Status, b"\0\0\0\x01[1]", "JSON is not an object"),
        (m.Status, bytes(4) + b"[" * 100_000, "not JSON"),
        (m.Claim, b"\0\0\0\x017", "claim: JSON is not an object"),
        (m.Commit, b'\0\0\0\x01{"epoch":NaN}', "commit: not JSON"),
        (m.Open, b"\0" * 19, "19 bytes, expected at least 20"),
        (m.Open, b"\0" * 16 + b"\xff\xff\xff\xff", "20 bytes, expected 17179869200"),
        (m.Opened, b"\0" * 16 + b"\2" + bytes(4), "batches 2, expected 0 or 1"),
        (m.Opened, b"\0" * 12, "12 bytes, expected at least 21"),
        (m.Opened, bytes(21 + 6), "6 bytes of checkpoints"),
        (m.Opened, bytes(21 + 4 * 257), "1028 bytes of checkpoints, at most 256"),
        (m.Queued, bytes(15), "15 bytes, expected 16"),
        (m.Start, bytes(16) + b"\2", "speculate 2, expected 0 or 1"),
        (m.Hidden, bytes(25) + b"\1" + bytes(10), "encoding 1, this edgellm knows 0"),
        (m.Hidden, _hidden(0, 3, 4, 0, 16), "16 bytes of ids and tensor for 3 tokens"),
        (m.Hidden, _hidden(0, 0, 4, 0, 16), "16 bytes of ids and tensor for 0 tokens"),
        (m.Hidden, _hidden(0, 2, 4, 0, 8), "8 bytes of ids and tensor for 2 tokens"),
        (m.Hidden, _hidden(0, 1 << 31, 1 << 31, 0, 8), "8 bytes of ids and tensor for 2147483648 tokens"),
        (m.Hidden, _hidden(5, 1, 4, 0, 8), "up to 6 in a pass of length 4"),
        (m.Hidden, _hidden(0, 1, 4, 2, 8), "2 choices in a step of 1, at most 16"),
        (m.Hidden, _hidden(0, 20, 20, 17, 160), "17 choices in a step of 20, at most 16"),
        (m.Hidden, _hidden(0, 1, 1, 1, 8)[:26] + b"\x10" + bytes(9), "room for 16 drafts, at most 15"),
        (m.Tokens, bytes(18), "0 bytes of ids, expected those of 1 to 16"),
        (m.Tokens, bytes(18 + 68), "68 bytes of ids"),
        (m.Tokens, bytes(18 + 6), "6 bytes of ids"),
        (m.Tokens, b"\0" * 16 + b"\x09\0" + bytes(4), "finish 9"),
        (m.Tokens, b"\0" * 17 + b"\x02" + bytes(8), "0 bytes of ids"),
        (m.Tokens, b"\0" * 17 + b"\x10" + bytes(68), "16 drafts, at most 15"),
        (m.Failed, b"\0" * 12 + b"\x20\0", "code 32"),
        (m.Failed, b"\0" * 13 + b"\x04pi3", "17 bytes, expected at least 18"),
        (m.Prefilled, bytes(17), "17 bytes, expected 16"),
        (m.Embedded, bytes(12), "0 bytes, expected a multiple of 4"),
        (m.Embedded, bytes(12 + 6), "6 bytes, expected a multiple of 4"),
        (m.Logprobs, bytes(16), "0 bytes, expected 8 for each of 1 to 21 tokens"),
        (m.Logprobs, bytes(16 + 8 * 22), "176 bytes, expected 8 for each"),
        (m.Logprobs, bytes(16 + 4) + b"\0\0\x80?", "no logarithm of a probability"),
        (m.Logprobs, bytes(16 + 4) + b"\0\0\xc0\x7f", "no logarithm of a probability"),
        (m.Logits, b"\0" * 16 + b"abc", "3 bytes, expected a multiple of 4"),
    ],
)
def test_bad_bodies_say_what_is_wrong(kind, body, reason):
    with pytest.raises(RemoteProtocolError, match=reason):
        kind.decode(body)


ESCAPES = "\x1b[2J\x1b]0;title\x07\x1b]52;c;cm0=\x07\n[sudo] password for me: "
SHOWN = "[2J]0;title]52;c;cm0= [sudo] password for me: "


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (m.Refuse(ESCAPES), lambda x: x.reason),
        (m.Failed(1, 2, 3, ESCAPES, "pi\x1b[2J"), lambda x: x.reason),
        (m.Claimed({"error": ESCAPES}), lambda x: x.content["error"]),
        (m.Assigned({"error": ESCAPES}), lambda x: x.content["error"]),
        (m.Committed({"error": ESCAPES}), lambda x: x.content["error"]),
        (m.Reached({"error": ESCAPES}), lambda x: x.content["error"]),
    ],
    ids=lambda x: type(x).__name__,
)
def test_sentences_carry_nothing_that_a_terminal_or_a_log_would_obey(message, text):
    decoded = type(message).decode(message.encode())
    assert text(decoded) == SHOWN
    assert getattr(decoded, "board", "").isprintable()
