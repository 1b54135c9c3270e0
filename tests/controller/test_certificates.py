"""The CA and what it signs: made once, healed, renewed in time, private, and never silently replaced."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from cryptography import x509

from edgellm.cli import main
from edgellm.controller import authority, certificates
from edgellm.controller.certificates import remaining_days
from edgellm.errors import ClusterError
from edgellm.files import locked
from edgellm.wire.credentials import client_credentials, server_credentials
from tests.certificates import ensure

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
IDENTITY = {"ca.pem", "cert.pem", "key.pem", "crl.pem", "revoked.json"}


def days(count: float) -> timedelta:
    return timedelta(days=count)


def snapshot(folder) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def differing(before: dict, after: dict) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.fixture
def folder(tmp_path):
    ensure(tmp_path / "tls", ["pi1", "pi2"], NOW)
    return tmp_path / "tls"


def test_a_cluster_gets_a_ca_and_an_identity_for_the_manager_and_each_board(tmp_path):
    done = ensure(tmp_path / "a/tls", ["pi1", "pi2"], NOW)
    assert done.changed and (done.ca, done.manager) == (tmp_path / "a/tls", tmp_path / "a/tls/manager")
    assert done.boards == {name: tmp_path / "a/tls/boards" / name for name in ("pi1", "pi2")}
    assert (done.made, done.renewed) == (("ca", "admin pc", "board pi1", "board pi2"), ())
    ca = x509.load_pem_x509_certificate((done.ca / "ca.pem").read_bytes())
    uris = {"manager": "edgellm:admin:pc", "boards/pi1": "edgellm:board:pi1", "boards/pi2": "edgellm:board:pi2"}
    for name, uri in uris.items():
        assert {p.name for p in (done.ca / name).iterdir()} == IDENTITY
        assert (done.ca / name / "ca.pem").read_bytes() == (done.ca / "ca.pem").read_bytes()
        certificate = x509.load_pem_x509_certificate((done.ca / name / "cert.pem").read_bytes())
        certificate.verify_directly_issued_by(ca)
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(san) == [x509.UniformResourceIdentifier(uri)]
        assert certificate.not_valid_before_utc == NOW - days(1)  # board clocks drift
        assert certificate.not_valid_after_utc == NOW + days(365)
        server_credentials(done.ca / name)
    assert ca.not_valid_after_utc - NOW == days(3650)


def test_a_second_call_changes_nothing(folder):
    before = snapshot(folder)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    for now in (NOW, NOW + days(334)):
        done = ensure(folder, ["pi1", "pi2"], now)
        assert (done.changed, done.made, done.renewed) == (False, (), ())
    assert snapshot(folder) == before and {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == times


def test_keys_are_private_from_their_first_byte_whatever_the_umask(tmp_path, monkeypatch):
    modes, replace, real_open = [], os.replace, os.open

    def watched_open(path, flags, mode=0o777, **kwargs):
        fd = real_open(path, flags, mode, **kwargs)
        if ".key" in path.name or "key." in path.name:
            modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return fd

    def watched_replace(part, path):
        modes.append(stat.S_IMODE(part.stat().st_mode) if "key" in path.name else 0o600)
        replace(part, path)

    monkeypatch.setattr(os, "open", watched_open)
    monkeypatch.setattr(os, "replace", watched_replace)
    for umask in (0, 0o022, 0o077):
        before = os.umask(umask)
        try:
            folder = ensure(tmp_path / f"tls{umask}", ["pi1"], NOW).ca
        finally:
            os.umask(before)
        for path in [folder, *folder.rglob("*")]:
            mode = stat.S_IMODE(path.stat().st_mode)
            private = path.is_dir() or "key" in path.name
            assert mode & 0o077 == 0 if private else mode == 0o644, path
    # Each time three keys are opened, and of each of two identities five files are renamed; of the CA, key, certificate
    # and two lists, and twice the record.
    assert set(modes) == {0o600} and len(modes) == 3 * (3 + 2 * 5 + 6)


def test_a_new_board_gets_its_certificate_and_nothing_else_changes(folder):
    before = snapshot(folder)
    done = ensure(folder, ["pi1", "pi3"], NOW)
    assert (done.made, done.renewed) == (("board pi3",), ()) and list(done.boards) == ["pi1", "pi3"]
    assert differing(before, snapshot(folder)) == {f"boards/pi3/{name}" for name in IDENTITY} | {"issued.json"}


def test_what_ends_within_30_days_is_renewed_and_the_rest_is_left(folder):
    ensure(folder, ["pi3"], NOW + days(100))
    before = snapshot(folder)
    done = ensure(folder, ["pi1", "pi2", "pi3"], NOW + days(336))
    assert (done.changed, done.made, done.renewed) == (True, (), ("admin pc", "board pi1", "board pi2"))
    changed = {f"{i}/{f}" for i in ("manager", "boards/pi1", "boards/pi2") for f in ("cert.pem", "key.pem")}
    assert differing(before, snapshot(folder)) == changed | {"issued.json"}
    assert remaining_days(folder / "boards/pi1/cert.pem", NOW + days(336)) == 365
    assert not ensure(folder, ["pi1", "pi2", "pi3"], NOW + days(336)).changed


def believes(ca_of, shown_by) -> bool:
    """Whether who has the first folder's CA believes in the second's certificate, dates aside."""
    ca = x509.load_pem_x509_certificate((ca_of / "ca.pem").read_bytes())
    certificate = x509.load_pem_x509_certificate((shown_by / "cert.pem").read_bytes())
    try:
        certificate.verify_directly_issued_by(ca)
    except Exception:
        return False
    return True


def test_a_renewed_ca_and_the_one_before_believe_in_the_same_certificates(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "then")
    later = NOW + days(3650 - 399)
    done = ensure(folder, ["pi1"], later)
    assert done.renewed == ("ca", "admin pc", "board pi1")
    assert (folder / "ca.key").read_bytes() == (tmp_path / "then/ca.key").read_bytes()
    assert remaining_days(folder / "boards/pi1/ca.pem", later) == 3650
    old, new = tmp_path / "then", folder
    assert believes(old / "boards/pi2", new / "manager") and believes(new / "manager", old / "boards/pi2")
    assert not ensure(folder, ["pi1"], later).changed
    # pi2 wasn't there when the CA was renewed (--limit): it is told with its next certificate.
    assert ensure(folder, ["pi2"], later).changed
    assert (folder / "boards/pi2/ca.pem").read_bytes() == (folder / "ca.pem").read_bytes()


def test_a_certificate_never_outlives_the_ca_it_is_pushed_with():
    assert authority.RENEW_CA_DAYS > authority.LEAF_DAYS


def half(path):
    path.write_bytes(path.read_bytes()[:100])


HEALS = {
    "certificate missing": lambda f: (f / "cert.pem").unlink(),
    "key missing": lambda f: (f / "key.pem").unlink(),
    "certificate half-written": lambda f: half(f / "cert.pem"),
    "key half-written": lambda f: half(f / "key.pem"),
    "key empty": lambda f: (f / "key.pem").write_bytes(b""),
    "certificate garbage": lambda f: (f / "cert.pem").write_bytes(os.urandom(200)),
    "key of another": lambda f: shutil.copy(f.parent / "pi2/key.pem", f / "key.pem"),
    "certificate of another": lambda f: shutil.copy(f.parent / "pi2/cert.pem", f / "cert.pem"),
    "identity of another": lambda f: [shutil.copy(f.parent / "pi2" / x, f / x) for x in ("cert.pem", "key.pem")],
    "key that others may read": lambda f: (f / "key.pem").chmod(0o644),
    "another cluster's": lambda f: [
        shutil.copy(ensure(f.parent.parent.parent / "o", ["pi1"], NOW).boards["pi1"] / x, f / x) for x in IDENTITY
    ],
    "from the future": lambda f: (shutil.rmtree(f), ensure(f.parent.parent, ["pi1"], NOW + days(9))),
    "all missing": lambda f: shutil.rmtree(f),
}


@pytest.mark.parametrize("name", HEALS)
def test_an_identity_that_is_spoilt_is_made_again_and_no_other(folder, name):
    HEALS[name](folder / "boards/pi1")
    before = snapshot(folder)
    done = ensure(folder, ["pi1", "pi2"], NOW)
    assert done.made + done.renewed == ("board pi1",)
    assert all(path.startswith("boards/pi1/") for path in differing(before, snapshot(folder)) - {"issued.json"})
    server_credentials(folder / "boards/pi1")
    assert believes(folder, folder / "boards/pi1")
    assert not ensure(folder, ["pi1", "pi2"], NOW).changed


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), half], ids=["missing", "half"])
def test_a_spoilt_copy_of_the_ca_s_certificate_is_replaced_alone(folder, spoil):
    before = snapshot(folder)
    spoil(folder / "manager/ca.pem")
    done = ensure(folder, ["pi1", "pi2"], NOW)
    assert done.changed and not done.made + done.renewed and snapshot(folder) == before


def test_every_write_may_be_the_last_and_the_next_run_finishes(tmp_path, monkeypatch):
    """As if the power went at each rename in turn."""
    replace = os.replace
    for last in range(20):
        folder, count = tmp_path / str(last), 0

        def until(a, b, last=last):
            nonlocal count
            count += 1
            if count > last:
                raise KeyboardInterrupt
            replace(a, b)

        monkeypatch.setattr(os, "replace", until)
        try:
            ensure(folder, ["pi1"], NOW)
        except KeyboardInterrupt:
            pass
        else:
            break
        assert not list(folder.rglob("*.part"))
        monkeypatch.setattr(os, "replace", replace)
        (folder / "ca.key.part").write_bytes(b"half")  # of a run that couldn't even clean up
        (folder / "ca.key.part").chmod(0o666)
        assert ensure(folder, ["pi1"], NOW).changed
        assert not ensure(folder, ["pi1"], NOW).changed
        client_credentials(folder / "manager"), server_credentials(folder / "boards/pi1")
    assert last == 4 + 2 * 6  # the CA's, and for each identity its record and five files


BROKEN_CA = {
    "key missing": (
        lambda f: (f / "ca.key").unlink(),
        r"ca\.key is missing, .* Attach the disk that has it, or put it back from a backup\. If it is lost, remove "
        r"\S+tls and \S+/manager, and deploy to all boards for a new CA\. Until then asking goes on\.",
    ),
    "both missing": (lambda f: [(f / x).unlink() for x in ("ca.key", "ca.pem")], r"ca\.key is missing, and"),
    "key damaged": (lambda f: half(f / "ca.key"), r"ca\.key is damaged\. Put"),
    "certificate damaged": (lambda f: half(f / "ca.pem"), r"ca\.pem is damaged\. .*remove it and deploy: it is remade"),
    "another's key": (
        lambda f: shutil.copy(f / "manager/key.pem", f / "ca.key"),
        r"ca\.pem and .*/ca\.key belong to different CAs\. Put",
    ),
    "key for all": (lambda f: (f / "ca.key").chmod(0o644), r"others may read .*/ca\.key \(mode 0644\)\. Run 'chmod"),
}


@pytest.mark.parametrize("name", BROKEN_CA)
def test_a_broken_ca_is_an_error_with_the_way_out_and_is_not_replaced(folder, name):
    spoil, message = BROKEN_CA[name]
    spoil(folder)
    before = snapshot(folder)
    with pytest.raises(ClusterError, match=message) as e:
        ensure(folder, ["pi1"], NOW)
    assert str(folder) in str(e.value) and "PRIVATE" not in str(e.value)
    assert snapshot(folder) == before


def test_the_way_out_of_a_damaged_ca_certificate_keeps_the_boards(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "then")
    (folder / "ca.pem").unlink()
    done = ensure(folder, ["pi1", "pi2"], NOW)
    assert done.changed and not done.renewed
    assert believes(tmp_path / "then", folder / "boards/pi1") and believes(folder, tmp_path / "then/boards/pi1")


def test_a_clock_that_is_behind_is_said_to_be(folder):
    with pytest.raises(ClusterError, match=r"valid from 2026-11-22, this machine's clock says 1970-01-02\. Set the cl"):
        ensure(folder, ["pi1"], datetime(1970, 1, 2, tzinfo=UTC))


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "pi 1", "pi1\n", "x" * 64, "pié"])
def test_only_board_names_become_folders(tmp_path, name):
    with pytest.raises(ClusterError, match="is not a board name"):
        ensure(tmp_path / "tls", [name], NOW)
    assert not (tmp_path / "tls").exists()


def test_two_at_once_make_one_ca(tmp_path):
    code = (
        "import sys; from tests.certificates import ensure; from pathlib import Path\n"
        "print(flush=True); input(); print(ensure(Path(sys.argv[1]), [sys.argv[2]]).made)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "tls"), f"pi{i % 2}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for i in range(4)
    ]  # fmt: skip
    for one in runs:
        one.stdout.readline()  # it stands ready
    for one in runs:
        one.stdin.write("\n")
        one.stdin.flush()
    made = [one.communicate(timeout=60)[0] for one in runs]
    assert [one.returncode for one in runs] == [0] * 4
    assert sorted("".join(made).count(f"'{who}'") for who in ("ca", "admin pc", "board pi0", "board pi1")) == [1] * 4
    assert not ensure(tmp_path / "tls", ["pi0", "pi1"]).changed


def test_a_run_that_hangs_is_not_waited_for_for_ever(folder, monkeypatch):
    monkeypatch.setattr(certificates, "_LOCK_TIMEOUT_S", 0.1)
    with locked(folder), pytest.raises(ClusterError, match="another deploy has been at them for 0.1 s"):
        ensure(folder, ["pi1"], NOW)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "tls").write_bytes(b"")
    with pytest.raises(ClusterError, match=re.escape(f"certificates in {tmp_path}/tls: ")):
        ensure(tmp_path / "tls", ["pi1"], NOW)


def test_remaining_days_count_down_and_a_file_without_a_certificate_is_named(folder):
    path = folder / "boards/pi1/cert.pem"
    assert remaining_days(path, NOW) == 365
    assert remaining_days(path, NOW + days(365.5)) == -0.5
    with pytest.raises(ClusterError, match="no such file or directory. Deploy again"):
        remaining_days(folder / "nothing.pem")
    with pytest.raises(ClusterError, match="no certificate. Deploy again"):
        remaining_days(folder / "ca.key")


def test_the_command_prints_one_json_object_and_no_key(tmp_path):
    ca, manager = tmp_path / "ca", tmp_path / "tls/manager"
    arguments = ["controller", "certificates", "--board", "pi1", "--board", "pi2", "--name", "me",
                 "--ca", str(ca), "--manager", str(manager)]  # fmt: skip
    runner = CliRunner()
    first, second = (runner.invoke(main, arguments) for _ in range(2))
    answer = {
        "changed": True,
        "ca": str(ca),
        "manager": str(manager),
        "boards": {n: str(ca / "boards" / n) for n in ("pi1", "pi2")},
        "made": ["ca", "admin me", "board pi1", "board pi2"],
        "renewed": [],
    }
    assert (json.loads(first.stdout), first.exit_code) == (answer, 0)
    assert json.loads(second.stdout) == answer | {"changed": False, "made": []}
    assert "PRIVATE" not in first.output + second.output
    failed = runner.invoke(main, [*arguments, "--board", "pi/3"])
    assert failed.exit_code == 1 and failed.stdout == "" and "'pi/3' is not a board name" in failed.stderr
