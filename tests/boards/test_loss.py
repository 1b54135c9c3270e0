"""A board is lost in mid-answer, in four ways and under two managers: the answer goes on as if nothing had been."""

import signal

import pytest

from tests.boards.conftest import MAX_TOKENS, PROMPT
from tests.boards.harness import Board, figure, wait_for

FAULT_AFTER = 40  # tokens


@pytest.fixture
def victim(cluster) -> Board:
    """The board in the middle of the pipeline."""
    order = sorted(cluster.controller.plan().items(), key=lambda item: item[1])
    return next(b for b in cluster.boards if b.name == order[1][0])


def answer_with(controller, reference, fault, what: str) -> None:
    """Ask, do `fault` in mid-answer, and have the answer of undisturbed transformers."""
    asking = controller.asking(PROMPT, MAX_TOKENS)
    asking.after(FAULT_AFTER)
    fault()
    had = len(asking.chunks)
    text = asking.answer(150)
    assert text == reference["text"]
    assert had < MAX_TOKENS * 0.9, "the answer was nearly done when the board was lost: that proves nothing"
    assert f"answer {MAX_TOKENS} tokens" in asking.errors
    figure(f"{what}: longest time without a token", asking.longest_gap())
    assert asking.longest_gap() < 30


def used_again(cluster, board: Board, reference) -> None:
    """The board's agent is back by itself; the next questions use it, or at the latest a deploy."""
    controller = cluster.controller
    wait_for(lambda: controller.row(board)["version"], 90, f"agent of {board}")
    assert controller.ask(PROMPT, 10)["tokens"] == reference["tokens"][:10]
    if board.name not in controller.plan():
        controller.deploy().good()
        figure("  the board is used again only after a deploy", controller.played[-1].seconds)
    assert board.name in controller.plan()
    answer = controller.ask(PROMPT, 20)
    assert answer["tokens"] == reference["tokens"][:20]
    assert board.name in {s["board"] for s in answer["stages"]}


def test_power_loss(cluster, controller, victim, reference):
    answer_with(controller, reference, victim.kill, "power loss")
    assert victim.name not in controller.plan()
    victim.up()
    used_again(cluster, victim, reference)


def test_cable_cut(cluster, controller, victim, reference):
    answer_with(controller, reference, victim.cut, "cable cut")
    victim.heal()
    used_again(cluster, victim, reference)


def test_agent_killed(cluster, controller, victim, reference):
    started = victim.agent_started()
    answer_with(controller, reference, lambda: victim.signal_agent(signal.SIGKILL), "agent killed")
    wait_for(lambda: victim.agent_started() not in (started, "", "0"), 60, "new agent")
    used_again(cluster, victim, reference)


def test_agent_hangs(cluster, controller, victim, reference):
    started = victim.agent_started()
    answer_with(controller, reference, lambda: victim.signal_agent(signal.SIGSTOP), "agent hangs")
    wait_for(lambda: victim.agent_started() not in (started, "", "0"), 120, "end of the agent by its watchdog")
    used_again(cluster, victim, reference)


@pytest.mark.parametrize("name", ["first", "last"])
def test_the_first_and_the_last_board_are_no_exception(cluster, controller, reference, name):
    order = sorted(controller.plan().items(), key=lambda item: item[1])
    board = next(b for b in cluster.boards if b.name == order[0 if name == "first" else -1][0])
    answer_with(controller, reference, lambda: board.signal_agent(signal.SIGKILL), f"agent of the {name} board killed")
    used_again(cluster, board, reference)


def test_two_managers_lose_the_same_board_and_follow_one_plan(cluster, controller, victim, reference):
    askings = [controller.asking(PROMPT, MAX_TOKENS) for _ in range(2)]
    for asking in askings:
        asking.after(FAULT_AFTER)
    victim.kill()
    assert [asking.answer(200) for asking in askings] == [reference["text"]] * 2
    figure("power loss under two managers: longest time without a token", max(a.longest_gap() for a in askings))
    victim.up()
    used_again(cluster, victim, reference)
