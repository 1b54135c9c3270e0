"""TLS without sockets: who is believed, who isn't and what both sides say then, and what folders hold."""

import os
import random
import shutil
import ssl

import pytest
from cryptography.hazmat.primitives import serialization

from edgellm.errors import ClusterError, RemoteProtocolError
from edgellm.wire.credentials import (
    Credentials,
    Identity,
    client_credentials,
    identity_of,
    server_credentials,
    shown_by,
)
from edgellm.wire.tls import Channel
from tests.certificates import make_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    return make_cluster(tmp_path_factory.mktemp("tls"), ["b0", "b1"])


def shake(client: Channel, server: Channel) -> list[str | None]:
    """Hand the bytes to and fro; what the client, and what the server, had to say against it."""
    said: list[str | None] = [None, None]
    for _ in range(4):
        for i, (receiver, sender) in enumerate(((server, client), (client, server))):
            data = sender.data_to_send()
            if data and said[1 - i] is None:
                try:
                    assert receiver.receive(data) == b""
                except RemoteProtocolError as e:
                    said[1 - i] = str(e)
    return said


def channel(credentials: Credentials, own: str = "our") -> Channel:
    return Channel(credentials.context, credentials.server_side, own)


def pair(cluster, dials="manager", listens="boards/b0"):
    client = channel(client_credentials(cluster / dials), "this manager's")
    return client, channel(server_credentials(cluster / listens))


def plain(receiver: Channel, pieces) -> bytes:
    return b"".join(receiver.receive(piece) for piece in pieces)


def test_both_sides_learn_whom_the_other_s_certificate_names(cluster):
    client, server = pair(cluster)
    assert (client.identity, server.identity) == (None, None)
    assert shake(client, server) == [None, None]
    assert client.done and server.done
    assert (client.identity, server.identity) == (Identity("board", "b0"), Identity("manager", "pc", admin=True))
    client, server = pair(cluster, "boards/b1")
    shake(client, server)
    assert server.identity == Identity("board", "b1")


CLOCK = "its certificate is not valid yet; are the clocks right?"
EXPIRED = "its certificate has expired. Deploy again to renew it"
STRANGE = "its certificate belongs to another cluster. Deploy again if it is yours"
REFUSED = "refused {} certificate: "
THEY = {
    EXPIRED: "it has expired, by the peer's clock. Deploy again to renew it",
    CLOCK: "it is not valid yet, by the peer's clock. Are the clocks right?",
    STRANGE: "it belongs to another cluster. Deploy again",
}


@pytest.mark.parametrize(
    "who, why",
    [
        ("then", EXPIRED),
        ("boards/old", EXPIRED),
        ("soon", CLOCK),
        ("boards/young", CLOCK),
        ("other/manager", STRANGE),
        ("other/boards/b1", STRANGE),
    ],
)
def test_a_board_refuses_such_a_certificate_and_the_other_side_is_told(cluster, who, why):
    for name in ("ca.pem", "crl.pem"):  # it would believe the board
        shutil.copy(cluster / name, cluster / who / name)
    client, server = pair(cluster, who)
    assert shake(client, server) == [REFUSED.format("this manager's") + THEY[why], why]
    assert not server.done and server.identity is None


@pytest.mark.parametrize("who, why", [("old", EXPIRED), ("young", CLOCK)])
def test_a_manager_refuses_such_a_board(cluster, who, why):
    client, server = pair(cluster, listens=f"boards/{who}")
    assert shake(client, server) == [why, REFUSED.format("our") + THEY[why]]


def test_a_manager_refuses_a_board_of_another_cluster_and_a_manager_that_listens(cluster):
    ours, theirs = client_credentials(cluster / "manager"), server_credentials(cluster / "other/boards/b1")
    assert shake(channel(ours), channel(theirs)) == [STRANGE, REFUSED.format("our") + THEY[STRANGE]]
    said = shake(*pair(cluster, "boards/b0", "manager"))
    assert said[0] == "its certificate is for the other side of a connection"


def bare_client(**options) -> Channel:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, value in options.items():
        setattr(context, name, value)
    return Channel(context, server_side=False)


def test_whoever_shows_no_certificate_learns_it_after_the_handshake(cluster):
    server = channel(server_credentials(cluster / "boards/b0"))
    client = bare_client()
    said = shake(client, server)
    assert said == ["refused our certificate: none was shown. Deploy again", "it showed no certificate"]
    assert client.done and not server.done


def test_older_tls_is_refused(cluster):
    server = channel(server_credentials(cluster / "boards/b0"))
    assert shake(bare_client(maximum_version=ssl.TLSVersion.TLSv1_2), server) == ["it doesn't speak TLS 1.3"] * 2


def test_nothing_can_be_resumed_later_so_that_every_connection_shows_its_certificate(cluster):
    client, server = pair(cluster)
    shake(client, server)
    assert plain(client, server.send(b"x")) == b"x"  # tickets would have come before it
    assert not client._tls.session.has_ticket


def test_bytes_arrive_as_they_were_sent_however_they_are_cut(cluster):
    client, server = pair(cluster)
    hello = b"".join(client.send(b"before the handshake; "))  # what there is of it, the rest follows
    server.receive(hello)
    client.receive(server.data_to_send())
    got = server.receive(client.data_to_send())
    assert got == b"before the handshake; " and server.done
    rng = random.Random(1)
    sent = rng.randbytes(1_500_000)
    for sender, receiver in ((client, server), (server, client)):
        wire = b"".join(b"".join(sender.send(sent[i : i + n])) for i, n in ((0, 1), (1, 12_288), (12_289, len(sent))))
        assert len(wire) < len(sent) * 1.01
        got, at = b"", 0
        while at < len(wire):
            step = rng.choice((1, 5, 100, 40_000))
            got += receiver.receive(wire[at : at + step])
            at += step
        assert got == sent
    client.close()
    assert server.receive(client.data_to_send()) == b"" and server.ended


def test_a_changed_byte_ends_the_connection(cluster):
    client, server = pair(cluster)
    shake(client, server)
    wire = bytearray(b"".join(client.send(bytes(100))))
    wire[50] ^= 1
    with pytest.raises(RemoteProtocolError, match="TLS failed: decryption failed or bad record mac"):
        server.receive(bytes(wire))
    assert server.data_to_send()  # the alert
    assert list(server.send(b"too late")) == []


def test_a_handshake_may_not_be_long(cluster):
    server = channel(server_credentials(cluster / "boards/b0"))
    piece = b"\x16\x03\x01\x40\x00" + b"\x01\x01\xff\xfc" + bytes(0x4000 - 4)  # a hello of 131 kB begins
    assert server.receive(piece) == b""
    more = b"\x16\x03\x01\x40\x00" + bytes(0x4000)
    with pytest.raises(RemoteProtocolError, match=r"handshake of 6\d+ bytes, expected at most 65536|TLS failed"):
        for _ in range(5):
            server.receive(more)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", bytes(64), b"\x16\x03\x01" + bytes(600)])
def test_what_is_no_tls_is_said_to_be_none(cluster, data):
    with pytest.raises(RemoteProtocolError, match="doesn't speak TLS|TLS failed"):
        channel(server_credentials(cluster / "boards/b0")).receive(data)


# Folders


def damage(folder, name, content=None):
    path = folder / name
    path.unlink() if content is None else path.write_bytes(content)
    return path


FOLDERS = {
    "no ca": (lambda f: damage(f, "ca.pem"), r"file .*/ca\.pem: no such file or directory\. Deploy again\."),
    "no key": (lambda f: damage(f, "key.pem"), r"/key\.pem: no such file"),
    "empty ca": (lambda f: damage(f, "ca.pem", b""), r"/ca\.pem: not a certificate\. Deploy again\."),
    "garbage ca": (lambda f: damage(f, "ca.pem", os.urandom(500)), r"/ca\.pem: not a certificate"),
    "half a certificate": (
        lambda f: damage(f, "cert.pem", (f / "cert.pem").read_bytes()[:300]),
        r"/cert\.pem and .*/key\.pem: one is damaged",
    ),
    "empty key": (lambda f: damage(f, "key.pem", b""), "one is damaged"),
    "another's key": (
        lambda f: damage(f, "key.pem", (f.parent / "b1/key.pem").read_bytes()),
        "the two belong to different certificates",
    ),
    "key for all": (lambda f: os.chmod(f / "key.pem", 0o640), r"others may read it \(mode 0640\), expected 0600"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_used_is_named_with_the_way_out(cluster, tmp_path, name):
    shutil.copytree(cluster / "boards", tmp_path / "boards")
    spoil, message = FOLDERS[name]
    spoil(tmp_path / "boards/b0")
    for make in (server_credentials, client_credentials):
        with pytest.raises(ClusterError, match=message):
            make(tmp_path / "boards/b0")


def test_a_key_with_a_password_is_an_error_and_no_question(cluster, tmp_path, capfd):
    shutil.copytree(cluster / "boards/b0", tmp_path / "b0")
    key = serialization.load_pem_private_key((tmp_path / "b0/key.pem").read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    (tmp_path / "b0/key.pem").write_bytes(locked)
    with pytest.raises(ClusterError, match="one is damaged"):
        server_credentials(tmp_path / "b0")
    assert capfd.readouterr() == ("", "")


def test_renewed_files_count_from_the_next_connection_on_and_half_renewed_ones_do_not(cluster, tmp_path, caplog):
    shutil.copytree(cluster / "boards/b0", tmp_path / "b")
    listens = server_credentials(tmp_path / "b")
    first = client_credentials(cluster / "manager")

    def named():
        client = channel(first)
        shake(client, channel(listens))
        return client.identity

    assert named() == Identity("board", "b0")
    before = listens.context
    assert listens.context is before
    shutil.copy(cluster / "boards/b1/cert.pem", tmp_path / "b/cert.pem")
    assert named() == Identity("board", "b0")
    assert "keeps the certificates it has: certificate files" in caplog.text
    assert named() == Identity("board", "b0") and caplog.text.count("keeps") == 1
    shutil.copy(cluster / "boards/b1/key.pem", tmp_path / "b/key.pem")
    assert named() == Identity("board", "b1")
    (tmp_path / "b/ca.pem").unlink()
    assert named() == Identity("board", "b1")


@pytest.mark.parametrize(
    "names, expected",
    [
        ([("URI", "edgellm:manager")], Identity("manager", None, admin=True)),
        ([("URI", "edgellm:manager:anna")], Identity("manager", "anna")),
        ([("URI", "edgellm:admin:anna")], Identity("manager", "anna", admin=True)),
        ([("URI", "edgellm:board:pi1"), ("DNS", "pi1")], Identity("board", "pi1")),
        ([("URI", "edgellm:board:pi1"), ("URI", "edgellm:manager")], None),
        ([("URI", "edgellm:admin:anna"), ("URI", "edgellm:manager:anna")], None),
        ([("URI", "edgellm:board:")], None),
        ([("URI", "edgellm:admin:")], None),
        ([("URI", "edgellm:manager:\x1b[2J")], None),
        ([("URI", "edgellm:board:" + "x" * 64)], None),
        ([("URI", "edgellm:managers")], None),
        ([("DNS", "edgellm:manager")], None),
        ([], None),
        (None, None),
    ],
)
def test_identity_is_the_one_uri_of_the_certificate(names, expected):
    class Shown:
        def getpeercert(self):
            return None if names is None else {"subjectAltName": tuple(names), "serialNumber": "0ABC"}

    assert shown_by(Shown()) == (expected, None if names is None else 0xABC)
    assert expected is None or identity_of([expected.uri]) == expected


@pytest.mark.parametrize(
    "folder, expected",
    [
        ("manager", Identity("manager", "pc", admin=True)),
        ("asker", Identity("manager", "anna")),
        ("old-manager", Identity("manager", None, admin=True)),
        ("boards/b0", Identity("board", "b0")),
    ],
)
def test_credentials_know_whom_their_own_certificate_names(cluster, folder, expected):
    assert client_credentials(cluster / folder).identity == expected
