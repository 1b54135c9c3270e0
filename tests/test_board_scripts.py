"""The scripts that roles run on boards, with a board's folders and commands replaced by ones of the test's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

ROOT = Path(__file__).parent.parent
ROLES = ROOT / "ansible/roles"
sys.path.insert(0, str(ROOT / "ansible/filter_plugins"))

import boards  # noqa: E402


class FakeBoard:
    """A folder that stands for a board's /, with commands that come before this machine's."""

    def __init__(self, folder: Path):
        self.root, self.bin = folder, folder / "bin"
        self.bin.mkdir()

    def command(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def text(self, script: str, **replaced: str) -> str:
        text = (ROLES / script).read_text()
        for folder in ("/opt/edgellm", "/var/lib/edgellm", "/run/edgellm-agent", "/etc/systemd"):
            text = text.replace(folder, f"{self.root}{folder}")
        for old, new in replaced.items():
            assert old in text
            text = text.replace(old, new)
        return text

    def run(self, text: str, *arguments: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        return subprocess.run(
            ["sh", "-c", text, "sh", *arguments], env=env, capture_output=True, text=True, timeout=60
        )

    def version(self, name: str, *, complete: bool) -> Path:
        """Make a version and let `current` point to it."""
        folder = self.root / "opt/edgellm/versions" / name
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/python").symlink_to(sys.executable)
        if complete:
            (folder / ".complete").touch()
        current = self.root / "opt/edgellm/current"
        current.unlink(missing_ok=True)
        current.symlink_to(f"versions/{name}")
        return folder


@pytest.fixture
def board(tmp_path) -> FakeBoard:
    return FakeBoard(tmp_path)


# The probe


def probe(board: FakeBoard, pythons: str = "/usr/bin") -> dict:
    text = board.text("preflight/files/probe.sh", **{'"/usr/bin/$name"': f'"{pythons}/$name"',
                                                     '"/usr/local/bin/$name"': ""})  # fmt: skip
    done = board.run(text)
    assert done.returncode == 0
    return boards.board_facts(done.stdout, 0)


def python(real: str, version: str = "3.12.4") -> str:
    return f'[ "$1" = -c ] && printf "{version}\\n{real}\\nyes\\n"'


def test_the_probe_sees_the_room_in_every_folder_that_takes_something(board):
    found = probe(board)
    folders = {folder.removeprefix(str(board.root)) for folder in found["rooms"]}
    assert folders == {boards.VERSIONS, boards.WHEELS, boards.MODELS, "/etc/edgellm/tls", "/run"}
    assert all(room["free_kb"] > 0 and room["mount"].startswith("/") for room in found["rooms"].values())
    assert not list(board.root.rglob(".edgellm.*")), "it changes nothing"


def test_the_python_of_the_controllers_own_environment_leads_to_the_systems(board):
    board.command("python3", python("/usr/bin/python3.12"))
    found = probe(board, pythons="/nowhere")
    assert (found["python"], found["python_minor"], found["missing"]) == ("/usr/bin/python3.12", "3.12", [])


@pytest.mark.parametrize("real", ["/home/USER/python/bin/python3.12", "/root/python3.12", "/tmp/python3.12"])
def test_a_python_that_the_unit_does_not_see_is_none(board, real):
    board.command("python3", python(real))
    found = probe(board, pythons="/nowhere")
    assert "python3" in found["missing"] and found["python_minor"] == ""
    sentence = boards.standalone_problem(found, {f"python {found['machine']}": "Let it reach a mirror."}, "pi1")
    assert f"lacks Python 3.11 or newer (it has only {real}, which the agent's user may not run)" in sentence


def test_another_python_is_taken_if_the_first_is_too_old_or_hidden(board):
    board.command("python3", python("/usr/bin/python3.9", "3.9.2"))
    board.command("python3.13", python("/home/USER/python3.13", "3.13.1"))
    board.command("python3.12", python("/usr/bin/python3.12"))
    assert probe(board, pythons="/nowhere")["python"] == "/usr/bin/python3.12"


def test_a_version_is_installed_once_its_agent_has_started_and_while_its_python_is_there(board):
    assert (found := probe(board))["installed"] == "" and found["complete"] == ""
    old = board.version("0.1.0-a", complete=True)
    (old / ".libraries").write_text("1a2b\n")
    assert (found := probe(board))["installed"] == "versions/0.1.0-a" and found["libraries"] == "1a2b"
    board.version("0.2.0-b", complete=False)
    assert (found := probe(board))["complete"] == "0.1.0-a" and found["installed"] == ""
    (old / "bin/python").unlink()
    (old / "bin/python").symlink_to("/nowhere/python3")
    assert probe(board)["complete"] == ""


# What apt offers

POLICY = """#!/bin/sh
# As apt-cache does: a name that isn't known is a regular expression.
for name; do :; done
case $name in
  python3) printf 'python3:\\n  Installed: (none)\\n  Candidate: 3.9.2-3\\n' ;;
  python3.13) printf 'postgresql-plpython3-13:\\n  Installed: (none)\\n  Candidate: 3.13.23-1\\n' ;;
  python3.12) printf 'python3.12:\\n  Installed: (none)\\n  Candidate: %s\\n' "$PYTHON312" ;;
  rsync) printf 'rsync:\\n  Installed: (none)\\n  Candidate: 3.2.7-1\\nlibrsync2:\\n  Candidate: 2.3.2\\n' ;;
esac
"""


@pytest.mark.parametrize(
    ("wanted", "python312", "said"),
    [
        ("python3", "1:3.12.4-1", "python3.12"),
        ("python3 rsync", "3.12.4-1", "python3.12 rsync"),
        ("python3", "(none)", ""),
        ("python3", "2.7.18", ""),
        ("rsync", "(none)", "rsync"),
        ("fish", "(none)", ""),
    ],
)
def test_only_a_package_of_the_very_name_is_one(board, monkeypatch, wanted, python312, said):
    board.command("apt-get", "exit 0")
    board.command("apt-cache", POLICY)
    monkeypatch.setenv("PYTHON312", python312)
    found = boards.facts_in(board.run(board.text("preflight/files/packages.sh"), wanted, "check").stdout)
    assert found.get("packages", "") == said
    if "python3.12" in said:
        assert (found["python"], found["python_minor"]) == ("/usr/bin/python3.12", "3.12")


# The agent's scripts


def test_a_version_is_complete_once_its_agent_has_started(board):
    version = board.version("0.1.0+x-a", complete=False)
    (board.root / "run/edgellm-agent").mkdir(parents=True)
    inputs = board.root / "run/edgellm-agent/inputs"
    inputs.write_text("versions/0.1.0+x-a\nmodels/1a2b\n")
    assert board.run(board.text("agent/files/inputs.sh"), "started").returncode == 0
    assert (version / ".complete").exists()


HOSTILE = ["versions/../../../escaped", "/escaped", "versions/", "versions/a b", "versions/.", ""]


@pytest.mark.parametrize("named", HOSTILE)
def test_what_the_agent_may_write_names_no_other_file_to_root(board, named):
    board.version("0.1.0-a", complete=False)
    for folder in ("escaped", "opt/edgellm/versions/a b", "run/edgellm-agent"):
        (board.root / folder).mkdir(parents=True)
    (board.root / "run/edgellm-agent/inputs").write_text(f"{named}\n")
    assert board.run(board.text("agent/files/inputs.sh"), "started").returncode == 1
    assert not list(board.root.rglob(".complete"))


def test_a_version_that_never_started_is_none_to_go_back_to(board):
    board.command("systemctl", "echo failed")
    state = board.text("agent/files/state.sh")
    board.version("0.2.0-b", complete=False)
    assert json.loads(board.run(state).stdout)["version"] == ""
    board.version("0.1.0-a", complete=True)
    assert json.loads(board.run(state).stdout)["version"] == "0.1.0-a"


@pytest.mark.parametrize(("before", "stopped"), [("0.1.0-a", False), ("", True)])
def test_an_agent_that_fails_is_left_to_nobody_who_starts_it_for_ever(board, before, stopped):
    board.command("journalctl", "echo why; echo not")
    board.command("systemctl", f'echo "$*" >>{board.root}/systemctl; case $* in *MainStatus*) echo 1 ;; esac')
    version = board.version("0.2.0-b", complete=True)
    done = board.run(board.text("agent/files/failed.sh"), "0.2.0-b", before, "1700000000")
    assert done.stdout == "why\nnot\n" and done.returncode == 0
    assert not (version / ".complete").exists(), "it is installed again next time"
    assert ("disable --quiet --now" in (board.root / "systemctl").read_text()) == stopped


def test_an_agent_that_systemd_cannot_execute_is_named_with_its_python(board):
    board.command("journalctl", "true")
    shown = "*MainStatus*) echo 203 ;; *ExecStart*) echo '{ path=/opt/x ; argv[]=/opt/x }' ;;"
    board.command("systemctl", f"case $* in {shown} esac")
    version = board.version("0.2.0-b", complete=True)
    (version / "bin/python").unlink()
    (version / "bin/python").symlink_to(board.root / "gone")
    said = board.run(board.text("agent/files/failed.sh"), "0.2.0-b", "", "1700000000").stdout
    assert said == f"systemd can't execute /opt/x (203/EXEC), whose Python is '{board.root}/gone'\n"


def test_a_sentence_says_why_the_agent_does_not_start():
    journal = (
        "Starting edgellm agent: a section of a model...\n"
        "edgellm-agent.service: Failed to execute /opt/edgellm/current/bin/edgellm: No such file or directory\n"
        "edgellm-agent.service: Failed at step EXEC spawning /opt/edgellm/current/bin/edgellm: No such file\n"
        "edgellm-agent.service: Main process exited, code=exited, status=203/EXEC\n"
        "edgellm-agent.service: Failed with result 'exit-code'.\nFailed to start edgellm agent: a section of a model.\n"
    )
    failed = {"msg": "Unable to restart service edgellm-agent.service: Job for edgellm-agent.service failed"}
    assert boards.not_healthy(failed, "pi1", "0.2.0-b", {"version": ""}, journal) == (
        "board pi1: the agent of edgellm 0.2.0-b doesn't start, and there is no previous version to go back to. Its "
        "journal ends: edgellm-agent.service: Failed to execute /opt/edgellm/current/bin/edgellm: No such file or "
        "directory."
    )


@pytest.mark.parametrize(
    "result",
    [{"msg": "Task failed: Timed out after 60 second(s).", "timedout": {"period": 60}},
     {"msg": "probe: not done after 60 s", "rc": 124}],
)  # fmt: skip
def test_a_command_that_is_not_done_in_time_is_no_dead_cable(result):
    assert boards.why(result, "pi1", "192.0.2.1") == (
        "board pi1: SSH works, but a command was not done after 60 s. Try 'ssh 192.0.2.1 true'. Its login scripts must "
        "not wait or start another shell, and its disk must answer."
    )


# The unit

SETTINGS = {
    "inventory_hostname": "pi1", "ansible_managed": "", "agent_start_seconds": 300, "edgellm_port": 7710,
    "edgellm_path": "auto", "edgellm_threads": "", "edgellm_cores": "", "edgellm_ram": "", "edgellm_memory_max": "90%",
    "edgellm_drain_seconds": 60, "edgellm_cache_gb": "0.5",
    "agent_further": [{"id": "0123456789ab"}],
}  # fmt: skip


@pytest.mark.parametrize(("address", "listen"), [("192.0.2.1", "192.0.2.1:7710"), ("fd00::12", "[fd00::12]:7710")])
def test_the_unit_listens_on_either_kind_of_address(address, listen):
    template = (ROLES / "agent/templates/edgellm-agent.service.j2").read_text()
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    unit = environment.from_string(template).render(**SETTINGS, agent_address=address)
    folders = "--shards /var/lib/edgellm/model \\\n    --shards /var/lib/edgellm/models/0123456789ab \\\n"
    assert f"{folders}    --listen {listen} \\\n" in unit
    assert " --drain-seconds 60 \\\n    --cache /var/lib/edgellm/cache --cache-gb 0.5\n" in unit
    assert "\nStateDirectory=edgellm/agent edgellm/cache\n" in unit
