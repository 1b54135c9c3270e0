"""Clusters' certificates for tests: good ones, and those of the kinds that must be refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from edgellm.controller.certificates import ensure, issue
from edgellm.wire.credentials import Identity

NOW = datetime.now(UTC)
LEAD = "pc"


def make_cluster(folder: Path, boards: list[str]) -> Path:
    """FOLDER with a CA, good certificates for the manager, who is admin "pc", and for `boards`, and of the same CA:
    manager "anna", who only asks, in FOLDER/asker; one of 0.1's managers in FOLDER/old-manager; board "old", whose
    certificate has expired, the manager's of then in FOLDER/then, and board "young", whose certificate isn't valid
    yet; and in FOLDER/other another cluster with boards of the same names."""
    ensure(folder, ["old"], NOW - timedelta(days=800), manager=LEAD)
    (folder / "manager").rename(folder / "then")
    ensure(folder, [*boards, "young"], NOW + timedelta(days=20), manager=LEAD)
    (folder / "manager").rename(folder / "soon")
    for name in boards:
        (folder / "boards" / name / "cert.pem").unlink()
    ensure(folder, boards, NOW, manager=LEAD)
    issue(folder, Identity("manager", "anna"), folder / "asker", NOW)
    issue(folder, Identity("manager", None, admin=True), folder / "old-manager", NOW)
    ensure(folder / "other", boards, NOW, manager=LEAD)
    return folder
