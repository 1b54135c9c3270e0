"""Bytes that anyone can send to an agent's port while an answer is being made: that connection alone ends, with a
sentence in the log; the answer, the slots and the memory stay as they are."""

import asyncio
import contextlib
import random
import re
import struct

import pytest

from edgellm.errors import BoardError
from edgellm.manager.board import BoardClient
from edgellm.wire import messages as m
from edgellm.wire.frames import PREFIX, encode_frame
from tests.agent.hostile import BEFORE, BOARD, MANAGER, Stranger, mid_answer, until
from tests.fakes import Boards, connect_all, run

pytestmark = pytest.mark.usefixtures("logged")



def hidden(count: int, pass_len: int, logits: int) -> bytes:
    """A frame that says so, whatever its body has: one token's id and hidden state, less an id."""
    return encode_frame(12, struct.pack(">IQIIIB3x", 1, 1, 0, count, pass_len, logits) + bytes(16))


BEFORE_HELLO = {
    "http": (b"GET / HTTP/1.1\r\nHost: pi1\r\n\r\n", "a frame of type 47 before a hello"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), "a frame of type 0 before a hello"),
    "ssh": (b"SSH-2.0-OpenSSH_9.7\r\n", "a frame of type 50 before a hello"),
    "huge length": (b"\xff\xff\xff\xff\x01", "4294967294 bytes, at most 4096"),
    "length 0": (bytes(5), "a frame of length 0"),
    "another magic": (encode_frame(1, b"EDGF\0\3{}"), "hello starts with b'EDGF'"),
    "another version": (m.encode(m.Hello("manager", "x", 1)), "wire version 1, this edgellm speaks 4"),
    "not JSON": (encode_frame(1, b"EDGE\0\4{"), "not JSON"),
    "deep JSON": (encode_frame(1, b"EDGE\0\4" + b"[" * 4000), "not JSON"),
    "odd role": (encode_frame(1, b'EDGE\0\4{"role": [], "name": "x"}'), "role must be"),
    "a name that forges log lines": (encode_frame(1, b'EDGE\0\4{"role": "board", "name": "x\\nINFO"}'), "name"),
    "an order before hello": (m.encode(m.Ping(1)), "a frame of type 3 before a hello"),
}
AFTER_HELLO = {
    "hello again": ((MANAGER, MANAGER), "a frame of type 1 from a manager"),
    "hidden from a manager": ((MANAGER, m.Hidden(1, 1, 0, 1, 1, (1,), bytes(16))), "a frame of type 12 from a manager"),
    "open from a board": ((BOARD, m.Open(1, 1, {}, (1,))), "a frame of type 10 from a board"),
    "assign from a board": ((BOARD, m.Assign({})), "a frame of type 7 from a board"),
    "claim from a board": ((BOARD, m.Claim({})), "a frame of type 20 from a board"),
    "commit from a board": ((BOARD, m.Commit({})), "a frame of type 22 from a board"),
    "claimed from a manager": ((MANAGER, m.Claimed({})), "a frame of type 21 from a manager"),
    "claim of a list": ((MANAGER, encode_frame(20, bytes(4) + b"[1]")), "claim: JSON is not an object"),
    "a listener's answer": ((MANAGER, m.Opened(1, 1)), "a frame of type 11 from a manager"),
    "unknown type": ((MANAGER, encode_frame(200, b"")), "a frame of type 200 from a manager"),
    "huge open": ((MANAGER, PREFIX.pack((1 << 32) - 1, 10)), "type 10 with 4294967294 bytes, at most"),
    "huge hidden": ((BOARD, PREFIX.pack(1 << 30, 12)), "type 12 with 1073741823 bytes, at most 65564"),
    "huge trace": ((MANAGER, PREFIX.pack(1 << 30, 18)), "type 18 with 1073741823 bytes, at most 65568"),
    "long ping": ((MANAGER, encode_frame(3, bytes(8) + b"x")), "at most 8"),
    "short ping": ((MANAGER, encode_frame(3, b"x")), "ping: 1 bytes, expected 8"),
    "open that is short of ids": ((MANAGER, encode_frame(10, struct.pack(">IQII", 1, 1, 2, 9) + b"{}")), "expected"),
    "open without JSON": ((MANAGER, encode_frame(10, struct.pack(">IQII", 1, 1, 2, 0) + b"{{")), "not JSON"),
    "trace of another epoch": ((MANAGER, m.Trace(7, 3, 1, bytes(16))), "holds epoch 1, not epoch 7"),
    "hidden of no tokens": ((BOARD, m.Hidden(1, 1, 0, 1, 1, (), bytes(16))), "16 bytes of ids and tensor for 0 tokens"),
    "hidden of another size": ((BEFORE, m.Hidden(1, 1, 0, 1, 1, (1,), bytes(20))), "size 5 .* expected size 4"),
    "hidden with more choices than tokens": ((BEFORE, hidden(1, 1, 2)), "2 choices in a step of 1"),
    "hidden with too many choices": ((BEFORE, m.Hidden(1, 1, 0, 64, 17, (1,) * 20, bytes(320))), "17 choices .* 16"),
    "hidden of ids and no tensor": ((BEFORE, m.Hidden(1, 1, 0, 2, 1, (1, 2), b"")), "8 bytes of ids and tensor for 2"),
    "hidden of an unknown token": ((BEFORE, m.Hidden(1, 1, 0, 1, 1, (97,), bytes(16))), "token id 97; the vocabulary"),
    "hidden of a stranger": ((BOARD, m.Hidden(1, 1, 0, 1, 1, (1,), bytes(16))), "from mallory; board b1 .* from b0"),
    "no tokens": ((BOARD, m.Tokens(1, 1, 0, 0, ())), "0 bytes of ids, expected those of 1 to 16"),
    "too many tokens": ((BOARD, m.Tokens(1, 1, 0, 0, (1,) * 17)), "68 bytes of ids, expected those of 1 to 16"),
    "too many drafts": ((BOARD, m.Tokens(1, 1, 0, 0, (1,), (1,) * 32)), "type 13 with 150 bytes, at most 142"),
    "half a token": ((BOARD, encode_frame(13, bytes(18 + 6))), "6 bytes of ids"),
    "tokens with an unknown finish": ((BOARD, m.Tokens(1, 1, 0, 4, (1,))), "finish 4, the highest is 3"),
    "token of a stranger": ((BOARD, m.Tokens(1, 1, 0, 0, (1,))), "tokens from mallory; board b1 takes none"),
    "hidden past the context": ((BEFORE, m.Hidden(1, 1, 63, 65, 1, (1,) * 2, bytes(32))), "position 65.* at most 64"),
    "hidden past its own pass": ((BOARD, m.Hidden(1, 1, 9, 10, 1, (1,) * 2, bytes(32))), "positions up to 11"),
    "hidden of many tokens": ((BOARD, hidden(1 << 31, 1 << 31, 1)), "16 bytes of ids and tensor for 2"),
    "trace of a layer elsewhere": ((MANAGER, m.Trace(1, 0, 1, bytes(16))), "from layer 0; .* starts at layer 3"),
    "trace of an absurd layer": ((MANAGER, m.Trace(1, (1 << 32) - 1, 1, bytes(16))), "from layer 4294967295"),
    "trace of an absurd count": ((MANAGER, m.Trace(1, 3, (1 << 32) - 1, bytes(16))), "for 4294967295 tokens"),
    "trace past the context": ((MANAGER, m.Trace(1, 3, 65, bytes(65 * 4))), "trace of 65 tokens"),
    "trace of another size": ((MANAGER, m.Trace(1, 3, 1, bytes(20))), "20 bytes; expected 16"),
    "half a frame and the end": ((MANAGER, PREFIX.pack(100, 10), b"abc"), "stream ends after 3 bytes of a body, exp"),
}  # fmt: skip


def test_bytes_before_a_hello_end_their_connection_with_a_sentence(tmp_path, logged):
    async def go():
        async with mid_answer(tmp_path) as at:
            for name, (data, reason) in BEFORE_HELLO.items():
                for agent in at.boards.agents:
                    refusal = await (await Stranger.dial(agent, data)).refused()
                    assert reason in refusal, (name, refusal)
                    assert re.search(f"connection of .* ended: .*{re.escape(reason)}", logged()), name

    run(go())


def test_what_the_protocol_does_not_allow_after_a_hello_ends_the_connection_with_a_sentence(tmp_path, logged):
    async def go():
        async with mid_answer(tmp_path) as at:
            for name, (sent, reason) in AFTER_HELLO.items():
                if sent[0] is BEFORE:
                    continue
                stranger = await Stranger.dial(at.last, *sent)
                if name.endswith("the end"):
                    stranger.writer.write_eof()
                else:
                    refusal = await stranger.refused()
                    assert re.search(reason, refusal), (name, refusal)
                await until(lambda reason=reason: re.search(f"of mallory .* ended: .*{reason}", logged()), name)
            refusal = await (await Stranger.dial(at.first, BOARD, m.Hidden(1, 1, 0, 1, 1, (1,), bytes(16)))).refused()
            assert refusal == "hidden states from mallory; board b0 takes them from nobody"

    run(go())


def test_what_the_board_before_may_not_send_ends_its_connection_with_a_sentence(tmp_path, logged):
    """No answer is being made, because the newest connection of a board replaces the one that it has."""

    async def go():
        async with Boards(tmp_path, 2) as boards:
            await boards.form((0, 3, 6))
            for name, (sent, reason) in AFTER_HELLO.items():
                if sent[0] is BEFORE:
                    refusal = await (await Stranger.dial(boards.agents[1], *sent)).refused()
                    assert re.search(reason, refusal), (name, refusal)
                    await until(lambda reason=reason: re.search(f"of b0 .* ended: .*{reason}", logged()), name)
            await Stranger.hang_up()

    run(go())


def test_random_garbage_with_and_without_a_hello(tmp_path):
    rng = random.Random(1)

    async def go():
        async with mid_answer(tmp_path) as at:
            for i in range(150):
                stranger = await Stranger.dial(at.boards.agents[i % 2], *([MANAGER], [BOARD], [])[i % 3])
                # Half of them claim a type and a length that are allowed, so that the body is looked at.
                data = rng.randbytes(rng.choice((3, 40, 5000)))
                stranger.send(data if i % 2 else encode_frame(rng.choice((3, 5, 10, 12, 13, 14, 18)), data[:1000]))
                with contextlib.suppress(OSError):
                    stranger.writer.write_eof()
                await stranger.refused()

    run(go())


def test_a_connection_that_stops_halfway_is_closed_in_time_and_one_that_goes_on_is_not(tmp_path, monkeypatch, logged):
    monkeypatch.setattr("edgellm.wire.peer.HELLO_TIMEOUT_S", 0.6)
    monkeypatch.setattr("edgellm.wire.peer.FRAME_TIMEOUT_S", 0.6)

    async def go():
        async with mid_answer(tmp_path) as at:
            # Frames without a gap between them, none of which takes long.
            steady = await Stranger.dial(at.last, MANAGER)
            ping, pings = m.encode(m.Ping(1)), 1
            steady.send(ping[:5])
            halves = {
                "no hello within 0.6 s": [
                    await Stranger.dial(at.last),
                    await Stranger.dial(at.last, m.encode(MANAGER)[:9]),
                ],
                "half a frame, and no more within 0.6 s": [
                    await Stranger.dial(at.last, MANAGER, m.encode(m.Ping(1))[:7]),
                    await Stranger.dial(at.last, BOARD, b"\0\0"),
                ],
            }
            refusals = [(asyncio.create_task(s.refused()), reason) for reason, some in halves.items() for s in some]
            while not all(refused.done() for refused, _ in refusals):
                await asyncio.sleep(0.02)
                steady.send(ping[5:] + ping[:5])
                pings += 1
            steady.send(ping[5:])
            for _ in range(pings):
                assert isinstance(await steady.next(), m.Pong)
            assert not steady.reader.at_eof()
            for refused, reason in refusals:
                assert refused.result() == reason in logged()

    run(go())


def test_a_stranger_in_the_place_of_a_board_is_told_apart(tmp_path):
    """The manager's side: whoever listens at a board's address and is no board is named, with what it said."""

    async def http(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def go():
        server = await asyncio.start_server(http, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        with pytest.raises(BoardError, match=rf"board b9 \({host}:{port}\): a frame of type 47 before a hello"):
            await BoardClient("b9", host, port).connect()
        server.close()
        async with Boards(tmp_path, 1) as boards:
            (client,) = await connect_all(boards.addresses)
            assert (await client.status()).section is None
            client.close()

    run(go())
