"""Agents on this machine: `local up` and `down`, and the embedded ones, which never outlive the question."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from edgellm.checkpoint.builtin import BUILTIN
from edgellm.config import DEFAULT_MODEL
from edgellm.errors import ClusterError
from edgellm.manager import local
from edgellm.manager.local import LocalAgent, end, recall, remember
from edgellm.plan import Settings
from tests.fakes import Boards, make_manifest, run
from tests.tiny import agents_of, environment, split_tiny, wait_until

pytestmark = pytest.mark.native

@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home where the built-in model is a tiny one."""
    home = tmp_path_factory.mktemp("home")
    split = split_tiny(tmp_path_factory.mktemp("tiny"))
    folder = shutil.copytree(split, home / "cache/edgellm/models" / DEFAULT_MODEL)
    (folder / "generation_config.json").write_text(json.dumps(BUILTIN[DEFAULT_MODEL].sampling))
    return home


@pytest.fixture(scope="module")
def model_dir(home):
    """The tiny model's folder; whatever still serves it at the end is killed, and wrong."""
    folder = home / "cache/edgellm/models" / DEFAULT_MODEL
    yield folder
    left = agents_of(folder)
    for process in left:
        process.kill()
    assert not left


def start(home: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "edgellm", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(home),
        cwd=home,
    )  # fmt: skip


def edgellm(home: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    process = start(home, *arguments)
    try:
        stdout, stderr = process.communicate(timeout=90)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def test_a_stale_record_is_harmless(tmp_path):
    record = tmp_path / "agents.json"
    assert recall(record) == []
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = psutil.Process()
    agents = [
        LocalAgent("local1", "127.0.0.1", 1, dead.pid, 0.0),
        LocalAgent("local2", "127.0.0.1", 2, own.pid, own.create_time() - 100),  # our own number, used before us
    ]
    remember(record, agents)
    assert json.loads(record.read_text()) == [asdict(a) for a in agents]
    assert recall(record) == []
    end(agents)  # and we live on


@pytest.mark.parametrize("content", ["", "5", "{}", "[5]", '[{"name": "x"}]', "[" * 9000, '{"a": 1}', "null", "\udcff"])
def test_a_record_that_is_none_is_named(tmp_path, content):
    record = tmp_path / "agents.json"
    record.write_bytes(content.encode(errors="surrogateescape"))
    if content == "{}":
        assert recall(record) == []
    else:
        with pytest.raises(ClusterError, match=r"agents\.json: .*Remove it"):
            recall(record)


@pytest.mark.parametrize("pid", ["12", None, -1, 0, 1.5, 10**30, True])
def test_a_record_with_an_odd_number_ends_no_process(tmp_path, pid):
    record = tmp_path / "agents.json"
    good = asdict(LocalAgent("local1", "127.0.0.1", 1, 1, 0.0))
    record.write_text(json.dumps([{**good, "pid": pid}]))
    try:
        assert recall(record) == []
    except ClusterError as e:
        assert "agents.json" in str(e)


def test_up_serves_questions_until_down(home, model_dir):
    record, cluster = home / "state/edgellm/agents.json", home / "config/edgellm/cluster.json"
    record.parent.mkdir(parents=True)
    remember(record, [LocalAgent("local1", "127.0.0.1", 1, os.getpid(), 0.0)])  # of an earlier boot
    code, stdout, stderr = edgellm(home, "local", "down")
    assert (code, stdout, record.exists()) == (0, "no local cluster was up\n", False), stderr

    remember(record, [LocalAgent("local1", "127.0.0.1", 1, os.getpid(), 0.0)])
    code, stdout, stderr = edgellm(home, "local", "up", "--context", "200")
    try:
        assert code == 0, stderr
        used = sorted(line.split()[0] for line in stdout.splitlines())  # one, if the other was slower just now
        assert used and set(used) <= {"local1", "local2"}
        assert str(cluster) in stderr and len(agents_of(model_dir)) == 2

        code, stdout, stderr = edgellm(home, "local", "up")
        assert (code, stdout) == (2, "") and "already up" in stderr and stderr.count("\n") == 1
        assert len(agents_of(model_dir)) == 2

        answers = [edgellm(home, "ask", "Why?", "--max-tokens", "8", "--temperature", "0", "--json") for _ in range(2)]
        assert [code for code, _, _ in answers] == [0, 0], answers
        first, second = (json.loads(stdout) for _, stdout, _ in answers)
        assert first["tokens"] == second["tokens"] and len(first["tokens"]) == 8
        assert sorted(s["board"] for s in first["stages"]) == used
    finally:
        code, stdout, stderr = edgellm(home, "local", "down")
    assert (code, stdout) == (0, "2 agents stopped\n"), stderr
    assert not agents_of(model_dir) and not record.exists() and not cluster.exists()
    code, stdout, stderr = edgellm(home, "local", "down")
    assert (code, stdout, stderr) == (0, "no local cluster was up\n", "")


def test_up_leaves_the_file_of_a_cluster_of_boards_alone(home, model_dir, tmp_path):
    from edgellm.manager.cluster_file import ClusterFile
    from edgellm.shards.manifest import Manifest
    from tests.fakes import make_plan

    file = tmp_path / "cluster.json"
    manifest = Manifest.read(model_dir)
    plan = make_plan(manifest, (0, manifest.num_layers))
    ClusterFile.make(model_dir, {"b0": ("192.0.2.1", 7710)}, plan).write(file)
    before = file.read_bytes()
    code, stdout, stderr = edgellm(home, "local", "up", "--cluster", str(file))
    assert (code, stdout) == (2, "") and "describes a cluster of boards" in stderr
    assert edgellm(home, "local", "down", "--cluster", str(file))[0] == 0
    assert file.read_bytes() == before and not agents_of(model_dir)


def test_up_that_can_not_fit_leaves_nothing_behind(home, model_dir):
    code, stdout, stderr = edgellm(home, "local", "up", "--ram", "1MB", "--agents", "1")
    assert (code, stdout) == (1, "") and "local1" in stderr.splitlines()[-1]
    assert not agents_of(model_dir) and not (home / "state/edgellm/agents.json").exists()
    assert not (home / "config/edgellm/cluster.json").exists()


def test_up_that_is_killed_while_it_starts_leaves_agents_that_down_ends(home, model_dir):
    record = home / "state/edgellm/agents.json"
    process = start(home, "local", "up")
    try:
        wait_until(lambda: record.is_file() and len(json.loads(record.read_text())) == 2)
    finally:
        process.kill()
        process.communicate()
    code, stdout, _ = edgellm(home, "local", "down")
    assert (code, stdout) == (0, "2 agents stopped\n")
    assert not agents_of(model_dir)


def test_an_embedded_answer_leaves_no_process_behind(home, model_dir):
    code, stdout, stderr = edgellm(home, "ask", "Why?", "--max-tokens", "8", "--temperature", "0", "--json")
    assert code == 0, stderr
    notes = stderr.splitlines()
    assert notes[0].startswith(f"no cluster file: this machine ({socket.gethostname()}) answers, with the built-in")
    assert "local up" in notes[0] and notes[1].startswith("no board is asked: ask on the machine that deployed them")
    answer = json.loads(stdout)
    layers = sorted((s["start"], s["end"]) for s in answer["stages"])  # one stage, if the other was slower just now
    assert len(answer["tokens"]) == 8 and layers[0][0] == 0 and layers[-1][1] == 5
    assert not agents_of(model_dir)


def test_ctrl_c_while_the_embedded_agents_start_leaves_no_process_behind(home, model_dir):
    process = start(home, "ask", "Why?")
    try:
        wait_until(lambda: len(agents_of(model_dir)) == 2)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, stdout) == (130, "") and "Traceback" not in stderr, stderr
    assert not agents_of(model_dir)


def test_embedded_agents_end_when_the_manager_is_killed(home, model_dir):
    process = start(home, "ask", "Why?")
    try:
        wait_until(lambda: len(agents_of(model_dir)) == 2)
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: not agents_of(model_dir), 60)


def test_agents_that_start_again_get_the_layers_whose_prompts_they_keep(tmp_path):
    file, settings = tmp_path / "plan.json", Settings(64, 2, 5, "float32", "throughput")

    async def formed(remembered=file, **start_s):
        async with Boards(tmp_path / "model", 2, make_manifest(40), start_s=start_s) as boards:
            form = local.form_cluster(
                boards.manifest, boards.addresses, settings, shared_ram=False, remembered=remembered
            )
            return (await form).sections

    (tmp_path / "model").mkdir()
    first = run(formed(b0=0.001, b1=0.001))
    assert run(formed(None, b0=0.001, b1=0.00108)) != first == run(formed(b0=0.001, b1=0.00108))
    assert run(formed(b0=0.001, b1=0.002)) != first  # worth it
    file.write_bytes(b'{"epoch": 7')
    assert run(formed(b0=0.001, b1=0.001)) == first


def test_two_models_answer_each_when_it_is_asked(home, model_dir, tmp_path):
    other = split_tiny(tmp_path, "beta", "qwen3")
    file, ask = tmp_path / "cluster.json", ("ask", "Hi", "--raw", "--temperature", "0", "--max-tokens", "6", "--json")
    code, _, stderr = edgellm(
        home, "local", "up", "--model", str(model_dir), "--model", str(other), "--context", "128",
        "--cluster", str(file),
    )  # fmt: skip
    try:
        assert code == 0, stderr
        models = json.loads(file.read_text())["model"], json.loads(file.read_text())["more"][0]["model"]
        tokens = {}
        for name in (*models, *models):
            code, stdout, stderr = edgellm(home, *ask, "--cluster", str(file), "--model", name)
            assert code == 0, stderr
            assert tokens.setdefault(name, json.loads(stdout)["tokens"]) == json.loads(stdout)["tokens"]
        code, stdout, stderr = edgellm(home, *ask, "--cluster", str(file))
        assert json.loads(stdout)["tokens"] == tokens[models[0]] != tokens["beta"]
        code, _, stderr = edgellm(home, *ask, "--cluster", str(file), "--model", "phi")
        assert code == 2 and f"this cluster has no model 'phi'. It has {models[0]}, beta." in stderr
        code, stdout, _ = edgellm(home, "status", "--json", "--cluster", str(file))
        assert code == 0 and json.loads(stdout)["models"] == list(models)
    finally:
        code, stdout, stderr = edgellm(home, "local", "down", "--cluster", str(file))
    assert stdout == "2 agents stopped\n"
    assert edgellm(home, *ask, "--model", "phi")[0] == 2  # there is no cluster


def test_a_draft_model_drafts_and_one_with_other_tokens_is_refused(home, model_dir, tmp_path):
    other = split_tiny(tmp_path, "beta", "qwen3", words="v")
    file = tmp_path / "cluster.json"
    up = ("local", "up", "--model", str(model_dir), "--context", "128", "--cluster", str(file), "--draft-model")
    code, _, stderr = edgellm(home, *up, str(other))
    assert code == 1 and "edgellm: beta can't draft for " in stderr and "token 256 is 'v256' in beta" in stderr
    code, _, stderr = edgellm(home, *up, str(model_dir))
    try:
        assert code == 0, stderr
        ask = ("ask", "Hi", "--raw", "--temperature", "0", "--max-tokens", "20", "--json", "--cluster", str(file))
        answers = [json.loads(edgellm(home, *ask, *more)[1]) for more in ((), ("--no-speculate",))]
        assert answers[0]["tokens"] == answers[1]["tokens"]
        said = json.loads(edgellm(home, "status", "--json", "--cluster", str(file))[1])["boards"]
        assert [row["draft_model"] for row in said if row["in_plan"]][-1] == json.loads(file.read_text())["model"]
    finally:
        edgellm(home, "local", "down", "--cluster", str(file))
