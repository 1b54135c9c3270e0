"""The page of a playbook's run, at any width."""

from edgellm.cli.page import amount, clock, page
from edgellm.controller.events import Run
from tests.controller.test_events import task


def deploying() -> Run:
    run = Run()
    task(run, "model", "pi1")
    task(run, "preflight", "pi1", "orangepi2", "pi3")
    task(run, "preflight", "pi3", ansible_facts={"preflight_reason": "board pi3 is off."})
    task(run, "base", "pi1", "orangepi2", changed=True)
    task(run, "software", "pi1", "orangepi2")
    run.progress({"board": "pi1", "what": "push", "done": 31_000_000, "total": 52_000_000})
    return run


def shown(run: Run, width: int) -> list[str]:
    return [line.plain.rstrip() for line in page(run, "deploy", 62.4, width)]


def test_a_row_for_the_controller_and_for_each_board():
    assert shown(deploying(), 100) == [
        "deploy  1:02",
        "this machine  ✓ model",
        "pi1           ✓ inspection  ✓ base  ● software  push  31 of 52 MB",
        "orangepi2     ✓ inspection  ✓ base  ● software",
        "pi3           ✗ left out",
    ]


def test_a_narrow_terminal_counts_what_is_done():
    assert shown(deploying(), 60)[2] == "pi1           ✓ 1  ✓ base  ● software  push  31 of 52 MB"
    assert shown(deploying(), 50)[2] == "pi1           ✓ 2  ● software  push  31 of 52 MB"


def test_no_line_is_wider_than_the_terminal():
    run = deploying()
    for width in (20, 30, 45, 60, 80):
        assert all(line.cell_len <= width for line in page(run, "deploy", 62.4, width))


def test_a_failed_step_stays_in_sight():
    run = deploying()
    task(run, "software", "orangepi2", kind="runner_on_failed", msg="no")
    task(run, "cluster", "orangepi2", file="form")
    assert shown(run, 34)[3] == "orangepi2     ✓ 2  ✗ software"


def test_before_the_first_event_there_is_a_title():
    assert shown(Run(), 80) == ["deploy  1:02"]


def test_amounts_and_times():
    assert amount(31_000_000, 52_000_000) == "31 of 52 MB" and amount(3, 12) == "25 %"
    assert clock(7.9) == "0:07" and clock(754) == "12:34"
