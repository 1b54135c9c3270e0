"""Frames out of a byte stream, however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import RemoteProtocolError
from edgellm.wire.frames import FrameReader, encode_frame


def reader(limit=100):
    return FrameReader(lambda type_, size: limit)


def test_a_frame_is_length_type_body():
    assert encode_frame(3, b"abc") == b"\x00\x00\x00\x04\x03abc"
    assert list(reader().feed(b"\x00\x00\x00\x04\x03abc")) == [(3, b"abc")]


def test_an_empty_body_is_a_frame():
    assert list(reader().feed(b"\x00\x00\x00\x01\x05")) == [(5, b"")]


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=100)), max_size=8), st.data())
def test_any_cut_of_the_stream_gives_the_same_frames(frames, data):
    stream = b"".join(encode_frame(type_, body) for type_, body in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    got, r = [], reader()
    for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += list(r.feed(stream[a:b]))
    assert got == frames
    assert not r.partial
    r.at_end()


@given(st.binary(max_size=300))
def test_garbage_gives_frames_or_one_error_and_never_more_memory_than_the_limit(garbage):
    r = reader(limit=50)
    try:
        for _, body in r.feed(garbage):
            assert len(body) <= 50
    except RemoteProtocolError as e:
        assert "frame" in str(e)


def test_a_length_over_the_limit_is_refused_before_its_body_comes():
    with pytest.raises(RemoteProtocolError, match=r"type 7 with 4294967294 bytes, at most 100"):
        list(reader().feed(b"\xff\xff\xff\xff\x07"))


def test_an_http_request_is_refused_by_its_length():
    with pytest.raises(RemoteProtocolError, match="at most 100"):
        list(reader().feed(b"GET / HTTP/1.1\r\nHost: pi1\r\n\r\n"))


def test_length_zero_is_refused():
    with pytest.raises(RemoteProtocolError, match="length 0"):
        list(reader().feed(b"\x00\x00\x00\x00\x01"))


@pytest.mark.parametrize(
    "stream, message",
    [
        (b"\x00\x00", "after 2 bytes of a prefix, expected 5"),
        (b"\x00\x00\x00\x0d\x03abc", "after 3 bytes of a body, expected 12"),
    ],
)
def test_a_stream_that_ends_inside_a_frame_says_where(stream, message):
    r = reader()
    assert list(r.feed(stream)) == []
    assert r.partial
    with pytest.raises(RemoteProtocolError, match=message):
        r.at_end()
