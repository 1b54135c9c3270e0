"""Strangers on the boards' network: refused at the door, at no cost to memory or to answers."""

import datetime as dt
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.boards.conftest import MAX_TOKENS, PROMPT, Answers
from tests.boards.harness import PORT, figure

MARGIN = 20 << 20
DAY = dt.timedelta(days=1)


def identity(folder: Path, *, ca: Path | None, days: tuple[int, int]) -> Path:
    """A manager's certificate, valid between two days from now, signed by the CA in `ca` or one made up."""
    key = ec.generate_private_key(ec.SECP256R1())
    ca_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other")])
    if ca:
        ca_key = serialization.load_pem_private_key((ca / "ca.key").read_bytes(), None)
        issuer = x509.load_pem_x509_certificate((ca / "ca.pem").read_bytes()).subject
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder().issuer_name(issuer)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "manager")]))
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY).not_valid_after(now + days[1] * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier("edgellm:manager")]), False)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .sign(ca_key, hashes.SHA256())
    )  # fmt: skip
    folder.mkdir()
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


@pytest.fixture
def steady(cluster, controller, reference):
    """Answers go on meanwhile, and every agent keeps its memory and its process."""
    controller.ask(PROMPT, 10)
    before = {b: (b.agent_bytes(), b.agent_started()) for b in cluster.boards}
    with Answers(controller, reference):
        yield
    for board, (was_bytes, started) in before.items():
        assert board.agent_started() == started
        assert board.agent_bytes() - was_bytes < MARGIN, f"{board}: {was_bytes} bytes before"
    assert controller.ask(PROMPT, 5)["tokens"] == reference["tokens"][:5]


def probe(controller, kind: str, *args: object) -> dict:
    return json.loads(controller.python("-m", "tests.boards.probe", kind, *args).text.splitlines()[-1])


def test_a_peer_without_a_valid_certificate_is_refused(cluster, controller, steady, tmp_path):
    board, ca = cluster.boards[0], controller.config / "ca"
    cases = {
        "certificate required": None,
        "unknown ca": identity(tmp_path / "other", ca=None, days=(-1, 100)),
        "expired": identity(tmp_path / "expired", ca=ca, days=(-100, -1)),
        "certificate": identity(tmp_path / "not yet", ca=ca, days=(2, 100)),
    }
    for why, folder in cases.items():
        for _ in range(5):
            answer = probe(controller, "tls", board.host, PORT, *([folder] if folder else []))
            assert answer["received"] == 0
            assert why in answer["refused"]


def test_the_probe_would_be_heard_with_a_valid_certificate(cluster, controller, tmp_path):
    good = identity(tmp_path / "id", ca=controller.config / "ca", days=(-1, 100))
    assert probe(controller, "tls", cluster.boards[0].host, PORT, good)["received"] >= 500


def test_a_peer_without_tls_gets_no_answer(cluster, controller, steady):
    answer = probe(controller, "plain", cluster.boards[0].host, PORT)
    assert answer["received"] < 16, "more than a TLS alert"


def test_a_port_scan_finds_ssh_and_the_agent_and_disturbs_nothing(cluster, controller, steady):
    for board in cluster.boards:
        assert probe(controller, "scan", board.host, 0)["open"] == [22, PORT]


def test_a_thousand_idle_connections_cost_next_to_nothing(cluster, controller, reference):
    controller.ask(PROMPT, 10)
    board = cluster.boards[0]
    before = board.agent_bytes()
    idle = controller.start("python", "-m", "tests.boards.probe", "idle", board.host, PORT, stdin=True)
    idle.until(lambda: "opened" in idle.text, 60, "1000 connections")
    grown = board.agent_bytes() - before
    asking = controller.asking(PROMPT, MAX_TOKENS)
    asking.after(2)
    grown = max(grown, board.agent_bytes() - before)
    assert asking.answer(120) == reference["text"]
    assert controller.status()["serving"]
    idle.end_input()
    idle.wait(30)
    held = json.loads(idle.text.splitlines()[-1])["held"]
    figure(f"agent's memory with 1000 idle connections, {held} of them held to the end: grown by", grown / 1e6, "MB")
    assert grown < MARGIN
    assert board.agent_bytes() - before < MARGIN
