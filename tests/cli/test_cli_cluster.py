"""status, doctor and logs as a user and a shell see them: boards on loopback, SSH to a server of the tests'."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgellm.agent.reaching import Reaching
from edgellm.cli import main
from edgellm.manager.cluster_file import ClusterFile, SshAccess
from tests.controller.shards import whole_manifest
from tests.controller.sshd import Sshd
from tests.fakes import Boards, block
from tests.tiny import environment

EDGELLM = [sys.executable, "-m", "edgellm"]


class Cluster:
    """Three boards of the fake model in a thread, of which two have a section; and the cluster file for them."""

    def __init__(self, folder: Path, sshd: Sshd):
        self.folder, self.file, self.sshd = folder / "model", folder / "cluster.json", sshd
        self.folder.mkdir()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.boards = Boards(self.folder, 3, whole_manifest(), cache_ram_bytes=10**7)
        self.call(self.boards.__aenter__())
        self.plan = self.call(self.boards.form((0, 3, 6)))
        sshd.user_key.write_private_key_file(str(folder / "key"))
        access = SshAccess("127.0.0.1", "edge", sshd.port, str(folder / "key"))
        self.made = ClusterFile.make(
            self.folder, self.boards.addresses, self.plan, ssh=dict.fromkeys(self.boards.addresses, access)
        )
        self.made.write(self.file)

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def stop(self) -> None:
        self.call(self.boards.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def answer(command: str, script: bytes, channel) -> int | None:
    """A board whose journal has two lines and goes on with one a moment, and whose agent is not enabled."""
    if b"journalctl" in script:
        for i, text in enumerate(("starts", "serves\x1b[2J")):
            line = {"__REALTIME_TIMESTAMP": str(1_800_000_000_000_000 + i), "MESSAGE": text}
            channel.sendall(json.dumps(line).encode() + b"\n")
        while b"--follow" in script:
            time.sleep(0.05)
            channel.sendall(json.dumps({"__REALTIME_TIMESTAMP": "1", "MESSAGE": "more"}).encode() + b"\n")
        return 0
    lines = [
        f"clock {time.time():.3f}", "user 0", "unit LoadState=loaded", "unit ActiveState=active",
        "unit SubState=running", "unit UnitFileState=disabled", "unit NRestarts=0", "end",
    ]  # fmt: skip
    channel.sendall("\n".join(lines).encode() + b"\n")
    return 0


@pytest.fixture(scope="module")
def sshd():
    with Sshd(answer) as sshd:
        yield sshd


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, sshd):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), sshd)
    yield cluster
    cluster.stop()


def invoke(*words):
    return CliRunner().invoke(main, [str(w) for w in words])


def one_line(text: str) -> str:
    assert text.endswith("\n") and text.count("\n") == 1 and "Traceback" not in text, text
    return text


@pytest.fixture
def lame(cluster, tmp_path):
    """A cluster file with a board where nobody listens instead of b1."""
    boards = {**cluster.boards.addresses, "b1": ("127.0.0.1", 1)}
    ClusterFile.make(cluster.folder, boards, cluster.plan).write(tmp_path / "lame.json")
    return tmp_path / "lame.json"


def test_status_shows_a_table_and_exits_with_0(cluster):
    done = invoke("status", "--cluster", cluster.file)
    assert done.exit_code == 0 and done.stderr == ""
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip().startswith("b")}
    assert rows["b0"][1] == f"127.0.0.1:{cluster.boards.agents[0].port}" and rows["b0"][2] == "0-3"
    assert rows["b0"][-1] == rows["b1"][-1] == "serving"
    assert "spare: not in the plan of epoch 1" in done.stdout
    assert "fake: 6 layers, 2 slots of 64 tokens, throughput, epoch 1" in done.stdout
    # What a board without a plan could keep counts too.
    kept = "prompts: 0.00 of 0.00 GB on disks, 0.00 of 0.03 GB in RAM that no plan needs"
    assert kept in " ".join(done.stdout.split())


def test_status_json(cluster):
    done = invoke("status", "--json", "--cluster", cluster.file)
    content = json.loads(done.stdout)
    assert done.exit_code == 0 and content["serving"] and content["cluster_file"] == str(cluster.file)
    assert [b["board"] for b in content["boards"]] == ["b0", "b1", "b2"]
    assert content["boards"][0]["cache"]["ram_budget_bytes"] == 10**7


def test_status_exits_with_1_when_a_board_of_the_plan_is_gone(lame):
    done = invoke("status", "--cluster", lame)
    assert done.exit_code == 1 and "unreachable: connection refused" in done.stdout
    assert "b1 (1 of the plan's 2 boards) can't serve now" in done.stdout


def test_after_a_power_cut_status_and_doctor_say_that_the_next_question_is_answered(tmp_path_factory, sshd):
    cluster = Cluster(tmp_path_factory.mktemp("cut"), sshd)
    try:
        for i in (0, 1):
            cluster.call(cluster.boards.stop(i))
            cluster.call(cluster.boards.start(i))
        done = invoke("status", "--cluster", cluster.file)
        assert done.exit_code == 0 and "can't serve" not in done.stdout
        assert "ready: loads layers 0-3 at the next question" in done.stdout
        assert "ready: loads layers 3-6 at the next question" in done.stdout
        doctor = json.loads(invoke("doctor", "--quick", "--json", "--cluster", cluster.file).stdout)
        by_name = {b["board"]: [f["about"] for f in b["findings"]] for b in doctor["boards"]}
        assert "plan" not in by_name["b0"] + by_name["b1"]
    finally:
        cluster.stop()


def test_status_and_doctor_name_boards_that_cannot_reach_each_other(cluster, monkeypatch):
    closed = block(monkeypatch, "b0>b1")
    done = invoke("status", "--cluster", cluster.file)
    assert done.exit_code == 1 and "! b0 can't reach b1 at 127.0.0.1:" in done.stdout
    assert any(line.rstrip().endswith("can't reach b1") for line in done.stdout.splitlines())
    assert "can't serve" not in done.stdout
    content = json.loads(invoke("status", "--json", "--cluster", cluster.file).stdout)
    assert [(p["from"], p["to"]) for p in content["pairs"] if not p["ok"]] == [("b0", "b1")]
    assert "pairs: b0 can't reach b1 at 127.0.0.1:" in invoke("doctor", "--quick", "--cluster", cluster.file).stdout
    closed.clear()
    assert invoke("status", "--cluster", cluster.file).exit_code == 0


def test_a_cluster_without_its_model_folder_has_a_status(cluster, tmp_path):
    made = ClusterFile.make(tmp_path / "nowhere", cluster.boards.addresses, cluster.plan)
    made.write(tmp_path / "here" / "cluster.json")
    assert invoke("status").exit_code == 0


@pytest.mark.parametrize("command", ["status", "doctor", "logs"])
def test_no_cluster_file(command):
    done = invoke(command)
    assert done.exit_code == 2 and done.stdout == "" and "no cluster file" in one_line(done.stderr)


@pytest.mark.parametrize("command", ["status", "doctor", "logs"])
def test_help_is_one_sentence_and_examples(command):
    done = invoke(command, "--help")
    assert done.exit_code == 0 and "Examples:" in done.stdout and f"edgellm {command}" in done.stdout
    assert done.stdout.split("\n\n")[1].strip().endswith(".")


@pytest.mark.parametrize("command", ["doctor", "logs"])
def test_a_board_that_is_none(command, cluster):
    done = invoke(command, "b7", "--cluster", cluster.file)
    assert done.exit_code == 2 and "'b7' is none of the cluster's boards: b0, b1, b2" in one_line(done.stderr)


def test_status_watch_goes_on_until_ctrl_c(cluster, home):
    command = [*EDGELLM, "status", "--watch", "--json", "--cluster", str(cluster.file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home)) as process:
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        assert first["serving"] and second["serving"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


def test_status_watch_tries_pairs_once_and_then_now_and_again(cluster, home, monkeypatch):
    asked, really = [], Reaching.asked
    monkeypatch.setattr(Reaching, "asked", lambda *args: (asked.append(args), really(*args)))
    command = [*EDGELLM, "status", "--watch", "--json", "--cluster", str(cluster.file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(home)) as process:
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
    assert len(asked) == 3 and all(len(look["pairs"]) == 6 for look in looks)  # each board, in the first look


def test_status_watch_on_a_terminal(cluster, home):
    ours, theirs = pty.openpty()
    command = [*EDGELLM, "status", "--watch", "--cluster", str(cluster.file)]
    env = {**environment(home), "TERM": "xterm", "COLUMNS": "200", "LINES": "40"}
    received = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        end_s = time.monotonic() + 30
        while received.count(b"serving") < 4 and time.monotonic() < end_s:  # two boards, twice
            received += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    os.close(ours)
    assert received.count(b"serving") >= 4 and b"Traceback" not in received


def test_doctor_names_what_is_wrong_and_the_way_out(cluster):
    done = invoke("doctor", "--cluster", cluster.file)
    assert done.exit_code == 1
    assert "the agent would not start after a reboot (disabled). Run 'edgellm deploy'." in done.stdout
    assert "examining 3 boards …" in done.stderr and "the SSH host key of" in done.stderr
    assert "✓ this machine" in done.stdout and "✗ b0" in done.stdout


def test_doctor_of_one_board_as_json(cluster):
    done = invoke("doctor", "b1", "--json", "--quick", "--cluster", cluster.file)
    content = json.loads(done.stdout)
    assert done.exit_code == 1 and not content["healthy"]
    assert [b["board"] for b in content["boards"]] == ["this machine", "b1"]
    abouts = [f["about"] for f in content["boards"][1]["findings"]]
    assert abouts == ["agent", "shards"] and all(f["todo"] for f in content["boards"][1]["findings"])


def test_doctor_of_a_healthy_cluster_exits_with_0(cluster, tmp_path):
    made = ClusterFile.make(cluster.folder, cluster.boards.addresses, cluster.plan)
    made.write(tmp_path / "here" / "cluster.json")
    done = invoke("doctor", "--quick")
    assert done.exit_code == 0 and "✗" not in done.stdout and "no SSH in the cluster file" in done.stdout


def test_logs_of_all_boards_and_of_one(cluster):
    done = invoke("logs", "--cluster", cluster.file)
    assert done.exit_code == 0
    texts = [line.split(" | ")[0] + " " + line.split()[-1] for line in done.stdout.splitlines()]
    assert sorted(texts) == [f"b{i} {word}" for i in range(3) for word in ("serves[2J", "starts")]
    assert [t.split()[1] for t in texts][:3] == ["starts"] * 3  # by time
    done = invoke("logs", "b2", "-n", "5", "--cluster", cluster.file)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["starts", "serves[2J"]


def test_logs_follow_until_ctrl_c(cluster, home):
    command = [*EDGELLM, "logs", "-f", "--cluster", str(cluster.file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(home)) as process:
        seen = set()
        while len(seen) < 3:
            line = process.stdout.readline()
            assert line
            if line.endswith(b" more\n"):
                seen.add(line.split()[0])
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert b"Traceback" not in process.stderr.read()


def test_logs_into_a_reader_that_has_enough(cluster, home):
    command = f"{' '.join(EDGELLM)} logs -f b0 --cluster {cluster.file} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30, env=environment(home))
    assert done.stdout.endswith("starts\n") and "Broken" not in done.stderr and "Exception" not in done.stderr


def test_logs_of_a_board_that_cannot_be_reached(cluster, tmp_path):
    access = {"b0": SshAccess("127.0.0.1", "edge", 1), "b1": SshAccess("127.0.0.1", "nobody", cluster.sshd.port)}
    made = ClusterFile.make(cluster.folder, cluster.boards.addresses, cluster.plan, ssh=access)
    made.write(tmp_path / "here" / "cluster.json")
    done = invoke("logs")
    errors = [line for line in done.stderr.splitlines() if line.startswith("edgellm: board")]
    assert done.exit_code == 1 and len(errors) == 3
    assert "SSH: connection refused" in done.stderr and "no SSH in the cluster file" in done.stderr


def test_status_imports_neither_torch_nor_numpy_nor_ssh(cluster, home):
    code = (
        "import sys\nfrom edgellm.cli import main\n"
        "try:\n    main(['status', '--cluster', sys.argv[1]])\nexcept SystemExit as e:\n    print(e.code)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'paramiko'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(cluster.file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(home))
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stderr
