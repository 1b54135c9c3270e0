"""Who has no certificate of the cluster, or the wrong one, while an answer is being made over TLS: refused, before
anything but the handshake is read; the answer, the slots and the memory notice nothing of it."""

import asyncio
import contextlib
import random
import socket
import ssl

import pytest

from edgellm.config import HELLO_TIMEOUT_S
from edgellm.errors import BoardError
from edgellm.manager.client import ClusterClient
from edgellm.wire import messages as m
from edgellm.wire.credentials import client_credentials
from edgellm.wire.dial import connect
from edgellm.wire.tls import Channel
from tests.agent.hostile import BEFORE, DEADLINE_S, PROMPT, growing_less_than, mid_answer, until
from tests.certificates import make_cluster
from tests.fakes import Boards, ask, generate, run

pytestmark = pytest.mark.usefixtures("logged")
HIDDEN = m.Hidden(1, 1, 0, 1, 1, (1,), bytes(16))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return make_cluster(tmp_path_factory.mktemp("tls"), ["b0", "b1", "b2", "b3"])


@pytest.fixture
def at_last(tmp_path, cluster):
    """`mid_answer` over TLS."""
    return lambda **kwargs: mid_answer(tmp_path, cluster, **kwargs)


async def say(agent, tls, me: m.Hello, *messages) -> str:
    """Dial as `me`, say these, and give why the connection ended."""
    lost = asyncio.get_running_loop().create_future()
    try:
        peer = await connect(
            "127.0.0.1", agent.port, me, lambda *_: None, lambda _, why: lost.done() or lost.set_result(why), tls=tls
        )
    except BoardError as e:
        return str(e).partition(": ")[2]
    for message in messages:
        peer.send(message)
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await lost
    finally:
        peer.close()


def test_boards_talk_over_tls_and_the_answer_is_the_same(tmp_path, cluster):
    async def go():
        async with Boards(tmp_path, 3, tls=cluster) as boards:
            plan = await boards.form((0, 2, 4, 6))
            async with ClusterClient.dial(plan, boards.addresses, boards.client_tls) as client:
                for _ in range(2):
                    assert [c.token for c in await ask(client, PROMPT, 20)] == generate(PROMPT, 20)

    run(go())


class Careless:
    """Credentials of somebody who believes in whatever listens; `folder` None shows no certificate."""

    def __init__(self, folder):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        if folder is not None:
            self.context.load_cert_chain(folder / "cert.pem", folder / "key.pem")


POSES = "refused: a hello from {} with the certificate of {}"
REFUSED = {
    "nobody": (None, m.Hello("manager", "pc"), "it speaks TLS, and this side has no certificate"),
    "another cluster's manager": ("other/manager", m.Hello("manager", "pc"), "its certificate belongs to another"),
    "another cluster's board": ("other/boards/b0", BEFORE, "its certificate belongs to another cluster"),
    "an expired manager": ("then", m.Hello("manager", "pc"), "refused this manager's certificate: it has expired"),
    "an expired board": ("boards/old", m.Hello("board", "old"), "refused board old's certificate: it has expired"),
    "a manager before its time": ("soon", m.Hello("manager", "pc"), "refused this manager's certificate: it is not va"),
    "a board as manager": ("boards/b3", m.Hello("manager", "pc"), POSES.format("manager pc", "board b3")),
    "a board as its neighbour": ("boards/b3", BEFORE, POSES.format("board b0", "board b3")),
    "the manager as a board": ("manager", BEFORE, POSES.format("board b0", "admin pc")),
    "a board that isn't before it": ("boards/b3", m.Hello("board", "b3"), "refused: hidden states from b3; board b1 t"),
}


def test_whoever_is_not_of_the_cluster_or_not_whom_it_says_is_refused(cluster, at_last, logged):
    async def go():
        async with at_last() as at:
            for name, (folder, me, reason) in REFUSED.items():
                tls = client_credentials(cluster / folder) if folder else None
                order = HIDDEN if me.role == "board" else m.AskStatus()
                assert (await say(at.last, tls, me, order)).startswith(reason), name
            assert not at.last.connections.strangers and len(at.last.connections.peers) == 2  # b0 and the manager
            manager = m.Hello("manager", "pc")
            for folder, reason in (
                (None, "none was shown"), (cluster / "other/manager", "it belongs to another cluster"),
            ):  # fmt: skip
                said = await say(at.last, Careless(folder), manager, m.AskStatus())
                assert said == f"refused this manager's certificate: {reason}. Deploy again"
            for line in (
                "it doesn't speak TLS", "it showed no certificate", "its certificate belongs to another cluster",
                "its certificate has expired", "its certificate is not valid yet",
            ):  # fmt: skip
                assert f"ended: {line}" in logged(), line

    run(go())


def test_a_crowd_a_scan_and_garbage_before_the_handshake(cluster, at_last):
    rng = random.Random(2)

    async def go():
        async with at_last() as at, growing_less_than(20 << 20):
            manager, sockets = client_credentials(cluster / "manager"), []
            for _ in range(50):  # a port scan
                socket.create_connection(("127.0.0.1", at.last.port), DEADLINE_S).close()
            client_hello = Channel(manager.context, server_side=False).data_to_send()
            for i in range(400):
                sock = socket.socket()
                sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    sock.connect(("127.0.0.1", at.last.port))
                sockets.append(sock)
                if i % 20 == 19:
                    await asyncio.sleep(0.01)
                if i >= 200:  # 200 say nothing, the others half a handshake, or garbage
                    data = (client_hello, client_hello[: rng.randrange(300)], rng.randbytes(500))[i % 3]
                    with contextlib.suppress(OSError):
                        sock.send(data)
            clock = asyncio.get_running_loop().time
            at.gate.set()  # the answer goes on meanwhile
            for _ in range(5):
                began_s = clock()
                async with ClusterClient.dial(at.plan, at.boards.addresses, manager) as honest:
                    assert [c.token for c in await ask(honest, PROMPT)] == generate(PROMPT, 10)
                assert clock() - began_s < HELLO_TIMEOUT_S  # nobody waits until strangers are given up
            assert len(at.last.connections.strangers) == 0  # none of them has become one
            for sock in sockets:
                sock.close()

    run(go())


def test_bytes_that_break_off_or_change_under_way_end_that_connection_alone(cluster, at_last, logged):
    rng = random.Random(3)

    async def go():
        async with at_last() as at:
            for i in range(60):
                channel = Channel(client_credentials(cluster / "boards/b0").context, server_side=False)
                reader, writer = await asyncio.open_connection("127.0.0.1", at.last.port)
                writer.write(channel.data_to_send())
                channel.receive(await reader.read(1 << 16))
                late = channel.data_to_send() + b"".join(channel.send(m.encode(BEFORE) + m.encode(HIDDEN)))
                late = bytearray(late[: rng.randrange(1, len(late))] if i % 2 else late)
                late[rng.randrange(len(late))] ^= 1 << rng.randrange(8)
                writer.write(bytes(late))
                with contextlib.suppress(OSError):
                    writer.write_eof()
                with contextlib.suppress(ConnectionError):
                    async with asyncio.timeout(DEADLINE_S):
                        while await reader.read(1 << 16):
                            pass
                writer.transport.abort()
            await until(lambda: not at.last.connections.strangers and len(at.last.connections.peers) == 2)
            assert "TLS failed" in logged()

    run(go())
