"""`edgellm deploy` and its sisters: what they hand to Ansible, what they say, how they end."""

import json
import re
import sys
from pathlib import Path

import pytest

from edgellm.controller import playbook
from edgellm.controller.installed import project
from tests.cli.test_cli import call, fails
from tests.controller.test_events import event


class Ansible:
    """In place of ansible-runner: hands out `events`, and keeps how it was called."""

    def __init__(self):
        self.calls, self.events, self.rc = [], [], 0

    def __call__(self, project, playbook, arguments, passwords, on_event, on_progress, tick):
        self.calls.append((playbook, arguments, passwords))
        for told in self.events:
            on_event(told)
            tick()
        return self.rc

    @property
    def arguments(self) -> list[str]:
        return self.calls[-1][1]


@pytest.fixture
def ansible(monkeypatch, tmp_path):
    fake = Ansible()
    monkeypatch.setattr(playbook, "run", fake)
    monkeypatch.chdir(tmp_path)
    Path("inventory.ini").write_text("[boards]\npi1 ansible_host=192.0.2.1\n[boards:vars]\nedgellm_model=other\n")
    return fake


def test_the_sample_is_the_repositorys_inventory():
    assert call("deploy", "--sample").stdout == (project() / "inventory.ini").read_text()


@pytest.mark.parametrize("command", [["deploy"], ["upgrade"], ["model", "x"], ["remove", "pi1"], ["reset", "--yes"],
                                     ["manager", "anna"], ["revoke", "pi1"]])  # fmt: skip
def test_without_an_inventory_the_way_to_get_one_is_said(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no inventory.ini. Get one with 'edgellm deploy --sample > inventory.ini'" in fails(2, *command)


@pytest.mark.parametrize(
    ("command", "played", "more"),
    [
        (["deploy", "--check", "--limit", "pi1,pi2"], "deploy.yml", ["--check", "--limit", "pi1,pi2"]),
        (["deploy", "-e", "edgellm_port=7711"], "deploy.yml", ["-e", "edgellm_port=7711"]),
        (["upgrade"], "playbooks/upgrade.yml", []),
        (["model", "a b.gguf"], "playbooks/model.yml", ["-e", '{"edgellm_model": "a b.gguf"}']),
        (["remove", "pi1"], "playbooks/remove.yml", ["-e", '{"board": "pi1"}']),
        (["revoke", "pi1", "--check"], "playbooks/revoke.yml", ["-e", '{"revoke": "pi1"}', "--check"]),
        (["manager", "a", "--admin", "--to", "/x/y"], "playbooks/manager.yml",
         ["-e", '{"manager": "a", "admin": true, "to": "/x/y"}']),
        (["reset", "--yes"], "playbooks/reset.yml", []),
    ],
)  # fmt: skip
def test_what_ansible_is_called_with(ansible, tmp_path, command, played, more):
    assert call(*command).exit_code == 0
    assert ansible.calls == [(played, ["-i", str(tmp_path / "inventory.ini"), *more], {})]
    assert (project() / played).is_file()


def test_an_identity_s_file_is_in_the_folder_where_the_command_was_started(ansible, tmp_path):
    call("manager", "anna")
    told = json.loads(ansible.arguments[ansible.arguments.index("-e") + 1])
    assert told == {"manager": "anna", "admin": False, "to": str(tmp_path / "anna.edgellm")}


def test_passwords_are_asked_for_and_are_no_arguments(ansible, monkeypatch):
    answers = iter(["one", "two"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    assert call("deploy", "-k", "-K").exit_code == 0
    assert ansible.arguments[-2:] == ["--ask-pass", "--ask-become-pass"]
    assert list(ansible.calls[0][2].values()) == ["one", "two"]


def test_reset_asks_first(ansible):
    assert "Say so with --yes" in fails(2, "reset")
    assert ansible.calls == [] and call("reset", "--check").exit_code == 0


def test_another_model_belongs_into_the_inventory_too(ansible):
    assert "Set edgellm_model=phi3 in inventory.ini too" in call("model", "phi3").stderr
    assert "edgellm_model" not in call("model", "other").stderr


def deployed(*, lost: str = "") -> list[dict]:
    """The events of a deploy of two boards, of which `lost` is left out for a reason."""
    events = [event("runner_on_start", b, "preflight") for b in ("pi1", "pi2")]
    for board in ("pi1", "pi2"):
        reason = f"board {board} is off. Switch it on." if board == lost else ""
        events.append(event("runner_on_ok", board, "preflight", res={"ansible_facts": {"preflight_reason": reason}}))
    events += [event("runner_on_start", "pi1", "agent"), event("runner_on_ok", "pi1", "agent", res={"changed": True})]
    counts = {"changed": {"pi1": 1}, "failures": {lost: 1} if lost else {}}
    events.append({"event": "playbook_on_stats", "event_data": counts})
    ending = ["pi1 holds layers 0-29", 'ready: edgellm ask "Hi"']
    ending += [f"board {lost} is off. Switch it on."] if lost else []
    return events + [{"event": "verbose", "stdout": line} for line in ending]


def test_away_from_a_terminal_a_line_a_step_and_the_ending_on_stdout(ansible):
    ansible.events = deployed()
    done = call("deploy")
    assert [line.split("s  ")[1] for line in done.stderr.splitlines()] == ["boards: inspection", "boards: agent"]
    assert done.stdout == 'pi1 holds layers 0-29\nready: edgellm ask "Hi"\n' and done.exit_code == 0


def test_a_board_that_is_left_out_is_named_with_its_way_out(ansible):
    ansible.events, ansible.rc = deployed(lost="pi2"), 2
    done = call("deploy")
    assert done.exit_code == 1 and done.stdout.endswith('ready: edgellm ask "Hi"\n')
    assert done.stderr.splitlines()[-1] == "edgellm: board pi2 is off. Switch it on."
    assert "pi2 is left out" in done.stderr


def test_ctrl_c_says_that_the_next_run_goes_on(ansible, monkeypatch):
    def interrupted(*how):
        raise KeyboardInterrupt

    monkeypatch.setattr(playbook, "run", interrupted)
    done = call("deploy")
    assert (done.exit_code, done.stderr.strip()) == (130, "deploy was stopped. Running it again goes on from there.")


def test_json_lines_for_scripts(ansible):
    ansible.events, ansible.rc = deployed(lost="pi2"), 2
    done = call("deploy", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(told["event"], told.get("board"), told.get("step")) for told in lines] == [
        ("step", "pi1", "inspection"), ("step", "pi2", "inspection"), ("left out", "pi2", None),
        ("step", "pi1", "agent"), ("end", None, None),
    ]  # fmt: skip
    why = "board pi2 is off. Switch it on."
    assert lines[-1] == {
        "seconds": lines[-1]["seconds"], "event": "end", "ok": False, "changed": True, "errors": [why],
        "left_out": {"pi2": why}, "notes": [], "ready": ["pi1 holds layers 0-29", 'ready: edgellm ask "Hi"'],
    }  # fmt: skip
    assert done.exit_code == 1 and done.stderr == ""


def test_the_transcript_of_the_first_hour_is_of_no_machine_in_particular():
    page = (project() / "docs" / "first-hour.md").read_text()
    transcript = page.partition("```text\n")[2].partition("```")[0]
    typed = re.findall(r"^\$ uvx .* edgellm (\w+)", transcript, re.M)
    assert typed[:3] == ["deploy", "deploy", "ask"]
    assert '\nready: edgellm ask "' in transcript and len(re.findall(r"^# \d+ s$", transcript, re.M)) >= 3
    assert not re.search(r"https?:|/root|/home|/tmp|/var|/work", transcript)


def test_without_the_extra_the_way_to_install_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ansible_runner", None)
    monkeypatch.chdir(tmp_path)
    Path("inventory.ini").write_text("[boards]\n")
    assert fails(1, "deploy") == (
        "this needs ansible_runner, which is not installed. Run 'make controller', or "
        "pip install 'edgellm[controller]'."
    )


def test_v_hands_over_to_ansible(ansible, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("os.execve", lambda *how: seen.append(how))
    monkeypatch.setattr(playbook, "command", lambda: tmp_path / "ansible-playbook")
    call("deploy", "-v", "--check")
    binary, arguments, environment = seen[0]
    assert arguments == [binary, str(project() / "deploy.yml"), "-i", str(tmp_path / "inventory.ini"), "--check"]
    assert environment["ANSIBLE_CONFIG"] == str(project() / "ansible.cfg")
