"""A playbook through ansible-runner: its surroundings, its prompts, its end by a signal."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

pytest.importorskip("ansible_runner")
from edgellm.config import PROGRESS_FILE  # noqa: E402
from edgellm.controller import playbook  # noqa: E402
from edgellm.errors import UsageError  # noqa: E402

LOCAL = ["-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Makes a folder with a playbook of one play on this machine; the tests run elsewhere."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ANSIBLE_HOST_KEY_CHECKING", raising=False)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def make(*tasks: dict):
        (tmp_path / "ansible.cfg").write_text("[defaults]\nlocalhost_warning = false\n")
        (tmp_path / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        return tmp_path

    return make


def play(project, arguments=(), passwords=None):
    """Run it to its end; returns (exit code, what debug tasks said, reports of progress)."""
    said, reports = [], []

    def event(told):
        if told["event"] == "runner_on_ok" and "msg" in told["event_data"]["res"]:
            said.append(told["event_data"]["res"]["msg"])

    rc = playbook.run(project, "play.yml", [*LOCAL, *arguments], passwords or {}, event, reports.append)
    return rc, said, reports


def say(text: str) -> dict:
    return {"ansible.builtin.debug": {"msg": text}}


def test_where_and_how_a_playbook_runs(project, tmp_path):
    report = """echo '{"what": "split", "done": 1, "total": 2}' >>$FILE; echo no JSON >>$FILE"""
    rc, said, reports = play(project(
        say("{{ lookup('ansible.builtin.env', 'ANSIBLE_HOST_KEY_CHECKING', 'ANSIBLE_CONFIG') }}"),
        {"ansible.builtin.shell": report.replace("FILE", PROGRESS_FILE)},
        say("{{ '.' | realpath }}"),
    ))  # fmt: skip
    assert rc == 0 and reports == [{"what": "split", "done": 1, "total": 2}]
    # ansible-runner would take any host key, unless told not to.
    assert said[0] == f"True,{tmp_path}/ansible.cfg"
    assert said[-1] == str(tmp_path / "elsewhere")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_failed_playbook_has_ansibles_exit_code(project):
    assert play(project({"ansible.builtin.fail": {"msg": "no"}}))[0] == 2


def test_ansibles_prompts_for_passwords_are_answered(project):
    from edgellm.cli.deploy import PROMPTS

    passwords = {pattern: "secret" for pattern in PROMPTS.values()}
    rc, said, _ = play(project(say("in")), ["-k", "-K"], passwords)
    assert rc == 0 and said == ["in"]


SCRIPT = """
import pathlib, sys
from edgellm.controller import playbook
def event(told):
    if told["event"] == "runner_on_start":
        print("started", flush=True)
playbook.run(pathlib.Path(sys.argv[1]), "play.yml", sys.argv[2:], {}, event, print)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_ansible_too(project, number):
    folder = project({"ansible.builtin.command": "sleep 300.125"})
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, folder, *LOCAL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    family = []
    with process:
        try:
            assert process.stdout.readline() == "started\n"
            wait_for(lambda: any("300.125" in told_of(p) for p in psutil.Process(process.pid).children(True)))
            family = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, number)
            assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
        except BaseException:  # else leaving `with` would wait for it
            for left in [*family, process]:
                with contextlib.suppress(psutil.Error):
                    left.kill()
            raise
    assert family and psutil.wait_procs(family, timeout=10)[1] == []


def told_of(process: psutil.Process) -> list[str]:
    """The words that a process was started with; none if it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_for(condition, seconds: float = 30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def test_without_ansible_the_way_to_install_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UsageError, match=r"Run 'make controller', or pip install 'edgellm\[controller\]'"):
        playbook.command()
