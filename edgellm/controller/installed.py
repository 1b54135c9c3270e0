"""This edgellm as it is installed: the folder of its playbooks, and the hashes of its modules."""

import importlib.metadata
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import edgellm
from edgellm.errors import UsageError

PACKAGED = "ansible_project"  # in the package, where a wheel carries the repository's playbooks


def project() -> Path:
    """Return the folder with deploy.yml and the roles: the repository of an editable install, or the copy that the
    wheel carries. Raise UsageError if there is neither."""
    folder = _repository() or Path(edgellm.__file__).parent / PACKAGED
    if not (folder / "deploy.yml").is_file():
        raise UsageError(f"this edgellm has no playbooks at {folder}. Install edgellm again.")
    return folder


def _repository() -> Path | None:
    """Return the repository from which this edgellm is installed with `pip install -e`, or None."""
    try:
        told = json.loads(importlib.metadata.distribution("edgellm").read_text("direct_url.json") or "{}")
        url = urlsplit(told["url"])
        if url.scheme == "file" and told["dir_info"].get("editable"):
            return Path(unquote(url.path))
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def modules(record: str | None = None) -> dict[str, str]:
    """Return the hash of each Python module in a wheel's RECORD, by path, the playbooks' left out; this edgellm's own
    RECORD unless told."""
    if record is None:
        record = importlib.metadata.distribution("edgellm").read_text("RECORD") or ""
    return dict(re.findall(rf"^(edgellm/(?!{PACKAGED}/)[^,\n]+\.py),([^,\n]+),", record, re.M))
