"""The protocol without sockets: two sides that hand each other bytes."""

import pytest

from edgellm.errors import LocalProtocolError, RemoteProtocolError
from edgellm.wire import messages as m
from edgellm.wire.protocol import SMALL_BYTES, Protocol

OPEN = m.Open(1, 2, {}, ())
HIDDEN = m.Hidden(1, 2, 0, 1, 1, (1,), bytes(4))


def pair(role="manager"):
    dialler = Protocol(m.Hello(role, "a"), dials=True)
    listener = Protocol(m.Hello("board", "b"), dials=False)
    listener.receive_data(dialler.data_to_send())
    dialler.receive_data(listener.data_to_send())
    return dialler, listener


def pass_on(sender, receiver):
    return receiver.receive_data(sender.data_to_send())


def test_the_dialling_side_speaks_first_and_both_learn_who_the_other_is():
    dialler, listener = pair()
    assert (dialler.peer.role, dialler.peer.name) == ("board", "b")
    assert (listener.peer.role, listener.peer.name) == ("manager", "a")


def test_the_listening_side_says_nothing_to_a_stranger():
    assert Protocol(m.Hello("board", "b"), dials=False).data_to_send() == b""


def test_hello_and_what_follows_may_come_in_one_piece():
    listener = Protocol(m.Hello("board", "b"), dials=False)
    got = listener.receive_data(m.encode(m.Hello("manager", "a")) + m.encode(m.Ping(7)))
    assert got[1:] == [m.Ping(7)]


@pytest.mark.parametrize(
    "role, dialler_sends, listener_sends",
    [
        (
            "manager",
            [m.Ping(1), m.AskStatus(), m.Claim({}), m.Assign({}), m.Commit({}), m.Reach({}), OPEN, m.Start(1, 2),
             m.Close(1, 2)],
            [m.Pong(1, 2, 3), m.Claimed({}), m.Assigned({}), m.Committed({}), m.Reached({}), m.Queued(1, 2, 3),
             m.Logprobs(1, 2, 3, (4,), (0.0,)), m.Tokens(1, 2, 3, 0, (4,)), m.Prefilled(1, 2, 3),
             m.Embedded(1, 2, bytes(4))],
        ),
        ("board", [m.Ping(1), HIDDEN, m.Tokens(1, 2, 3, 0, (4,))], [m.Pong(1, 2, 3)]),
    ],
)
def test_each_side_sends_what_its_role_may(role, dialler_sends, listener_sends):
    dialler, listener = pair(role)
    for message in dialler_sends:
        dialler.send(message)
    assert pass_on(dialler, listener) == dialler_sends
    for message in listener_sends:
        listener.send(message)
    assert pass_on(listener, dialler) == listener_sends


@pytest.mark.parametrize(
    "role, message",
    [
        ("manager", HIDDEN),
        *(("board", message) for message in (m.Claim({}), m.Assign({}), m.Commit({}), m.Reach({}), OPEN)),
    ],
)
def test_what_a_role_may_not_send_is_our_error_and_theirs(role, message):
    dialler, listener = pair(role)
    with pytest.raises(LocalProtocolError, match=role):
        dialler.send(message)
    with pytest.raises(RemoteProtocolError, match=f"from a {role}"):
        listener.receive_data(m.encode(message))


def test_nothing_but_a_hello_is_taken_from_a_stranger():
    listener = Protocol(m.Hello("board", "b"), dials=False)
    with pytest.raises(RemoteProtocolError, match="before a hello"):
        listener.receive_data(m.encode(m.Ping(1)))


def test_sending_before_the_peers_hello_is_our_error():
    with pytest.raises(LocalProtocolError, match="before the peer's hello"):
        Protocol(m.Hello("manager", "a"), dials=True).send(m.Ping(1))


def test_a_refusal_is_sent_when_the_peer_errs_and_then_nothing_more():
    dialler, listener = pair()
    with pytest.raises(RemoteProtocolError):
        listener.receive_data(b"\xff\xff\xff\xff\x03")
    (refusal,) = pass_on(listener, dialler)
    assert isinstance(refusal, m.Refuse) and "4294967294 bytes" in refusal.reason
    assert listener.receive_data(m.encode(m.Ping(1))) == []
    with pytest.raises(LocalProtocolError, match="closed"):
        listener.send(m.Pong(1, 2, 3))


def test_another_version_is_refused_with_a_sentence_that_the_peer_can_read():
    dialler = Protocol(m.Hello("manager", "a", version=9, oldest=9), dials=True)
    listener = Protocol(m.Hello("board", "b"), dials=False)
    with pytest.raises(RemoteProtocolError, match="version 9"):
        listener.receive_data(dialler.data_to_send())
    (refusal,) = dialler.receive_data(listener.data_to_send())
    assert "speaks wire version 9, this edgellm speaks 4" in refusal.reason


@pytest.mark.parametrize("dials", [True, False])
def test_a_newer_peer_that_still_speaks_ours_is_met_at_ours(dials):
    me, newer = m.Hello("board", "b"), m.Hello("board", "a", version=9, oldest=4)
    old, new = Protocol(me, dials=dials), Protocol(newer, dials=not dials)
    dialler, listener = (old, new) if dials else (new, old)
    pass_on(dialler, listener)
    pass_on(listener, dialler)
    assert (old.version, new.version) == (4, 4)


def test_a_second_hello_is_refused():
    _, listener = pair()
    with pytest.raises(RemoteProtocolError, match="type 1 from a manager"):
        listener.receive_data(m.encode(m.Hello("manager", "a")))


def test_step_frames_are_bounded_by_what_the_plan_allows():
    dialler, listener = pair("board")
    most = SMALL_BYTES + 64
    listener._limit = lambda sender, message: {m.Hidden: most}[message] if sender.name == "a" else 0
    fits = m.Hidden(1, 2, 0, 1, 1, (1,), bytes(most - 32))
    assert len(fits.encode()) == most and listener.receive_data(m.encode(fits)) == [fits]
    with pytest.raises(RemoteProtocolError, match=f"{most + 4} bytes, at most {most} are allowed"):
        listener.receive_data(m.encode(m.Hidden(1, 2, 0, 1, 1, (1,), bytes(most - 28))))


def test_a_small_frame_is_taken_from_whoever_may_send_it():
    dialler, listener = pair("board")
    listener._limit = lambda sender, message: SMALL_BYTES
    listener.receive_data(m.encode(m.Hidden(1, 2, 0, 1, 1, (1,), bytes(SMALL_BYTES - 32))))
    with pytest.raises(RemoteProtocolError, match=f"at most {SMALL_BYTES} are allowed"):
        listener.receive_data(m.encode(m.Hidden(1, 2, 0, 1, 1, (1,), bytes(SMALL_BYTES - 28))))


def test_the_end_of_the_stream_inside_a_frame_is_an_error():
    _, listener = pair()
    listener.receive_data(b"\x00\x00")
    with pytest.raises(RemoteProtocolError, match="after 2 bytes"):
        listener.receive_data(b"")
