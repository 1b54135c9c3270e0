"""Clusters' certificates for tests: good ones, and those of the kinds that must be refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from edgellm.controller.certificates import ensure

NOW = datetime.now(UTC)


def make_cluster(folder: Path, boards: list[str]) -> Path:
    """FOLDER with a CA, good certificates for the manager and `boards`, and of the same CA: board "old", whose
    certificate has expired, the manager's of then in FOLDER/then, and board "young", whose certificate isn't valid
    yet; and in FOLDER/other another cluster with boards of the same names."""
    ensure(folder, ["old"], NOW - timedelta(days=800))
    (folder / "manager").rename(folder / "then")
    ensure(folder, [*boards, "young"], NOW + timedelta(days=20))
    (folder / "manager").rename(folder / "soon")
    for name in boards:
        (folder / "boards" / name / "cert.pem").unlink()
    ensure(folder, boards, NOW)
    ensure(folder / "other", boards, NOW)
    return folder
