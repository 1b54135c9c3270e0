"""A cluster of this machine's own, for commands that find no cluster file."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from edgellm import config
from edgellm.cli.group import make_settings
from edgellm.cli.models import builtin_model
from edgellm.console import Progress, note


@contextlib.contextmanager
def embedded(name: str, slots: int = config.DEFAULT_SLOTS) -> Iterator[Path]:
    """Have two agents on this machine answer with the built-in model, and yield their cluster file. `name` is that of
    their folder, which one program uses at a time."""
    import asyncio
    import tempfile

    from edgellm.manager import local
    from edgellm.manager.cluster_file import FILE_NAME, ClusterFile
    from edgellm.shards.manifest import Manifest

    note(f"no cluster file: this machine ({socket.gethostname()}) answers, with the built-in {config.DEFAULT_MODEL} "
         "on two agents")  # fmt: skip
    model_dir = builtin_model()
    manifest = Manifest.read(model_dir)
    settings = make_settings(manifest, None, slots, config.DEFAULT_CHUNK, "float16", "throughput")
    with (
        local.LocalAgents(model_dir, 2, local.state_dir() / name) as agents,
        tempfile.TemporaryDirectory() as folder,
    ):
        with Progress() as progress:
            progress("starting two agents")
            addresses = agents.start()
            made = asyncio.run(local.form_cluster(manifest, addresses, settings, remembered=agents.plan_file))
        file = Path(folder) / FILE_NAME
        ClusterFile.make(model_dir, addresses, made).write(file)
        yield file
