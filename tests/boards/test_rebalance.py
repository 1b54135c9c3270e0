"""Boards come and go while answers are made: nothing of it shows in them."""

import json
import signal

import pytest

from edgellm.checkpoint.manifest import Manifest
from tests.boards.conftest import MAX_TOKENS, PROMPT
from tests.boards.harness import figure


def moved_bytes(controller, before: dict, after: dict) -> int:
    """What boards had to load that they did not hold, by the manifest."""
    manifest = Manifest.read((controller.config / controller.cluster()["model_dir"]).resolve())
    last, total = manifest.num_layers, 0
    for board, (start, end) in after.items():
        had = before.get(board, (0, 0))
        total += sum(manifest.layer(i).bytes for i in range(start, end) if not had[0] <= i < had[1])
        total += manifest.embedding.bytes if start == 0 and (had[0] > 0 or had[1] == 0) else 0
        total += manifest.head.bytes if end == last and had[1] < last else 0
    return total


@pytest.fixture
def fourth(extra, cluster):
    """A blank fourth board, up and not in the inventory yet."""
    board = extra(4)
    yield board
    cluster.slow("")


@pytest.mark.timeout(1200)
def test_a_fourth_board_comes_and_goes_during_answers(cluster, controller, fourth, reference):
    before, epoch, started = controller.plan(), controller.epoch(), [b.agent_started() for b in cluster.boards]
    cluster.inventory(fourth)
    deploy = controller.playing("deploy.yml")
    deploy.until(fourth.pids, 400, "agent on the new board")  # which takes some seconds to start
    cluster.slow("2%")
    asking = controller.asking(PROMPT, MAX_TOKENS)
    asking.after(2)
    assert controller.epoch() == epoch, "the new plan was there before the first token: it proves nothing"
    played = controller.finish(deploy).good()
    assert asking.running(), "the answer ended before the deploy: it proves nothing. Give the agents less of a core."
    had = len(asking.chunks)
    cluster.slow("")
    assert asking.answer(300) == reference["text"]
    assert len(asking.chunks) > had + 5
    figure("a fourth board is added during an answer: deploy", played.seconds)
    figure("  longest time without a token meanwhile", asking.longest_gap())

    after = controller.plan()
    assert "board4" in after and controller.epoch() > epoch
    assert played.touched(*cluster.boards) == {"board1": 0, "board2": 0, "board3": 0}, "only the new one is provisioned"
    assert [b.agent_started() for b in cluster.boards] == started
    assert controller.ask(PROMPT, 30)["tokens"] == reference["tokens"][:30]
    figure("  moved", moved_bytes(controller, before, after) / 1e6, "MB")

    # Its line is gone: the reverse, during an answer.
    cluster.inventory()
    asking = controller.asking(PROMPT, MAX_TOKENS)
    asking.after(2)
    played = controller.deploy().good()
    assert asking.answer(120) == reference["text"]
    assert "board4" not in controller.plan()
    assert fourth.ssh("systemctl is-active edgellm-agent; systemctl is-enabled edgellm-agent", check=False).split() == [
        "inactive", "disabled",
    ]  # fmt: skip


@pytest.mark.timeout(1200)
def test_bytes_move_as_predicted(cluster, controller, reference):
    """One of three goes to sleep; `rebalance` says what will move when it is back, and that is what moves."""
    controller.edgellm("rebalance", timeout=180)
    steady = json.loads(controller.edgellm("rebalance", "--dry-run", "--json", timeout=180).text)
    assert steady["moved_bytes"] == 0, "a move that isn't worth it"
    board = cluster.boards[1]
    board.root("systemctl stop edgellm-agent")
    assert controller.ask(PROMPT, 5)["tokens"] == reference["tokens"][:5]
    before = controller.plan()
    assert "board2" not in before
    board.root("systemctl start edgellm-agent")
    predicted = json.loads(controller.edgellm("rebalance", "--dry-run", "--json", timeout=180).text)
    moved = json.loads(controller.edgellm("rebalance", "--json", timeout=180).text)
    after = controller.plan()
    assert "board2" in after
    assert predicted["moved_bytes"] == moved["moved_bytes"] == moved_bytes(controller, before, after) > 0


def test_ctrl_c_during_an_answer_leaves_the_cluster_free(cluster, controller, reference):
    asking = controller.asking(PROMPT, MAX_TOKENS)
    asking.after(5)
    asking.interrupt()
    assert asking.wait(15) in (130, -signal.SIGINT)
    assert controller.ask(PROMPT, 10)["tokens"] == reference["tokens"][:10]
    rows = controller.status()["boards"]
    assert all(row["free_slots"] == row["slots"] for row in rows if row["in_plan"])

