"""Revoking: whose certificates stop counting, what both sides of a handshake say then, and how a name comes back."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from edgellm.cli import main
from edgellm.controller import certificates
from edgellm.controller.certificates import issue, revoke
from edgellm.controller.serving import identity_of_server
from edgellm.errors import ClusterError, TagError
from edgellm.plan import Plan, Section
from edgellm.wire.credentials import Identity, client_credentials, identity_of, read_revoked, server_credentials
from edgellm.wire.signed import Trust, sign
from edgellm.wire.tls import Channel
from tests.certificates import ensure
from tests.wire.test_tls import shake

NOW = datetime.now(UTC).replace(microsecond=0)
ANNA, BEN = Identity("manager", "anna"), Identity("manager", "ben", admin=True)
PLAN = Plan(7, "m", "ab" * 32, 4, "latency", 128, 2, 32, "float16", (Section("pi1", 0, 4),))
ADDRESSES = {"pi1": ("10.0.0.1", 7710)}


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "ca"
    ensure(folder, ["pi1", "pi2"])
    issue(folder, folder / "manager", ANNA, folder / "anna")
    issue(folder, folder / "manager", BEN, folder / "ben")
    return folder


def serial(folder: Path) -> int:
    return x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes()).serial_number


def issued(ca: Path) -> list[dict]:
    """The CA's record."""
    return json.loads((ca / "issued.json").read_text())["issued"]


def handshake(dials: Path, listens: Path) -> list[str | None]:
    """What the side that dials, and the one that listens, had to say against it."""
    client = Channel(client_credentials(dials).context, server_side=False, own="this manager's")
    return shake(client, Channel(server_credentials(listens).context, server_side=True))


def revoke_and_push(folder: Path, who: str, now: datetime = NOW) -> certificates.Revoked:
    """What a deploy does, too: everyone but the revoked gets the new list."""
    kept = {b: (folder / "boards" / b / "cert.pem").read_bytes() for b in ("pi1", "pi2")}
    done = revoke(folder, folder / "manager", who, now=now)
    for board in kept:
        for name in ("crl.pem", "revoked.json"):
            (folder / "boards" / board / name).write_bytes((folder / name).read_bytes())
    return done


def test_a_first_deploy_has_an_empty_list_that_counts_as_long_as_the_ca(folder):
    crl = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    assert list(crl) == [] and crl.is_signature_valid(ca.public_key())
    assert (crl.last_update_utc, crl.next_update_utc) == (ca.not_valid_before_utc, ca.not_valid_after_utc)
    for who in ("manager", "boards/pi1", "boards/pi2", "anna"):
        assert (folder / who / "crl.pem").read_bytes() == (folder / "crl.pem").read_bytes()
        assert read_revoked(folder / who / "revoked.json") == frozenset()
    assert handshake(folder / "manager", folder / "boards/pi1") == [None, None]


def test_a_revoked_board_is_refused_by_boards_and_by_managers(folder):
    done = revoke_and_push(folder, "pi2")
    assert done == certificates.Revoked(True, (Identity("board", "pi2"),))
    gone = "its certificate has been revoked. Deploy to it again if it is yours"
    theirs = "refused {} certificate: it has been revoked. Deploy again for a new one"
    assert handshake(folder / "boards/pi2", folder / "boards/pi1") == [theirs.format("this manager's"), gone]
    assert handshake(folder / "manager", folder / "boards/pi2") == [gone, theirs.format("our")]
    assert handshake(folder / "manager", folder / "boards/pi1") == [None, None]
    assert read_revoked(folder / "boards/pi1/revoked.json") == {serial(folder / "boards/pi2")}


def test_a_revoked_name_gets_a_new_key_at_the_next_deploy_and_the_old_one_stays_out(folder, tmp_path):
    (tmp_path / "stolen").mkdir()
    for path in (folder / "boards/pi2").iterdir():
        (tmp_path / "stolen" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "stolen/key.pem").chmod(0o600)
    revoke_and_push(folder, "pi2")
    done = ensure(folder, ["pi1", "pi2"])
    assert done.renewed == ("board pi2",)
    assert handshake(folder / "boards/pi2", folder / "boards/pi1") == [None, None]
    assert "revoked" in handshake(tmp_path / "stolen", folder / "boards/pi1")[1]
    assert not ensure(folder, ["pi1", "pi2"]).changed


def test_a_manager_is_revoked_by_name_with_all_certificates_it_ever_got(folder):
    first = serial(folder / "anna")
    issue(folder, folder / "manager", ANNA, folder / "anna-again")
    assert revoke_and_push(folder, "anna").identities == (ANNA,)
    assert read_revoked(folder / "revoked.json") == {first, serial(folder / "anna-again")}
    assert "revoked" in handshake(folder / "anna", folder / "boards/pi1")[1]
    assert not revoke(folder, folder / "manager", "anna").changed


def test_the_plans_of_a_revoked_admin_count_no_more(folder):
    signed = sign(PLAN, ADDRESSES, folder / "ben")
    trust = Trust(folder / "manager")
    assert trust.plan(signed) == (PLAN, ADDRESSES)
    revoke(folder, folder / "manager", "ben")  # a Trust that stands reads what changed
    with pytest.raises(TagError, match="epoch 7 is signed by admin ben, whose certificate has been revoked"):
        trust.plan(signed)
    assert trust.plan(sign(PLAN, ADDRESSES, folder / "manager")) == (PLAN, ADDRESSES)


def test_who_revokes_itself_has_a_new_key_at_once(folder):
    before = serial(folder / "manager")
    assert revoke(folder, folder / "manager", "pc").identities == (Identity("manager", "pc", admin=True),)
    assert serial(folder / "manager") != before and before in read_revoked(folder / "manager/revoked.json")
    assert handshake(folder / "manager", folder / "boards/pi1") == [None, None]


def test_the_server_on_a_board_is_revoked_with_it_and_not_the_other_way_round(folder):
    for board in ("pi1", "pi2"):
        issue(folder, folder / "manager", identity_of_server(board), folder / "servers" / board)
    assert revoke_and_push(folder, "server-pi1").identities == (identity_of_server("pi1"),)
    assert "revoked" in str(handshake(folder / "servers/pi1", folder / "boards/pi2"))
    assert handshake(folder / "servers/pi2", folder / "boards/pi1") == [None, None]
    done = revoke_and_push(folder, "pi2")
    assert {str(one) for one in done.identities} == {"board pi2", "manager server-pi2"}
    assert "revoked" in str(handshake(folder / "servers/pi2", folder / "boards/pi1"))


def test_a_name_that_a_board_and_a_manager_have_is_asked_back(folder):
    issue(folder, folder / "manager", Identity("manager", "pi1"), folder / "other")
    with pytest.raises(ClusterError, match="pi1 is a board and a manager. Say which: board:pi1 or manager:pi1"):
        revoke(folder, folder / "manager", "pi1")
    assert revoke(folder, folder / "manager", "manager:pi1").identities == (Identity("manager", "pi1"),)
    assert read_revoked(folder / "revoked.json") == {serial(folder / "other")}


def test_an_unknown_name_is_told_who_is_known(folder):
    with pytest.raises(ClusterError, match="nobody called 'x' has a certificate.*: anna, ben, pc, pi1, pi2"):
        revoke(folder, folder / "manager", "x")


def test_without_a_ca_nothing_is_made_by_revoking(tmp_path):
    with pytest.raises(ClusterError, match="has no ca.key. Deploy first, or attach the disk that has it"):
        revoke(tmp_path / "ca", tmp_path / "tls/manager", "x")
    assert not (tmp_path / "ca").exists()


def test_what_is_revoked_stays_so_through_renewals_of_certificates_and_ca(folder):
    revoke_and_push(folder, "pi2")
    stolen = serial(folder / "boards/pi2")
    later = NOW + timedelta(days=3650 - 399)
    assert "ca" in ensure(folder, ["pi1", "pi2"], later).renewed
    crl = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    assert [one.serial_number for one in crl] == [stolen]
    assert crl.next_update_utc == ca.not_valid_after_utc == later + timedelta(days=3650)


@pytest.mark.parametrize("name", ["crl.pem", "revoked.json"])
@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_text("x")], ids=["missing", "damaged"])
def test_a_spoilt_list_is_made_again_with_all_that_was_on_it(folder, name, spoil):
    revoke_and_push(folder, "pi2")
    spoil(folder / name)
    assert ensure(folder, ["pi1"]).changed
    gone = serial(folder / "boards/pi2")
    assert [one.serial_number for one in x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())] == [gone]
    assert read_revoked(folder / "manager/revoked.json") == {gone}


NOBODY = '{"issued": [{"serial": "1", "uri": "edgellm:x", "made": "2026-01-01"}]}'


@pytest.mark.parametrize("text", ["x", "[]", '{"issued": [{}]}', NOBODY])
def test_a_damaged_record_is_an_error_and_is_not_forgotten(folder, text):
    (folder / "issued.json").write_text(text)
    with pytest.raises(ClusterError, match="issued.json is damaged .* Put it back from a backup"):
        ensure(folder, ["pi1"])
    assert (folder / "issued.json").read_text() == text


def test_every_certificate_is_on_record_before_anybody_has_it(folder):
    known = {int(one["serial"], 16): identity_of([one["uri"]]) for one in issued(folder)}
    held = {serial(p): who for p, who in (
        (folder / "manager", Identity("manager", "pc", admin=True)), (folder / "boards/pi1", Identity("board", "pi1")),
        (folder / "boards/pi2", Identity("board", "pi2")), (folder / "anna", ANNA), (folder / "ben", BEN),
    )}  # fmt: skip
    assert held == known


def test_the_command_says_who_and_whether_one_could_plan(folder):
    places = ["--ca", str(folder), "--manager", str(folder / "manager")]
    said = CliRunner().invoke(main, ["controller", "revoke", "pi2", *places])
    assert json.loads(said.stdout) == {
        "changed": True, "who": ["board pi2"], "boards": ["pi2"], "managers": [], "admin": False
    }  # fmt: skip
    said = CliRunner().invoke(main, ["controller", "revoke", "ben", *places])
    assert json.loads(said.stdout) == {
        "changed": True, "who": ["admin ben"], "boards": [], "managers": ["ben"], "admin": True
    }  # fmt: skip
    assert json.loads(CliRunner().invoke(main, ["controller", "revoke", "ben", *places]).stdout)["changed"] is False
