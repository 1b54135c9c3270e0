"""What deploy asks of the steps about the cluster: a JSON file, hostile until parsed."""

import json
import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgellm.config import IDLE_AGENT_BYTES
from edgellm.errors import EdgellmError, UsageError
from edgellm.manager.cluster_file import Board, SshAccess
from edgellm.plan import Capacity, Settings, draft_of
from edgellm.shards.manifest import Manifest
from edgellm.wire.credentials import Credentials, client_credentials


@dataclass(frozen=True)
class Memory:
    """A board's RAM in bytes: what would be free if no agent ran, and what the inventory allows the agent.

    `memory_max` is for the whole agent, `ram` for a section alone; None: no limit. `kept` is whether the agent that
    runs has these limits already, so that what it offers is what it will offer, and `stays` whether it also goes on
    with the section that it holds.
    """

    free: int
    memory_max: int | None = None
    ram: int | None = None
    kept: bool = False
    stays: bool = False

    def free_bytes(self, agent_bytes: int) -> int:
        """Return what a section could take without limits, beside an agent that takes `agent_bytes` itself."""
        return max(0, self.free - agent_bytes)

    def offer_bytes(self, agent_bytes: int) -> int:
        """Return what the agent will offer for a section once it runs with these limits."""
        most = [self.free if self.memory_max is None else min(self.free, self.memory_max)]
        most = [max(0, most[0] - agent_bytes)] + ([] if self.ram is None else [self.ram])
        return min(most)

    def limit(self, agent_bytes: int) -> str:
        """Return the inventory's variable that bounds the offer."""
        by_memory_max = self.memory_max is not None and self.memory_max - agent_bytes < (
            self.free if self.ram is None else self.ram
        )
        return "edgellm_memory_max" if by_memory_max else "edgellm_ram"


@dataclass(frozen=True)
class LeftOut:
    """A board that can't be used now, and why: a sentence or two."""

    name: str
    reason: str


@dataclass(frozen=True)
class Request:
    """What deploy asks for. `memory` is there for boards whose agent this run may start, `disk_bytes` for those whose
    disk may be too small. `path` is how sections will be computed: native or generic, where some model needs that, and
    `generic` is whether all are to be. `more` are the folders of further models, which the boards hold when they are
    asked."""

    model_dir: Path
    settings: Settings
    tls: Path | None
    boards: tuple[Board, ...]
    memory: dict[str, Memory]
    disk_bytes: dict[str, int]
    left_out: tuple[LeftOut, ...] = ()
    path: str = "native"
    generic: bool = False
    more: tuple[Path, ...] = ()

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        return {b.name: (b.host, b.port) for b in self.boards}

    @property
    def agent_bytes(self) -> int:
        """What an agent takes itself when it measures what it can offer."""
        return IDLE_AGENT_BYTES[self.path]

    @classmethod
    def read(cls, path: Path) -> "Request":
        """From a JSON file; raises UsageError naming what is wrong."""
        try:
            content = json.loads(path.read_text())
            boards = []
            for board in content["boards"]:
                ssh = board.get("ssh")
                boards.append(Board(board["name"], board["host"], board["port"], SshAccess(**ssh) if ssh else None))
            names = [b.name for b in boards]
            if again := [n for n in names if names.count(n) > 1]:
                raise UsageError(f"board {again[0]} is there {names.count(again[0])} times, expected once")
            how = content.get("path", "native")
            if how not in IDLE_AGENT_BYTES:
                raise UsageError(f"path is {reprlib.repr(how)}, expected {' or '.join(IDLE_AGENT_BYTES)}")
            settings = Settings.from_dict(content["settings"])
            if content.get("draft"):  # the folder of a model
                settings = replace(settings, draft=draft_of(Manifest.read(content["draft"]), settings))
            return cls(
                Path(content["model_dir"]),
                settings,
                Path(content["tls"]) if content.get("tls") else None,
                tuple(boards),
                {b["name"]: _memory(b["name"], b["memory"]) for b in content["boards"] if b.get("memory")},
                {b["name"]: _bytes(b, "disk_bytes", b["name"]) for b in content["boards"]
                 if b.get("disk_bytes") is not None},
                tuple(LeftOut(str(b["name"]), " ".join(str(b["reason"]).split())) for b in content.get("left_out", ())),
                how,
                content.get("generic") is True,
                tuple(Path(folder) for folder in _folders(content.get("more", []))),
            )  # fmt: skip
        except OSError as e:
            raise UsageError(f"{path}: {e.strerror or e}") from None
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, EdgellmError) as e:
            raise UsageError(f"{path}: {type(e).__name__}: {e}") from None

    def client_tls(self) -> Credentials | None:
        """Return the credentials to dial the boards with, or None."""
        return None if self.tls is None else client_credentials(self.tls)

    def of_model(self, folder: Path, manifest: Manifest, beside_bytes: int) -> "Request":
        """Return the same request for a further model, whose shards lie on the boards beside `beside_bytes` of others.
        """
        context = min(self.settings.context, manifest.max_seq_len)
        settings = replace(self.settings, context=context, chunk=min(self.settings.chunk, context), draft=None)
        disk_bytes = {board: max(0, room - beside_bytes) for board, room in self.disk_bytes.items()}
        return replace(self, model_dir=folder, settings=settings, disk_bytes=disk_bytes, more=())

    def on_disk(self, capacity: Capacity) -> Capacity:
        """Return the capacity bounded by the board's disk, because it can't hold more weights than that has room for.
        """
        disk_bytes = self.disk_bytes.get(capacity.board)
        return capacity if disk_bytes is None else replace(capacity, ram_bytes=min(capacity.ram_bytes, disk_bytes))


def _folders(said: object) -> list[str]:
    if not isinstance(said, list) or not all(isinstance(folder, str) and folder for folder in said):
        raise UsageError(f"more is {reprlib.repr(said)}, expected a list of folders")
    return said


def _memory(board: str, said: dict[str, Any]) -> Memory:
    memory_max, ram = (None if said.get(name) is None else _bytes(said, name, board) for name in ("memory_max", "ram"))
    kept, stays = (said.get(name) is True for name in ("kept", "stays"))
    return Memory(_bytes(said, "free", board), memory_max, ram, kept, stays)


def _bytes(said: dict[str, Any], name: str, board: str) -> int:
    value = said[name]
    if type(value) is not int or not 0 <= value < 1 << 50:
        raise UsageError(f"board {board}: {name} is {reprlib.repr(value)}, expected a number of bytes")
    return value
