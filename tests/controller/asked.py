"""Requests as deploy writes them."""

import json
from pathlib import Path

from edgellm.controller.request import Request
from edgellm.plan import Settings
from tests.fakes import make_manifest

SETTINGS = Settings(64, 2, 5, "float32", "throughput")
LARGE = make_manifest(ram_bytes=300_000_000)  # three layers fit on a board


def content_of(model_dir: Path, addresses: dict[str, tuple[str, int]], **changes) -> dict:
    boards = [{"name": n, "host": host, "port": port} for n, (host, port) in addresses.items()]
    return {"model_dir": str(model_dir), "settings": SETTINGS.to_dict(), "tls": None, "boards": boards, **changes}


def request_of(file: Path, model_dir: Path, addresses, boards=None, **changes) -> Request:
    """A request out of a `file`, with more about some `boards` by name."""
    content = content_of(model_dir, addresses, **changes)
    for board in content["boards"]:
        board.update((boards or {}).get(board["name"], {}))
    file.write_text(json.dumps(content))
    return Request.read(file)
