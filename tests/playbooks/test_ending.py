"""The last lines of a run, from what it left in boards' variables."""

from tests.playbooks.plugins import plugin

ending = plugin("callback", "edgellm_ending")
FORMED = {"_cluster_form": {"answers": {
    "form": {"sections": [{"board": "pi2", "start": 0, "end": 12}, {"board": "pi1", "start": 12, "end": 30}],
             "unused": ["pi3"], "missing": {}},
    "canary": {"ok": True},
}}}  # fmt: skip
OFF = "board pi4 (192.0.2.4) can't be reached over SSH. Check its power and cable, and ansible_host."


def told(boards, lost=(), said=None, problem="", playbook="deploy") -> list[str]:
    return ending.ending(boards, list(lost), said or {}, problem, playbook)


def test_a_cluster_that_answers_ends_in_ready():
    assert told({"pi1": FORMED, "pi2": FORMED, "pi3": FORMED}) == [
        "pi2 holds layers 0-11",
        "pi1 holds layers 12-29",
        "pi3 holds nothing: the model needs fewer boards",
        'ready: edgellm ask "Why is the sky blue?"',
    ]


def test_a_board_left_out_is_named_last_though_the_cluster_answers():
    lines = told({"pi1": FORMED, "pi4": {"preflight_reason": OFF}})
    assert lines[-1] == OFF and any(line.startswith("ready: ") for line in lines)


def test_every_board_is_named_before_what_stopped_the_run():
    problem = "The model doesn't fit: it needs 2 GB more. Nothing was changed on any board."
    boards = {"pi1": {"preflight_reason": ""}, "pi4": {"preflight_reason": OFF}, "pi5": {}}
    lines = told(boards, lost=["pi5"], problem=problem)
    assert lines[0] == OFF and lines[1].startswith("board pi5 was lost during this run") and lines[2:] == [problem]


def test_what_the_problem_says_already_is_not_said_twice():
    problem = f"The model doesn't fit: first bring back what is left out: {OFF} It would fit on another board."
    assert told({"pi1": {}, "pi4": {"preflight_reason": OFF}}, problem=problem) == [problem]


def test_no_board_at_all():
    boards = {name: {"preflight_reason": f"board {name} is off."} for name in ("pi1", "pi2")}
    assert told(boards) == ["board pi1 is off.", "board pi2 is off.", "No board is left to form a cluster with."]


def test_a_board_that_does_not_answer_is_named():
    missing = {"_cluster_form": {"answers": {**FORMED["_cluster_form"]["answers"],
                                             "form": {**FORMED["_cluster_form"]["answers"]["form"],
                                                      "missing": {"pi9": "board pi9 does not answer."}}}}}  # fmt: skip
    assert told({"pi1": missing})[-1] == "board pi9 does not answer."


def test_without_the_canary_nothing_is_ready():
    unproved = {"_cluster_form": {"answers": {"form": FORMED["_cluster_form"]["answers"]["form"]}}}
    assert told({"pi1": unproved}, problem="the answer is wrong.") == ["the answer is wrong."]


def test_a_task_that_failed_outside_of_any_rescue_is_said():
    assert told({"pi1": FORMED, "pi2": {}}, said={"pi2": "board pi2: its disk is full."}, playbook="upgrade")[-1] == (
        "board pi2: its disk is full."
    )


def test_reset_says_how_to_let_a_board_go():
    lines = told({"pi1": {"reset_reason": ""}, "pi4": {"reset_reason": OFF}}, playbook="reset")
    assert lines == [
        OFF,
        "The certificates stay on this machine, so that you can run this again. To let pi4 go, add -e without=pi4.",
    ]


def test_a_board_whose_line_is_gone_is_named_if_its_agent_may_still_run():
    [*_, last] = told({"pi1": FORMED, "pi4": {"retire_reason": OFF}})
    assert last.startswith(OFF) and "no longer in the inventory" in last
    assert last.endswith("sudo systemctl disable --now edgellm-agent")


def step(**answer) -> dict:
    return {"_identity_step": {"answers": {"step": answer}, "problem": ""}}


def test_what_was_revoked_is_said_and_what_to_do_with_a_board_s_line():
    boards = {"pi1": {**FORMED, **step(changed=True, who=["board pi9"], boards=["pi9"], admin=False)}}
    lines = told(boards, playbook="revoke")
    assert lines[:2] == [
        "The certificates of board pi9 are revoked.",
        "Remove the line of pi9 from the inventory if it is gone, or the next deploy adds it again.",
    ]
    assert lines[-1].startswith("ready: ")
    again = {"pi1": step(changed=False, who=["manager anna"], boards=[], admin=False)}
    assert told(again, playbook="revoke") == ["The certificates of manager anna were already revoked."]


def test_a_board_that_does_not_know_yet_is_named_after_what_was_revoked():
    reason = "board pi2 can't be reached. It still accepts what has been revoked; its next deploy tells it."
    done = step(changed=True, who=["manager anna"], boards=[], admin=False)
    assert told({"pi1": done, "pi2": {**done, "preflight_reason": reason}}, playbook="revoke") == [
        "The certificates of manager anna are revoked.", reason,
    ]  # fmt: skip


def test_an_identity_s_file_is_said_with_what_to_do_with_it():
    boards = {"pi1": step(changed=True, name="anna", admin=False, file="/home/me/anna.edgellm")}
    (line,) = told(boards, playbook="manager")
    assert line == (
        "/home/me/anna.edgellm lets anna ask. Move it to that machine, and run there: edgellm join anna.edgellm"
    )
