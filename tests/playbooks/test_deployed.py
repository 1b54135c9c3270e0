"""What differs on a board, and what a run does about it."""

import base64
import hashlib
import json

import pytest

from tests.playbooks.plugins import plugin

deployed = plugin("filter", "deployed")
UNIT, SCRIPT = "[Unit]\n", "# inputs\n"


@pytest.fixture
def identity(tmp_path):
    for name in deployed.IDENTITY:
        (tmp_path / name).write_text(f"the {name}\n")
    return tmp_path


def wanted(identity, **changes) -> dict:
    return {"packages": [], "identity": str(identity), "version": "1-a", "complete": ["0-z", "1-a"], "model": "m1",
            "shards": {"names": [], "problem": ""}, "further": [], "unit": UNIT, "script": SCRIPT,
            **changes}  # fmt: skip


def found(identity, **changes) -> dict:
    """What a board prints that lacks nothing; `changes` are to the agent's state."""
    state = {"time_s": 1, "version": "1-a", "model": "m1", "active": "active", "enabled": "enabled",
             "unit": base64.b64encode(UNIT.encode()).decode(),
             "script": hashlib.sha256(SCRIPT.encode()).hexdigest(), **changes}  # fmt: skip
    return {"base": "", "identity": "\n".join(sorted(deployed.identity_lines(identity))), "inputs": "",
            "agent": json.dumps(state)}  # fmt: skip


def test_a_board_that_has_everything_differs_in_nothing(identity):
    assert deployed.differences(found(identity), wanted(identity)) == []


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"packages": ["python3"]}, ["packages"]),
        ({"version": "2-b"}, ["software", "agent"]),
        ({"complete": ["0-z"]}, ["software"]),
        ({"shards": {"names": ["layer-0000.safetensors"], "problem": ""}}, ["shards"]),
        ({"shards": {"names": [], "problem": "board pi1 has no room."}}, ["shards"]),
        ({"further": [{"names": [], "problem": ""}]}, []),
        ({"further": [{"names": ["head.safetensors"], "problem": ""}]}, ["shards"]),
        ({"model": "m2"}, ["agent"]),
        ({"unit": "[Unit]\nother\n"}, ["agent"]),
        ({"script": "# others\n"}, ["agent"]),
        ({"version": "", "complete": [], "model": ""}, []),  # the board's own are kept
    ],
)
def test_each_thing_that_is_wanted_differs_by_itself(identity, change, differs):
    assert deployed.differences(found(identity), wanted(identity, **change)) == differs


@pytest.mark.parametrize("state", [{"active": "failed"}, {"enabled": "disabled"}, {"model": "", "version": ""}])
def test_an_agent_that_does_not_run_as_it_should_differs(identity, state):
    assert deployed.differences(found(identity, **state), wanted(identity)) == ["agent"]


def test_a_file_that_was_replaced_under_a_running_agent_differs(identity):
    changed = {**found(identity), "inputs": "/var/lib/edgellm/model/head.safetensors 12 34\n"}
    assert deployed.differences(changed, wanted(identity)) == ["agent"]


def test_another_key_or_another_owner_differs(identity):
    there = found(identity)
    (identity / "key.pem").write_text("a new key\n")
    assert deployed.differences(there, wanted(identity)) == ["identity"]
    (identity / "key.pem").write_text("the key.pem\n")
    there["identity"] = there["identity"].replace("key.pem edgellm edgellm 0600", "key.pem root root 0644")
    assert deployed.differences(there, wanted(identity)) == ["identity"]


def test_a_user_or_a_folder_that_is_missing_differs(identity):
    there = {**found(identity), "base": "edgellm_made=user edgellm\n"}
    assert deployed.differences(there, wanted(identity)) == ["base"]


def host(**changes) -> dict:
    return {"preflight_reason": "", "preflight_board": {"installed": "versions/1-a"}, "agent_differs": [], **changes}


def test_boards_are_grouped_by_what_there_is_to_do():
    assert deployed.groups(host()) == ["ready", "running"]
    assert deployed.groups(host(agent_differs=["base"], agent_push={"short": True})) == ["ready", "changing", "short"]
    assert deployed.groups(host(preflight_reason="board pi1 is off.")) == ["out"]
    assert deployed.groups(host(_model_command={"problem": "there is no such model"})) == ["stopped"]


def test_a_model_that_does_not_fit_changes_nothing():
    fit = {"_cluster_fit": {"problem": "it needs 2 GB more.", "problems": {"fit": "it needs 2 GB more."}}}
    assert deployed.problem(fit) == "The model doesn't fit: it needs 2 GB more. Nothing was changed on any board."
    assert deployed.problem({"_model_command": {"problem": ""}, "_cluster_fit": {"skipped": True}}) == ""


@pytest.mark.parametrize("value", ["pi1,pi2", "pi1 pi2", ["pi1", "pi2"], " pi1, pi2 "])
def test_names_after_without(value):
    assert deployed.names(value) == ["pi1", "pi2"]


def test_without_names_boards_of_the_inventory_and_leaves_one():
    assert deployed.without_problem("pi2", ["pi1", "pi2"]) == ""
    assert "There is no board pi3 to go on without. The boards are pi1, pi2." in deployed.without_problem(
        "pi3", ["pi1", "pi2"]
    )
    assert "leaves out all boards" in deployed.without_problem("pi1,pi2", ["pi1", "pi2"])


def test_an_upgrade_names_who_holds_it_up_and_the_way_on():
    hosts = {"pi1": host(), "pi2": host(preflight_reason="board pi2 is off."), "pi3": host(preflight_board={})}
    assert deployed.upgrade_problem(hosts, "") == (
        "No board was upgraded, because pi2 and pi3 can't be. board pi3 has no edgellm yet, so run "
        "'edgellm deploy' first. To go on without pi2 and pi3, add -e without=pi2,pi3."
    )
    assert deployed.upgrade_problem({"pi1": host(), "pi2": host(preflight_reason="left out")}, "pi2") == ""
    assert "-e without" not in deployed.upgrade_problem({"pi1": host(preflight_reason="board pi1 is off.")}, "")


def test_a_board_that_the_user_left_out_is_no_failure():
    out = {"inventory_hostname": "pi1", "preflight_reason": "board pi1 was left as it is."}
    assert deployed.failure(out) == "board pi1 was left as it is." and deployed.failure(out, "pi1") == ""
    assert deployed.failure({"inventory_hostname": "pi1", "_cluster_form": {"problem": "no answer"}}) == "no answer"
