"""Small files beside a split's shards: text and JSON objects, with errors that name the file."""

import json
from pathlib import Path
from typing import Any

from edgellm.errors import ManifestError

_MOST_BYTES = 64 << 20


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without a byte order mark. Raises ManifestError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ManifestError(f"{path} has {path.stat().st_size} bytes, at most {_MOST_BYTES} are read")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise ManifestError(f"{path}: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise ManifestError(f"{path} is not UTF-8 text (byte {e.start})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, {} if there is no such file. Raises ManifestError."""
    if not path.exists():
        return {}
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as e:
        raise ManifestError(f"{path} is not JSON: {' '.join(str(e).split())}") from None
    if not isinstance(content, dict):
        raise ManifestError(f"{path} is not a JSON object")
    return content
