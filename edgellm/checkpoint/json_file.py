"""JSON and text files of a checkpoint, read with limits and without their byte order marks."""

import json
from pathlib import Path

from edgellm.errors import CheckpointError
from edgellm.shards.positioned_file import check_fetched

_MAX_JSON_BYTES = 64 << 20


def read_json(path: Path) -> dict:
    """Return the JSON object in a file; raise CheckpointError with the path if there is none."""
    content = parse_json(read_limited(path), path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def read_json_if_there(path: Path) -> dict:
    """Return the JSON object in a file, or an empty one if there is no such file."""
    return read_json(path) if path.is_file() else {}


def read_limited(path: Path) -> bytes:
    """Return a file's bytes; raise CheckpointError if it can't be read, or if it is too large to be what it should."""
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, at most {_MAX_JSON_BYTES} are read")
        content = path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror or e}") from None
    check_fetched(content, path)
    return content


def parse_json(raw: bytes, path: Path):
    """Return what `raw`, the bytes of `path`, means as JSON, in whatever Unicode encoding it is."""
    try:
        return json.loads(raw)  # goes by the byte order mark, if there is one
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is not JSON: {str(e).splitlines()[0][:200]}") from None


def read_text(path: Path) -> str:
    """Return a text file's content without its byte order mark; raise CheckpointError unless it is UTF-8."""
    try:
        return read_limited(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{path} is not UTF-8 (byte {e.start} is {e.object[e.start]:#04x})") from None


def to_bytes(content) -> bytes:
    """Return `content` as the JSON that goes into a split: UTF-8, no byte order mark."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
