"""`edgellm controller steps`: several steps in one process."""

import json

from click.testing import CliRunner

from edgellm.cli.controller import controller
from tests.playbooks.plugins import plugin


def steps(*asked: dict) -> dict:
    done = CliRunner().invoke(controller, ["steps"], input=json.dumps(asked), catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def remember(name: str, path, **more) -> dict:
    return {"name": name, "command": ["remember"], "request": {"path": str(path), "boards": {"pi1": {}}}, **more}


def test_steps_run_in_turn_and_say_what_they_changed(tmp_path):
    said = steps(remember("one", tmp_path / "boards.json"), remember("two", tmp_path / "boards.json"))
    assert said == {"answers": {"one": {"changed": True}, "two": {"changed": False}}, "problems": {}, "problem": ""}
    assert (tmp_path / "boards.json").stat().st_mode & 0o777 == 0o600


def test_the_first_that_fails_ends_them_unless_it_is_optional(tmp_path):
    missing = {"name": "model", "command": ["model", str(tmp_path / "none.gguf")]}
    said = steps(missing, remember("two", tmp_path / "boards.json"))
    assert set(said["problems"]) == {"model"} and said["problem"] == said["problems"]["model"] and not said["answers"]
    said = steps({**missing, "optional": True}, remember("two", tmp_path / "boards.json"))
    assert said["problem"] == "" and set(said["problems"]) == {"model"} and set(said["answers"]) == {"two"}


def test_an_answer_that_must_be_true_ends_them(tmp_path):
    again = [remember(n, tmp_path / "boards.json", must="changed") for n in ("one", "two", "three")]
    said = steps(*again)
    assert set(said["answers"]) == {"one", "two"} and set(said["problems"]) == {"two"}


def test_a_wrong_option_is_a_problem_in_a_sentence():
    said = steps({"name": "x", "command": ["certificates", "--bord", "pi1"]})
    assert "--bord" in said["problem"]


def test_an_edgellm_that_prints_nothing_is_a_problem_too():
    read = plugin("action", "edgellm_controller").read
    assert read("", "Traceback …\nedgellm: no space left\n", 1)["problem"] == (
        "edgellm failed on this machine: no space left"
    )
    assert read("[]", "", 0)["problem"].startswith("edgellm failed on this machine")
    good = {"answers": {"a": {}}, "problems": {}, "problem": ""}
    assert read(json.dumps(good), "a note\n", 0) == good
