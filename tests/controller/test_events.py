"""Ansible's events as what each board is doing, and how a run ended."""

from pathlib import Path

import pytest

from edgellm.controller.events import STEPS, Run, step_of

ROOT = Path(__file__).parents[2]


def event(kind: str, host: str = "", role: str = "", file: str = "main", **more) -> dict:
    """An event in ansible-runner's form."""
    path = f"/somewhere/ansible/roles/{role}/tasks/{file}.yml:3" if role else "/somewhere/playbooks/deploy.yml:9"
    action = more.pop("action", "ansible.builtin.command")
    data = {"host": host, "role": role or None, "task_path": path, "task_action": action, "resolved_action": action}
    return {"event": kind, "event_data": {**data, **more}}


def task(run: Run, role: str, *hosts: str, file: str = "main", kind: str = "runner_on_ok", **res) -> list:
    """A task of a role on some hosts; returns the steps that began."""
    began = [pair for h in hosts for pair in run.take(event("runner_on_start", h, role, file))]
    for host in hosts:
        run.take(event(kind, host, role, file, res=res))
    return [(row.name, step.name) for row, step in began]


def steps(run: Run, board: str) -> list[tuple[str, str]]:
    row = run.boards[board] if board else run.machine
    return [(step.name, step.state) for step in row.steps]


def stats(run: Run, **counts) -> None:
    run.take({"event": "playbook_on_stats", "event_data": counts})


def debug(run: Run, host: str, message, **more) -> None:
    run.take(event("runner_on_ok", host, action="ansible.builtin.debug", res={"msg": message}, **more))


def test_every_role_has_its_place_on_the_page():
    roles = {p.name for p in (ROOT / "ansible/roles").iterdir() if p.is_dir()}
    files = {f"{p.parents[1].name}/{p.stem}" for p in (ROOT / "ansible/roles").glob("*/tasks/*.yml")}
    assert roles <= {key.split("/")[0] for key in STEPS}
    assert {key for key in STEPS if "/" in key} <= files
    assert {key for key in STEPS if "/" not in key} <= roles


def test_a_step_begins_once_and_ends_when_the_next_begins():
    run = Run()
    assert task(run, "preflight", "pi1", "pi2") == [("pi1", "inspection"), ("pi2", "inspection")]
    assert task(run, "preflight", "pi1", "pi2") == []
    assert task(run, "model", "pi1") == [("this machine", "model")]
    assert steps(run, "pi1") == [("inspection", "done")] and steps(run, "") == [("model", "running")]
    assert task(run, "software", "pi1", "pi2", changed=True) == [("pi1", "software"), ("pi2", "software")]
    assert steps(run, "") == [("model", "done")]
    stats(run, changed={"pi1": 1})
    assert steps(run, "pi2") == [("inspection", "done"), ("software", "done")]
    assert run.boards["pi1"].steps[1].changed and not run.boards["pi1"].steps[0].changed and run.changed
    assert run.errors(0) == []


def test_what_the_controller_does_for_all_is_one_row():
    run = Run()
    task(run, "preflight", "pi1", "pi2")
    assert task(run, "wheelhouse", "pi1", "pi2") == [("this machine", "wheels")]
    assert steps(run, "pi1") == steps(run, "pi2") == [("inspection", "done")]
    assert task(run, "cluster", "pi2", file="fit") == [("this machine", "fit")]
    assert steps(run, "") == [("wheels", "done"), ("fit", "running")]


def test_a_step_whose_tasks_are_skipped_is_none():
    run = Run()
    task(run, "base", "pi1")
    task(run, "shards", "pi1", kind="runner_on_skipped")
    task(run, "agent", "pi1")
    assert steps(run, "pi1") == [("base", "done"), ("agent", "running")]


def test_ansibles_own_tasks_and_bookkeeping_are_no_steps():
    assert step_of({"role": "model", "task": "Validating arguments against arg spec 'main' - The model"}) is None
    run = Run()
    assert task(run, "cluster", "pi1", file="removed") == []
    assert task(run, "", "localhost") == [] and run.boards.keys() == {"pi1"}


def test_a_board_is_left_out_as_soon_as_its_reason_is_known():
    run, why = Run(), "board pi2 can't be reached over SSH. Check its power and cable, and ansible_host."
    task(run, "preflight", "pi1", "pi2", ansible_facts={"preflight_reason": ""})
    task(run, "preflight", "pi2", ansible_facts={"preflight_reason": why})
    assert run.left_out == {"pi2": why} and steps(run, "pi2")[-1] == ("inspection", "failed")
    task(run, "agent", "pi1")
    run.take(event("runner_on_failed", "pi2", res={"msg": why}))
    stats(run, failures={"pi2": 1})
    assert run.errors(2) == [why]


def test_all_reasons_are_named_once_whatever_else_failed():
    run = Run()
    for board in ("pi1", "pi2"):
        task(run, "preflight", board, ansible_facts={"preflight_reason": f"board {board} is off."})
    text = "board pi1 is off.\nboard pi2 is off.\nNothing was changed."
    run.take(event("runner_on_failed", "pi1", res={"msg": text}))
    stats(run, failures={"pi1": 1})
    assert run.errors(2) == ["board pi1 is off.", "board pi2 is off.", "Nothing was changed."]


def test_a_failure_that_was_rescued_is_none():
    run = Run()
    task(run, "software", "pi1", kind="runner_on_failed", msg="pip failed")
    task(run, "cluster", "pi1", file="form")
    stats(run, failures={}, rescued={"pi1": 1})
    assert run.errors(0) == [] and steps(run, "pi1") == [("software", "failed")]


def test_the_last_failure_of_a_host_counts():
    run = Run()
    task(run, "agent", "pi1", kind="runner_on_failed", msg="non-zero return code")
    run.take(event("runner_on_failed", "pi1", res={"msg": "board pi1: the agent doesn't start."}))
    stats(run, failures={"pi1": 1})
    assert run.errors(2) == ["board pi1: the agent doesn't start."]


def test_what_a_board_says_cannot_drive_the_terminal():
    run, evil = Run(), "board pi1: \x1b]0;title\x07\x1b[2Jgone\r\x00. Fix that."
    task(run, "preflight", "pi1", ansible_facts={"preflight_reason": evil})
    stats(run, failures={"pi1": 1})
    run.take({"event": "verbose", "stdout": evil})
    assert all(text.isprintable() for text in [*run.left_out.values(), *run.sentences, *run.errors(2)])


def test_a_step_of_the_controller_with_a_problem_has_failed():
    run = Run()
    task(run, "preflight", "pi1")
    task(run, "model", "pi1", problem="x is no model", answers={})
    task(run, "wheelhouse", "pi1", problem="", answers={})
    assert steps(run, "") == [("model", "failed"), ("wheels", "running")]


def test_a_failed_command_of_ours_says_its_own_sentence():
    run = Run()
    result = {"msg": "non-zero return code", "stderr": "split x …\nedgellm: x is no model."}
    run.take(event("runner_on_failed", "pi1", "model", res=result))
    assert run.errors(2) == ["x is no model."]


def test_an_ignored_failure_is_none():
    run = Run()
    run.take(event("runner_on_failed", "pi1", "model", res={"msg": "no"}, ignore_errors=True))
    assert "exit code 4" in run.errors(4)[0]


def test_a_board_lost_in_the_middle_is_named():
    run = Run()
    task(run, "software", "pi1", "pi2")
    run.take(event("runner_on_unreachable", "pi2", "software", res={"msg": "Timeout, server not responding"}))
    stats(run, dark={"pi2": 1})
    assert run.errors(4) == ["board pi2 was lost. Check its power and cable, then run this again."]


def test_what_ansible_says_before_any_task():
    run = Run()
    run.take({"event": "error", "stdout": "[ERROR]: couldn't resolve module/action 'x'.\nOrigin: deploy.yml"})
    assert run.errors(4) == [
        "ansible-playbook ended with exit code 4: couldn't resolve module/action 'x'. Origin: deploy.yml. "
        "Run this again with -v to see all of it."
    ]
    assert "it said nothing" in Run().errors(250)[0]


def test_notes_of_boards_are_kept_once():
    run = Run()
    task(run, "agent", "pi1")
    debug(run, "pi1", "pi1: would push 12 files")
    debug(run, "pi1", ["pi1: would push 12 files"])
    debug(run, "localhost", "wheels were fetched")
    assert run.notes == ["pi1: would push 12 files"]


ENDING = ["pi1 holds layers 0-29", 'ready: edgellm ask "Hi"', "board pi2 is off. Switch it on."]


def test_the_ending_is_what_holds_and_who_is_left_out():
    run = Run()
    run.take({"event": "verbose", "stdout": "before the recap holds nothing"})
    task(run, "preflight", "pi2", ansible_facts={"preflight_reason": "board pi2 is off. Switch it on."})
    stats(run, failures={"pi2": 1})
    for line in ENDING:
        run.take({"event": "verbose", "stdout": f"\x1b[0;32m{line}\x1b[0m\r\n"})
    assert run.ready == ENDING[:2] and run.sentences == run.errors(2) == ENDING[2:]


def test_the_items_of_a_debug_task_are_notes():
    run = Run()
    task(run, "agent", "pi1")
    items = {"results": [{"msg": "board pi3 was lost."}, {"skipped": True, "msg": "no"}]}
    run.take(event("runner_on_ok", "pi1", action="ansible.builtin.debug", res=items))
    assert run.notes == ["board pi3 was lost."]


def test_what_a_board_does_now_and_how_far_it_is():
    run = Run()
    task(run, "shards", "pi1")
    debug(run, "pi1", "pi1: pushing 3 files, 97 MB …", role="shards", task_path="/x/roles/shards/tasks/main.yml:1")
    assert run.boards["pi1"].doing == "pushing 3 files, 97 MB …" and run.notes == []
    run.progress({"board": "pi1", "what": "push", "done": 5, "total": 10})
    assert (run.boards["pi1"].doing, run.boards["pi1"].done, run.boards["pi1"].total) == ("push", 5, 10)
    task(run, "agent", "pi1")
    assert (run.boards["pi1"].doing, run.boards["pi1"].total) == ("", 0)


def test_how_far_a_push_is():
    run = Run()
    task(run, "software", "pi1")
    for line in ("pi1: 12 of 52 MB", "pi1: 31 of 52 MB", "pi9: 1 of 2 MB"):
        run.take({"event": "verbose", "stdout": f"{line}\r\n"})
    assert (run.boards["pi1"].done, run.boards["pi1"].total) == (31_000_000, 52_000_000)
    assert run.output == [] and run.notes == []


@pytest.mark.parametrize("told", [{}, {"board": "nobody"}, {"done": "x", "total": None}, {"board": ["pi1"]}])
def test_odd_reports_of_progress_do_no_harm(told):
    run = Run()
    task(run, "model", "pi1")
    run.progress(told)
    assert (run.machine.done, run.machine.total) == (0, 0)


@pytest.mark.parametrize("kind", ["", "EOF", "runner_on_ok", "runner_on_start", "playbook_on_stats", "error"])
def test_events_without_content_do_no_harm(kind):
    run = Run()
    assert run.take({"event": kind}) == run.take({"event": kind, "event_data": {}}) == [] and not run.boards
