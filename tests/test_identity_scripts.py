"""The scripts that put certificates and revocations on a board: files are whole, and an agent starts anew only where
its plan may be of someone who doesn't count any more."""

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.test_board_scripts import ROLES, FakeBoard

FILES = {name: f"the {name}\n" for name in ("ca.pem", "crl.pem", "cert.pem", "key.pem", "revoked.json")}
LISTS = ("crl.pem", "revoked.json")


class Board(FakeBoard):
    def __init__(self, folder: Path):
        super().__init__(folder)
        self.tls = folder / "etc/edgellm/tls"
        self.tls.mkdir(parents=True)
        self.command("chown", f'echo "chown $*" >>{folder}/did')
        self.command("systemctl", f'echo "systemctl $*" >>{folder}/did')

    def push(self, script: str, files: dict[str, str]) -> subprocess.CompletedProcess:
        """Run a script of the role with these files as a tar stream."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(content), 0o600
                archive.addfile(info, io.BytesIO(content.encode()))
        text = (ROLES / "identity/files" / script).read_text().replace("/etc/edgellm/tls", str(self.tls))
        env = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        done = subprocess.run(["sh", "-c", text], input=stream.getvalue(), env=env, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done

    @property
    def there(self) -> dict[str, str]:
        return {p.name: p.read_text() for p in self.tls.iterdir()}

    @property
    def did(self) -> list[str]:
        path = self.root / "did"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def board(tmp_path) -> Board:
    return Board(tmp_path)


def test_a_board_gets_all_files_of_an_identity_with_their_owners(board):
    board.push("identity.sh", FILES)
    assert board.there == FILES
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in board.tls.iterdir()}
    assert modes == {name: 0o600 if name == "key.pem" else 0o640 for name in FILES}
    assert board.did == ["chown root:edgellm ca.pem crl.pem cert.pem revoked.json", "chown edgellm:edgellm key.pem"]


@pytest.mark.parametrize(
    ("changed", "anew"),
    [((), False), (("cert.pem", "key.pem"), False), (("ca.pem",), True), (("crl.pem", "revoked.json"), True)],
)
def test_an_agent_starts_anew_for_another_ca_or_a_revocation_that_it_missed_and_not_for_a_renewal(board, changed, anew):
    board.push("identity.sh", FILES)
    (board.root / "did").unlink()
    board.push("identity.sh", {**FILES, **{name: "another\n" for name in changed}})
    assert ("systemctl try-restart edgellm-agent.service" in board.did) == anew


def test_an_identity_of_0_1_gets_its_lists_without_a_restart(board):
    board.push("identity.sh", FILES)
    for name in LISTS:
        (board.tls / name).unlink()
    (board.root / "did").unlink()
    board.push("identity.sh", FILES)
    assert board.there == FILES and not [line for line in board.did if line.startswith("systemctl")]


def test_a_list_is_put_into_place_once(board):
    board.push("identity.sh", FILES)
    lists = {name: "longer\n" for name in LISTS}
    assert b"edgellm_told=yes" in board.push("revocations.sh", lists).stdout
    assert board.there == {**FILES, **lists}
    assert board.push("revocations.sh", lists).stdout == b""


@pytest.mark.parametrize("script", ["identity.sh", "revocations.sh"])
def test_a_key_that_a_power_loss_has_left_half_way_goes_with_the_next_push(board, script):
    board.push("identity.sh", FILES)
    (board.tls / ".new.a1b2c3").mkdir()
    (board.tls / ".new.a1b2c3/key.pem").write_text("a key\n")
    board.push(script, FILES if script == "identity.sh" else {name: FILES[name] for name in LISTS})
    assert board.there == FILES


def test_a_board_without_certificates_is_left_alone(board):
    assert board.push("revocations.sh", dict.fromkeys(LISTS, "x")).stdout == b"" and board.there == {}
    board.tls.rmdir()
    assert board.push("revocations.sh", dict.fromkeys(LISTS, "x" * 100_000)).stdout == b""
