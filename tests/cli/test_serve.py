"""`edgellm serve` as a command."""

import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from tests.cli.commands import Cluster, answer_to, call, fails
from tests.tiny import environment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGELLM_CONFIG", str(tmp_path))
    monkeypatch.setenv("EDGELLM_STATE", str(tmp_path / "state"))
    return tmp_path


def start(cluster, home, *arguments) -> tuple[subprocess.Popen, str]:
    """The command as a process, and the address to open."""
    command = [sys.executable, "-m", "edgellm", "serve", "--cluster", str(cluster.file), "--port", "0", *arguments]
    env = {**environment(home), "EDGELLM_CONFIG": str(home), "EDGELLM_STATE": str(home / "state")}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
    line = process.stderr.readline()
    match = re.fullmatch(r"open (http\S+)/\n", line)
    if match is None:
        process.kill()
        raise AssertionError(line + process.communicate()[1])
    return process, match[1]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_tells_an_address_and_a_line_that_work_and_ends_within_two_seconds(cluster, tmp_path, sent):
    process, url = start(cluster, tmp_path)
    try:
        line = process.stderr.readline().removeprefix("or ask: ")
        assert line.startswith(f"curl {url}/v1/chat/completions ")
        told = httpx.post(f"{url}/v1/completions", json={"prompt": "Why?", "max_tokens": 9}, timeout=20).json()
        assert told["choices"][0]["text"] == answer_to("Why?", 9)
        cluster.pace.delay_s = 0.05
        body = {"prompt": "Why?", "max_tokens": 2500, "stream": True, "speculate": False}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=20) as response:
            pieces = response.iter_text()
            next(pieces)
            began_s = time.monotonic()
            process.send_signal(sent)
            told = "".join(pieces)
            assert '"code":"ending"' in told and "[DONE]" not in told
        assert process.wait(20) == 0 and time.monotonic() - began_s < 3
        rest = process.stderr.read()
        assert "Traceback" not in rest, rest
    finally:
        cluster.pace.delay_s = 0.0
        process.kill()
        process.communicate()


def test_beyond_this_machine_it_needs_a_key_which_it_makes(config):
    assert "can be reached from other machines, and there is no API key" in fails(2, "serve", "--host", "0.0.0.0")
    made = call("serve", "--new-key", "kitchen")
    assert made.exit_code == 0 and re.fullmatch(r"edgellm-[\w-]{43}\n", made.stdout) and "kitchen" in made.stderr
    assert made.stdout.strip() not in (config / "api-keys.json").read_text()
    assert "can't name a key" in fails(2, "serve", "--new-key", "a b")


def test_what_makes_no_sense_is_refused(config, tmp_path):
    (tmp_path / "cert.pem").touch()
    assert "need each other" in fails(2, "serve", "--tls-cert", tmp_path / "cert.pem")
    (config / "api-keys.json").write_text("[")
    assert "api-keys.json" in fails(2, "serve")
