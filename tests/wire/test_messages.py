"""Every message has its literal bytes, both ways; docs/wire.md describes the same."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import RemoteProtocolError
from edgellm.wire import messages as m

LITERAL = [
    (m.Hello("manager", "pc"), b'EDGE\x00\x03{"role":"manager","name":"pc"}'),
    (m.Refuse("too late"), b"too late"),
    (m.Ping(258), b"\0\0\0\0\0\0\x01\x02"),
    (m.Pong(1, 2, 3), b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03"),
    (m.AskStatus(), b""),
    (m.Status({"name": "pi1"}), b'{"name":"pi1"}'),
    (m.Assign({"board": "pi1"}), b'{"board":"pi1"}'),
    (m.Assigned({"error": None}), b'{"error":null}'),
    (m.Claim({"replaces": None, "epoch": 7}), b'{"replaces":null,"epoch":7}'),
    (m.Claimed({"error": None, "epoch": 6}), b'{"error":null,"epoch":6}'),
    (m.Commit({"epoch": 7}), b'{"epoch":7}'),
    (m.Committed({"error": "pi1 is stopping"}), b'{"error":"pi1 is stopping"}'),
    (m.Reach({"boards": {"pi2": ["h", 1]}}), b'{"boards":{"pi2":["h",1]}}'),
    (m.Reached({"boards": {}}), b'{"boards":{}}'),
    (
        m.Open(1, 2, {"a": 1}, (5, 258)),
        b'\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x07\0\0\0\x02{"a":1}\x05\0\0\0\x02\x01\0\0',
    ),
    (m.Opened(1, 2, 258, True), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\x01\x02\x01"),
    (
        m.Hidden(1, 2, 3, 4, 1, (1,), b"\0\0\x80?"),
        b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\0\x01\0\0\0\x04\x01\0\0\0\x01\0\0\0\0\0\x80?",
    ),
    (
        m.Tokens(1, 2, 3, 1, (4, 258)),
        b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\x01\x04\0\0\0\x02\x01\0\0",
    ),
    (m.Close(1, 2), b"\0\0\0\x01\0\0\0\0\0\0\0\x02"),
    (m.Closed(1, 2, {}), b"\0\0\0\x01\0\0\0\0\0\0\0\x02{}"),
    (m.Failed(1, 2, 1, "busy"), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\x01busy"),
    (m.Logits(1, 2, 3, b"\0\0\x80?"), b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x03\0\0\x80?"),
    (m.Trace(1, 2, 1, b"\0\0\x80?"), b"\0\0\0\x01\0\0\0\x02\0\0\0\x01\0\0\x80?"),
    (m.Traced(1, 2, 1, b"\0\0\x80?"), b"\0\0\0\x01\0\0\0\x02\0\0\0\x01\0\0\x80?"),
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
        (m.Hello, b'EDGE\x00\x01{"role":"manager","name":""}', "version 1, this edgellm speaks 3"),
        (m.Hello, b'EDGE\x00\x03{"role":"root","name":""}', "role must be manager or board"),
        (m.Ping, b"123", "3 bytes, expected 8"),
        (m.Status, b"[1]", "JSON is not an object"),
        (m.Status, b"[" * 100_000, "not JSON"),
        (m.Claim, b"7", "claim: JSON is not an object"),
        (m.Commit, b'{"epoch":NaN}', "commit: not JSON"),
        (m.Open, b"\0" * 19, "19 bytes, expected at least 20"),
        (m.Open, b"\0" * 16 + b"\xff\xff\xff\xff", "20 bytes, expected 17179869200"),
        (m.Opened, b"\0" * 16 + b"\2", "batches 2, expected 0 or 1"),
        (m.Opened, b"\0" * 12, "12 bytes, expected 17"),
        (m.Hidden, _hidden(0, 3, 4, 0, 16), "16 bytes of ids and tensor for 3 tokens"),
        (m.Hidden, _hidden(0, 0, 4, 0, 16), "16 bytes of ids and tensor for 0 tokens"),
        (m.Hidden, _hidden(0, 2, 4, 0, 8), "8 bytes of ids and tensor for 2 tokens"),
        (m.Hidden, _hidden(0, 1 << 31, 1 << 31, 0, 8), "8 bytes of ids and tensor for 2147483648 tokens"),
        (m.Hidden, _hidden(5, 1, 4, 0, 8), "up to 6 in a pass of length 4"),
        (m.Hidden, _hidden(0, 1, 4, 2, 8), "2 choices in a step of 1, at most 16"),
        (m.Hidden, _hidden(0, 20, 20, 17, 160), "17 choices in a step of 20, at most 16"),
        (m.Tokens, bytes(17), "0 bytes of ids, expected those of 1 to 16"),
        (m.Tokens, bytes(17 + 68), "68 bytes of ids"),
        (m.Tokens, bytes(17 + 6), "6 bytes of ids"),
        (m.Tokens, b"\0" * 16 + b"\x09" + bytes(4), "finish 9"),
        (m.Failed, b"\0" * 12 + b"\x20", "code 32"),
        (m.Logits, b"\0" * 16 + b"abc", "3 bytes, expected a multiple of 4"),
    ],
)
def test_bad_bodies_say_what_is_wrong(kind, body, reason):
    with pytest.raises(RemoteProtocolError, match=reason):
        kind.decode(body)
