"""An agent's start options."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AgentOptions:
    """`ram_bytes` caps the offer; `threads` and `cores` are for computing (None: the fastest, as measured);
    `drain_s` is how long running answers may continue after SIGTERM; `tls` is the folder of this board's certificate
    (None: plain TCP); `path` is load_section's; `kernels` names the instruction set of the native kernels, once the
    agent has chosen its cores. `shards` is the folder of the default model, `more` are those of further ones.

    Pages of prompts take up to `cache_bytes` of the disk in the folder `cache` (0, or None: there are none), and up to
    `cache_ram_bytes` of the RAM that no plan needs.
    """

    shards: Path
    host: str
    port: int
    name: str
    threads: int | None = None
    ram_bytes: int | None = None
    drain_s: float = 60.0
    tls: Path | None = None
    cores: tuple[int, ...] | None = None
    path: str = "auto"
    kernels: str = ""
    cache: Path | None = None
    cache_bytes: int = 0
    cache_ram_bytes: int = 0
    more: tuple[Path, ...] = ()
