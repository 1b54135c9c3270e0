"""`edgellm serve` with the built-in model, for other people's clients, which come with the extra `clients`."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.asked import LENGTH, QUESTION

START_S, END_S = 120.0, 10.0

# Clients that look for news of their own, or tell others of themselves.
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", ANONYMIZED_TELEMETRY="False", LANGCHAIN_TRACING_V2="false")

if importlib.util.find_spec("litellm") is None:  # only make test-clients installs them
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.clients)


@dataclass(frozen=True)
class Served:
    """A running server, and a key for it. `answer` is what `edgellm ask` says to QUESTION, greedily."""

    url: str
    key: str
    answer: str


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    home = tmp_path_factory.mktemp("serve")
    env = {k: v for k, v in os.environ.items() if k not in ("EDGELLM_CLUSTER", "PYTHONWARNINGS")}
    env |= {"EDGELLM_CONFIG": str(home / "config"), "EDGELLM_STATE": str(home / "state")}
    env |= {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "STATE", "DATA")}
    command = [sys.executable, "-m", "edgellm"]

    def call(*arguments: str) -> str:
        return subprocess.run([*command, *arguments], env=env, cwd=home, capture_output=True, text=True, check=True,
                              timeout=START_S).stdout  # fmt: skip

    key = call("serve", "--new-key", "clients").strip()
    told = call("ask", QUESTION, "--temperature", "0", "--max-tokens", str(LENGTH), "--json")
    server = subprocess.Popen([*command, "serve", "--port", "0"], env=env, cwd=home, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    log: list[str] = []
    listening = threading.Event()

    def read() -> None:
        assert server.stderr is not None
        for line in server.stderr:
            log.append(line)
            if line.startswith("open http"):
                listening.set()
        listening.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert listening.wait(START_S) and server.poll() is None, "".join(log)
        (url,) = [line.split()[1].rstrip("/") for line in log if line.startswith("open http")]
        yield Served(url, key, json.loads(told)["text"])
        assert server.poll() is None, f"the server ended: {''.join(log[-20:])}"
    finally:
        ended = _end(server)
        reader.join(END_S)
        server.stderr.close()
    assert ended, "the server didn't end"
    assert not [line for line in log if "Traceback" in line], "".join(log)


def _end(server: subprocess.Popen) -> bool:
    server.send_signal(signal.SIGINT)
    deadline = time.monotonic() + END_S
    try:
        server.wait(deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        return False
    return True

