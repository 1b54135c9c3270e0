"""Clusters' certificates for tests: good ones, and those of the kinds that must be refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from edgellm.controller import certificates
from edgellm.wire.credentials import Identity

NOW = datetime.now(UTC)
NAME = "pc"


def ensure(folder: Path, boards: list[str], now: datetime = NOW, name: str | None = NAME) -> certificates.Result:
    """A CA in FOLDER, which has boards/NAME, and the manager's identity in FOLDER/manager."""
    return certificates.ensure(folder, folder / "manager", boards, name=name, now=now)


def make_cluster(folder: Path, boards: list[str]) -> Path:
    """FOLDER with a CA, good certificates for the manager, who is admin "pc", and for `boards`, and of the same CA:
    manager "anna", who only asks, in FOLDER/asker; one of 0.1's managers in FOLDER/old-manager; board "old", whose
    certificate has expired, the manager's of then in FOLDER/then, and board "young", whose certificate isn't valid
    yet; and in FOLDER/other another cluster with boards of the same names."""
    ensure(folder, ["old"], NOW - timedelta(days=800))
    (folder / "manager").rename(folder / "then")
    ensure(folder, [*boards, "young"], NOW + timedelta(days=20))
    (folder / "manager").rename(folder / "soon")
    for name in boards:
        (folder / "boards" / name / "cert.pem").unlink()
    ensure(folder, boards)
    for identity, into in ((Identity("manager", "anna"), "asker"), (Identity("manager", None, True), "old-manager")):
        certificates.issue(folder, folder / "manager", identity, folder / into, now=NOW)
    ensure(folder / "other", boards)
    return folder


def revoke(folder: Path, who: str, *targets: Path) -> None:
    """Revoke `who`, and put what the CA has revoked into the identity folders `targets`, as a deploy does."""
    certificates.revoke(folder, folder / "manager", who)
    for target in targets:
        for name in ("crl.pem", "revoked.json"):
            part = target / f"{name}.new"
            part.write_bytes((folder / name).read_bytes())
            part.replace(target / name)
