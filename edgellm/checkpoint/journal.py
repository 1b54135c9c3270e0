"""The journal of finished shards, with which an interrupted split resumes."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from edgellm.files import fsync_folder
from edgellm.shards.manifest import Shard

JOURNAL_NAME = "split.journal"


class Journal:
    """JSON lines: first what is split and how, then one line for each finished shard. `shards` are those of earlier
    runs."""

    def __init__(self, folder: Path, head: dict):
        self.path, self.head = folder / JOURNAL_NAME, head
        self.shards: dict[str, Shard] = {}

    def read(self) -> dict | None:
        """Return the journal's first line, None if there is none, and fill `shards`.

        A line that a power loss cut short is skipped.
        """
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return None
        parsed = [_parsed(line) for line in lines if line.endswith(b"\n")]
        for entry in parsed[1:]:
            try:
                shard = Shard(**entry)
                self.shards[shard.name] = shard
            except TypeError:
                continue
        return parsed[0] if parsed and isinstance(parsed[0], dict) else {}

    def start(self) -> None:
        """Begin a new journal with the shards in `shards`."""
        lines = [self.head, *(asdict(s) for s in self.shards.values())]
        part = self.path.with_name(self.path.name + ".part")
        with open(part, "w") as f:
            f.write("".join(json.dumps(line) + "\n" for line in lines))
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, self.path)
        fsync_folder(self.path.parent)

    def add(self, shard: Shard) -> None:
        """Record a shard that is complete on disk."""
        with open(self.path, "a") as f:
            f.write(json.dumps(asdict(shard)) + "\n")
            f.flush()
            os.fsync(f.fileno())
        self.shards[shard.name] = shard


def _parsed(line: bytes):
    try:
        return json.loads(line)
    except ValueError:
        return None
