"""An agent whose section is native serves and answers without torch or transformers; a generic one loads them."""

import contextlib
import json
import selectors
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.manager.client import ClusterClient
from edgellm.plan import Plan, Section
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from tests.fakes import assign, connect_all, run
from tests.model.families import CONFIGS, random_model
from tests.model.make_split import make_split
from tests.tiny import environment

START_S = 90.0
CONTEXT = 64
# The real program, which tells at its end what it has imported.
AGENT = """
import atexit, json, sys
atexit.register(lambda: json.dump(sorted(sys.modules), open(sys.argv[1], "w")))
from edgellm.cli import main
main(sys.argv[2:])
"""


@contextlib.contextmanager
def agent(model_dir: Path, home: Path, *arguments: str):
    """(process, port) of an agent that measures itself and its cores."""
    command = [sys.executable, "-c", AGENT, str(home / "modules.json"), "agent", "--shards", str(model_dir)]
    with open(home / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", "--name", "b1", "--announce", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment(home),
        )  # fmt: skip
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(START_S) else b""
        assert line, (home / "log").read_text()
        yield process, json.loads(line)["port"]
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


async def answer(model_dir: Path, port: int) -> tuple[int, dict]:
    """How many tokens the agent answered with, and its status while it serves the whole model."""
    manifest, addresses = Manifest.read(model_dir), {"b1": ("127.0.0.1", port)}
    section = Section("b1", 0, manifest.num_layers)
    plan = Plan(
        1, manifest.model, manifest.sha256, manifest.num_layers, "latency", CONTEXT, 2, 16, "float16", (section,)
    )
    boards = await connect_all(addresses)
    try:
        await assign(plan, addresses, boards)
        async with ClusterClient.dial(plan, addresses) as cluster:
            tokens = [c async for c in cluster.generate([5, 6, 7], sampling=Sampling(), max_tokens=8, eos=())]
        return len(tokens), await boards[0].status()
    finally:
        for board in boards:
            board.close()


@pytest.mark.parametrize(("family", "path", "loads"), [("smollm", "native", set()), ("cohere", "generic", {"torch"})])
def test_an_agent_imports_torch_only_for_a_generic_section(tmp_path, family, path, loads):
    model_dir = tmp_path / "split"
    make_split(random_model(CONFIGS[family]()), model_dir, "int8")
    with agent(model_dir, tmp_path) as (process, port):
        tokens, status = run(answer(model_dir, port), START_S)
        assert tokens == 8 and status.section.path == path
        assert status.compute.threads == status.capacity.cores >= 1
        libraries = Path(f"/proc/{process.pid}/maps")
        assert not libraries.exists() or ("libtorch" in libraries.read_text()) == bool(loads)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (tmp_path / "log").read_text()
    imported = {name.split(".")[0] for name in json.loads((tmp_path / "modules.json").read_text())}
    assert imported & {"torch"} == loads
    assert bool(imported & {"transformers", "huggingface_hub", "safetensors", "gguf"}) == bool(loads)
    log = (tmp_path / "log").read_text()
    assert "computes with" in log and f"{status.compute.kernels} kernels" in log


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cores", "1023"), "core 1023 doesn't exist or is not available. Choose from "),
        (("--cores", "big"), "'big' is not a list of cores, expected one like 4-7 or 0,2"),
        (("--cores", "0", "--threads", "2"), "2 threads on 1 cores"),
    ],
)
def test_cores_that_cannot_be_used_are_refused_in_one_line(tmp_path, arguments, said):
    model_dir = tmp_path / "split"
    make_split(random_model(CONFIGS["smollm"]()), model_dir, "int8")
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", "agent", "--shards", str(model_dir), "--listen", "127.0.0.1:0", *arguments],
        capture_output=True, text=True, timeout=START_S, env=environment(tmp_path),
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
