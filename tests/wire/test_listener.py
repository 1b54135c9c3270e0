"""Sockets with and without TLS: what dialling says, crowds before the handshake, a system out of sockets."""

import asyncio
import contextlib
import errno
import gc
import logging
import shutil
import socket

import pytest

from edgellm.errors import BoardError
from edgellm.wire import messages as m
from edgellm.wire.credentials import Credentials, client_credentials, server_credentials
from edgellm.wire.dial import connect
from edgellm.wire.listener import listen
from edgellm.wire.peer import Peer
from edgellm.wire.protocol import Protocol
from edgellm.wire.tls import Channel
from tests.certificates import make_cluster
from tests.fakes import run, until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return make_cluster(tmp_path_factory.mktemp("tls"), ["b0", "b1"])


def client_hello(credentials: Credentials) -> bytes:
    """The first bytes of a TLS handshake."""
    return Channel(credentials.context, server_side=False).data_to_send()


@contextlib.asynccontextmanager
async def board(cluster, tls: str | None = "boards/b0", name: str = "b0"):
    """A listening board that answers pings. `peers` are its connections, `heard` what came and how they ended."""

    class Board:
        peers, heard, calls = [], [], 0

    def make():
        Board.calls += 1
        peer = Peer(Protocol(m.Hello("board", name), dials=False), message, lambda peer, why: Board.heard.append(why))
        Board.peers.append(peer)
        return peer

    def message(peer, what):
        Board.heard.append(what)
        peer.send(m.Pong(what.number, 0, 0))

    listener = await listen("127.0.0.1", 0, make, tls=server_credentials(cluster / tls) if tls else None)
    await listener.start_serving()
    Board.listener, Board.port = listener, listener.sockets[0].getsockname()[1]
    try:
        yield Board
    finally:
        listener.close()
        for peer in Board.peers:
            peer.close()
        await until(lambda: all(peer._transport is None or peer._transport._sock is None for peer in Board.peers))


async def ping(port, tls, me=m.Hello("manager", "pc"), **kwargs) -> list:  # noqa: B008
    """The answer to a ping over a connection of its own."""
    got = asyncio.get_running_loop().create_future()
    peer = await connect("127.0.0.1", port, me, lambda _, x: got.set_result(x), lambda *_: None, tls=tls, **kwargs)
    peer.send(m.Ping(7))
    try:
        async with asyncio.timeout(5):
            return await got
    finally:
        peer.close()


@pytest.mark.parametrize("tls", [True, False])
def test_a_peer_that_belongs_here_is_answered(cluster, tls):
    async def go():
        async with board(cluster, "boards/b0" if tls else None) as b:
            for me, who in ((m.Hello("manager", "pc"), "manager"), (m.Hello("board", "b1"), "boards/b1")):
                theirs = client_credentials(cluster / who) if tls else None
                assert await ping(b.port, theirs, me, board="b0") == m.Pong(7, 0, 0)
            assert b.heard[0] == m.Ping(7) and b.calls == 2

    run(go())


POSES = "refused: a hello from {} with the certificate of {}"
DIALLING = {
    # who listens; with which certificate we dial, and as whom; what we are told
    "expired": ("b0", "then", "manager", "pc", "refused this manager's certificate: it has expired, by the"),
    "not yet valid": ("b0", "soon", "manager", "pc", "refused this manager's certificate: it is not valid yet"),
    "another CA": ("b0", "other/manager", "manager", "pc", "its certificate belongs to another cluster. Deploy again"),
    "expired board": ("b0", "boards/old", "board", "old", "refused board old's certificate: it has expired"),
    "board as manager": ("b0", "boards/b1", "manager", "pc", POSES.format("manager pc", "board b1")),
    "board as another": ("b0", "boards/b1", "board", "b9", POSES.format("board b9", "board b1")),
    "manager as board": ("b0", "manager", "board", "b1", POSES.format("board b1", "admin pc")),
    "expired agent": ("old", "manager", "manager", "pc", "its certificate has expired. Deploy again to renew it"),
    "agent before its time": ("young", "manager", "manager", "pc", "its certificate is not valid yet; are the clocks"),
    "agent as another": ("b1", "manager", "manager", "pc", "a hello from board b0 with the certificate of board b1"),
    "no certificate": ("b0", None, "manager", "pc", "it speaks TLS, and this side has no certificate"),
    "no TLS there": (None, "manager", "manager", "pc", "it doesn't speak TLS"),
}


@pytest.mark.parametrize("case", DIALLING)
def test_dialling_says_in_a_sentence_what_is_wrong_with_either_side(cluster, case):
    listens, dials, role, name, reason = DIALLING[case]

    async def go():
        async with board(cluster, f"boards/{listens}" if listens else None) as b:
            tls = client_credentials(cluster / dials) if dials else None
            with pytest.raises(BoardError) as e:
                await ping(b.port, tls, m.Hello(role, name), board="b0")
            assert str(e.value).startswith(f"board b0 (127.0.0.1:{b.port}): {reason}") and e.value.board == "b0"
            assert not [x for x in b.heard if not isinstance(x, str)]  # nothing of it was taken

    run(go())


def test_a_board_at_another_s_address_is_not_taken_for_it(cluster):
    async def go():
        async with board(cluster, "boards/b1", "b1") as b:
            with pytest.raises(BoardError, match="calls itself b1; is the address right"):
                await ping(b.port, client_credentials(cluster / "manager"), board="b0")

    run(go())


def test_a_renewed_certificate_serves_without_a_restart(cluster, tmp_path):
    shutil.copytree(cluster / "boards/old", tmp_path / "boards/b0")

    async def go():
        async with board(tmp_path) as b:
            manager = client_credentials(cluster / "manager")
            with pytest.raises(BoardError, match="has expired"):
                await ping(b.port, manager)
            for name in ("cert.pem", "key.pem"):
                shutil.copy(cluster / "boards/b0" / name, tmp_path / "boards/b0" / name)
            assert await ping(b.port, manager, board="b0") == m.Pong(7, 0, 0)

    run(go())


NO_TLS = {
    "http": b"GET / HTTP/1.1\r\nHost: pi1\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.7\r\n",
    "a hello": m.encode(m.Hello("manager", "pc")),
    "zeros": bytes(5000),
    "garbage that looks like a handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(700),
    "a record without end": b"\x16\x03\x03\xff\xff" + bytes(100_000),
}


@pytest.mark.parametrize("name", NO_TLS)
def test_what_is_no_handshake_gets_an_alert_and_the_end(cluster, name, caplog):
    caplog.set_level(logging.INFO)

    async def go():
        async with board(cluster) as b:
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(NO_TLS[name])
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.wait_for(reader.read(), 5)
                assert len(answer) == 7 and answer[:2] == b"\x15\x03"
            writer.transport.abort()
            assert not b.peers and not b.listener._silent and not b.listener._shaking
            assert caplog.text.count("ended: ") == 1 and "TLS" in caplog.text

    run(go())


def test_half_handshakes_and_silence_end_in_time_and_a_scan_leaves_nothing(cluster, monkeypatch, caplog):
    monkeypatch.setattr("edgellm.wire.listener.HELLO_TIMEOUT_S", 0.3)
    caplog.set_level(logging.INFO)

    async def go():
        async with board(cluster) as b:
            for _ in range(30):
                socket.create_connection(("127.0.0.1", b.port), 5).close()
            silent = await asyncio.open_connection("127.0.0.1", b.port)
            half = await asyncio.open_connection("127.0.0.1", b.port)
            half[1].write(client_hello(client_credentials(cluster / "manager")))
            for reader, writer in (silent, half):
                async with asyncio.timeout(5):
                    while await reader.read(1000):
                        pass
                writer.transport.abort()
            assert not b.listener._silent and not b.listener._shaking and not b.calls
            assert caplog.text.count("\n") == 20  # a scan doesn't fill the log
            monkeypatch.undo()
            assert await ping(b.port, client_credentials(cluster / "manager")) == m.Pong(7, 0, 0)
        assert "12 more connections ended before they had shown a certificate" in caplog.text

    run(go())


@pytest.mark.parametrize("tls", ["boards/b0", None])
def test_a_listener_that_closes_while_connections_come_leaves_no_socket(cluster, tls):
    async def go():
        async with board(cluster, tls) as b:
            dialled = [socket.create_connection(("127.0.0.1", b.port), 5) for _ in range(10)]
            await until(lambda: len(b.listener._silent) + len(b.peers) == 10)
            dialled += [socket.create_connection(("127.0.0.1", b.port), 5) for _ in range(10)]
            b.listener._accept(b.listener.sockets[0])
            b.listener.close()
            for peer in b.peers:
                peer.close()
            for sock in dialled:
                with sock, contextlib.suppress(ConnectionError):
                    await asyncio.to_thread(sock.recv, 10)  # the end: else it would wait for 5 s, and raise

    run(go())
    gc.collect()  # what was forgotten would warn now


async def crowd(port, count) -> list[socket.socket]:
    """So many connections that stay."""
    sockets = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        sockets.append(sock)
    return sockets


class Counted:
    """How many connections a listener has had, and how many of each kind at most at a time."""

    def __init__(self, listener):
        self.arrived = self.began = self.most_silent = self.most_shaking = 0
        arrived, began = listener.arrived, listener.began

        def count(pending, is_new: bool) -> None:
            (arrived if is_new else began)(pending)
            self.arrived += is_new
            self.began += not is_new
            self.most_silent = max(self.most_silent, len(listener._silent))
            self.most_shaking = max(self.most_shaking, len(listener._shaking))

        listener.arrived, listener.began = lambda p: count(p, True), lambda p: count(p, False)


@pytest.mark.parametrize("half", [False, True])
def test_crowds_are_limited_and_keep_nobody_out(cluster, half):
    async def go():
        async with board(cluster) as b:
            manager = client_credentials(cluster / "manager")
            counted = Counted(b.listener)
            sockets = await crowd(b.port, 250)
            await until(lambda: counted.arrived == 250)
            assert (len(b.listener._silent), counted.most_silent) == (64, 64)
            if half:
                for sock in sockets:
                    with contextlib.suppress(OSError):  # those that had to make room
                        sock.send(client_hello(manager))
                await until(lambda: counted.began == 64)
                assert not b.listener._silent
            assert (len(b.listener._shaking), counted.most_shaking) == ((32, 32) if half else (0, 0))
            assert await ping(b.port, manager, board="b0") == m.Pong(7, 0, 0)
            assert len(b.listener._silent) + len(b.listener._shaking) >= 31  # the crowd is still there
            for sock in sockets:
                sock.close()
            await until(lambda: not b.listener._silent and not b.listener._shaking)

    run(go())


def test_room_is_made_where_the_crowd_is():
    from edgellm.wire.listener import Listener

    class Pending:
        def __init__(self, host):
            self.host = host

        def end(self, reason):
            ended.append(self)
            del room[self]

    ended, few = [], [Pending("10.0.0.1"), Pending("10.0.0.2")]
    many = [Pending("10.0.0.9") for _ in range(10)]
    room = dict.fromkeys([few[0], *many, few[1]])
    Listener._make_room(room, 4)
    assert ended == many[:8]  # the oldest first
    Listener._make_room(room, 1)
    assert list(room) == [few[1]]


def test_a_system_out_of_sockets_is_waited_for_and_not_spun_on(cluster, monkeypatch, caplog):
    monkeypatch.setattr("edgellm.wire.listener._PAUSE_S", 0.2)

    class Short:
        """A listening socket whose system has no more for it."""

        def __init__(self, sock):
            self._sock, self.tries, self.short = sock, 0, True

        def accept(self):
            self.tries += 1
            if self.short:
                raise OSError(errno.EMFILE, "Too many open files")
            return self._sock.accept()

        def __getattr__(self, name):
            return getattr(self._sock, name)

    async def go():
        async with board(cluster) as b:
            loop, (real,) = asyncio.get_running_loop(), b.listener.sockets
            short = Short(real)
            loop.remove_reader(real)
            b.listener._resume(short)
            dial = asyncio.create_task(ping(b.port, client_credentials(cluster / "manager")))
            began_s = loop.time()
            await until(lambda: short.tries == 4)
            assert loop.time() - began_s > 2 * 0.2  # pauses that are whole, whenever the first try was
            paused = "accepts no connections for now: too many open files; tries again every 0.2 s"
            assert caplog.text.count(paused) == 1
            short.short = False
            assert await dial == m.Pong(7, 0, 0)

    run(go())


def test_an_address_that_is_taken_or_not_here_is_an_oserror_and_leaves_no_socket(cluster):
    async def go():
        async with board(cluster) as b:
            with pytest.raises(OSError) as e:
                await listen("127.0.0.1", b.port, print)
            assert e.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError):
            await listen("192.0.2.1", 0, print)

    run(go())
