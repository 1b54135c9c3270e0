"""Where the CA is: moved out of 0.1's folder whole, on another disk or another owner's, and taken over by a copy."""

import os
import shutil
import stat
from datetime import timedelta

import pytest
from cryptography import x509

from edgellm.controller import authority, certificates
from edgellm.controller.certificates import ensure
from edgellm.errors import ClusterError
from edgellm.wire.credentials import OLD_MANAGER_URI, Identity, client_credentials, server_credentials
from tests.certificates import NOW
from tests.controller.test_revoking import handshake, issued, serial


class Home:
    """A config folder."""

    def __init__(self, folder, ca=None):
        self.folder, self.ca, self.manager = folder, ca or folder / "ca", folder / "tls/manager"

    def ensure(self, *boards, **options):
        return ensure(self.ca, self.manager, list(boards), now=NOW, **options)


@pytest.fixture
def old(tmp_path):
    """A folder as 0.1 left it: all in tls, and nothing about revocation."""
    made = tmp_path / "made"
    ensure(made, made / "manager", ["pi1", "pi2"], name="x", now=NOW)
    shutil.rmtree(made / "manager")
    certificates.issue(made, made / "nobody", Identity("manager", None, admin=True), made / "manager", now=NOW)
    shutil.rmtree(made / "nobody", ignore_errors=True)
    for path in [*made.rglob("crl.pem"), *made.rglob("revoked.json"), made / "issued.json"]:
        path.unlink()
    home = Home(tmp_path / "config")
    home.folder.mkdir()
    made.rename(home.folder / "tls")
    return home


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_0_1_s_folder_becomes_two_and_no_board_gets_another_key(old):
    before = contents(old.folder / "tls")
    key = old.manager / "key.pem"
    done = old.ensure("pi1", "pi2", name="me")
    assert done.changed and done.made == () and done.renewed == ("admin me",)
    now = contents(old.ca)
    assert {n: now[n] for n in before if not n.startswith("manager/")} == {
        n: c for n, c in before.items() if not n.startswith("manager/")
    }
    assert [p.name for p in (old.folder / "tls").iterdir()] == ["manager"]
    assert stat.S_IMODE(key.stat().st_mode) == stat.S_IMODE((old.ca / "ca.key").stat().st_mode) == 0o600
    assert not [p for p in [old.ca, *old.ca.rglob("*")] if p.is_dir() and p.stat().st_mode & 0o077]
    assert handshake(old.manager, old.ca / "boards/pi1") == [None, None]
    assert not old.ensure("pi1", "pi2").changed


def test_the_manager_of_0_1_is_on_record_so_that_its_copies_can_be_revoked(old):
    copies = serial(old.manager)
    old.ensure("pi1")
    assert [int(one["serial"], 16) for one in issued(old.ca) if one["uri"] == OLD_MANAGER_URI] == [copies]
    assert certificates.revoke(old.ca, old.manager, "manager").identities == (Identity("manager", None, admin=True),)


def test_every_write_of_the_move_may_be_the_last(old, tmp_path, monkeypatch):
    """As if the power went at each rename in turn: the next run finishes, with all keys. Asking works in between, but
    for the moment between the manager's new key and its certificate."""
    replace, unlink = os.replace, type(old.folder).unlink
    kept = {b: serial(old.folder / "tls/boards" / b) for b in ("pi1", "pi2")}
    torn = 0
    for last in range(60):
        home = Home(tmp_path / f"power{last}")
        shutil.copytree(old.folder, home.folder)
        count = 0

        def until(what, *args, last=last, **kwargs):
            nonlocal count
            count += 1
            if count > last:
                raise KeyboardInterrupt
            return what(*args, **kwargs)

        monkeypatch.setattr(os, "replace", lambda *a, until=until: until(replace, *a))
        monkeypatch.setattr(type(home.folder), "unlink", lambda *a, until=until, **k: until(unlink, *a, **k))
        try:
            home.ensure("pi1", "pi2", name="me")
            over = True
        except KeyboardInterrupt:
            over = False
        monkeypatch.undo()
        try:
            client_credentials(home.manager)
        except ClusterError:
            torn += 1
        home.ensure("pi1", "pi2", name="me")
        assert {b: serial(home.ca / "boards" / b) for b in kept} == kept
        assert not home.ensure("pi1", "pi2").changed and not (home.folder / "tls/ca.key").exists()
        if over:
            break
    assert over and last > 20 and torn <= 2  # an unlink and the rename of the certificate


def test_two_cas_are_never_mixed_up(old, tmp_path):
    other = Home(tmp_path / "other", old.ca)
    other.ensure("pi9")
    with pytest.raises(ClusterError, match="each have a ca.key, and they differ. Move the one away"):
        old.ensure("pi1")
    assert (old.folder / "tls/ca.key").exists()


def test_a_broken_key_of_0_1_is_an_error_and_not_replaced(old):
    (old.folder / "tls/ca.key").chmod(0o644)
    with pytest.raises(ClusterError, match="others may read .*/ca.key"):
        old.ensure("pi1")


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "config", tmp_path / "stick/ca")
    home.ensure("pi1", name="me")
    return home


def test_without_the_disk_of_the_ca_asking_works_and_deploying_says_what_is_missing(home):
    (home.ca.parent).rename(home.ca.parent.with_name("unplugged"))
    client_credentials(home.manager)
    with pytest.raises(ClusterError, match="no folder .*stick/ca, and .* Attach its disk, .* set edgellm_ca") as e:
        home.ensure("pi1")
    assert "asking goes on" in str(e.value) and not home.ca.exists()
    home.ca.parent.mkdir()  # an empty mount point
    home.ca.mkdir()
    with pytest.raises(ClusterError, match="ca.key is missing, .* Attach the disk that has it"):
        home.ensure("pi1")
    assert list(home.ca.glob("*.*")) == []


def test_another_owner_s_ca_is_named_and_asking_works(home, monkeypatch):
    """Root may read everything, so the system's answer is made up."""

    def denied(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(certificates, "locked", denied)
    with pytest.raises(ClusterError, match="stick/ca: permission denied. Deploy as the user who owns the CA; asking"):
        home.ensure("pi1")
    client_credentials(home.manager)


def test_a_lost_ca_is_made_anew_once_the_identity_of_the_old_one_is_away(home):
    before = serial(home.ca / "boards/pi1")
    shutil.rmtree(home.ca)
    shutil.rmtree(home.manager)
    done = home.ensure("pi1", name="me")
    assert done.made == ("ca", "admin me", "board pi1") and serial(home.ca / "boards/pi1") != before
    assert handshake(home.manager, home.ca / "boards/pi1") == [None, None]


def test_a_copy_of_the_ca_is_all_that_a_second_controller_needs(home, tmp_path):
    second = Home(tmp_path / "second")
    second.folder.mkdir()
    shutil.copytree(home.ca, second.ca)
    done = second.ensure("pi1", name="heir")
    assert done.made == ("admin heir",) and done.renewed == ()
    assert handshake(second.manager, home.ca / "boards/pi1") == [None, None]
    # It can revoke the machine before it, which it has never seen.
    assert certificates.revoke(second.ca, second.manager, "me").identities == (Identity("manager", "me", admin=True),)
    (home.ca / "boards/pi1/crl.pem").write_bytes((second.ca / "crl.pem").read_bytes())
    assert "revoked" in handshake(home.manager, home.ca / "boards/pi1")[1]
    assert handshake(second.manager, home.ca / "boards/pi1") == [None, None]


def test_a_manager_keeps_its_name_when_the_machine_gets_another(home, monkeypatch):
    monkeypatch.setattr(certificates, "default_name", lambda: "renamed")
    assert not home.ensure("pi1").changed
    assert home.ensure("pi1", name="you").renewed == ("admin you",)


@pytest.mark.parametrize("host, user, name", [
    ("laptop.lan", "anna", "anna-laptop"), ("b\u00fcro pc", "Anna M.", "Anna-M.-b-ro-pc"),
    ("h" * 99, "u", "u-" + "h" * 61), ("", "", "manager"),
])  # fmt: skip
def test_a_manager_is_called_after_its_user_and_machine(monkeypatch, host, user, name):
    monkeypatch.setattr(certificates.socket, "gethostname", lambda: host)
    monkeypatch.setattr(certificates.getpass, "getuser", lambda: user)
    assert certificates.default_name() == name
    assert certificates.BOARD_NAME.match(name)


@pytest.mark.parametrize("name", ["a/b", "..", "x" * 64, "a b", "a:b"])
def test_only_names_become_managers(tmp_path, name):
    with pytest.raises(ClusterError, match="is not a manager's name"):
        ensure(tmp_path / "ca", tmp_path / "tls/manager", [], name=name)
    assert not (tmp_path / "ca").exists()


def test_a_record_that_was_lost_is_made_again_from_the_certificates_that_are_there(home):
    before = {one["serial"] for one in issued(home.ca)}
    (home.ca / "issued.json").unlink()
    home.ensure("pi1")
    assert {one["serial"] for one in issued(home.ca)} == before


def test_boards_listen_with_what_the_ca_gave_them(home):
    assert server_credentials(home.ca / "boards/pi1").identity == Identity("board", "pi1")
    certificate = x509.load_pem_x509_certificate((home.ca / "ca.pem").read_bytes())
    assert certificate.not_valid_after_utc - NOW.replace(microsecond=0) == timedelta(days=authority.CA_DAYS)
