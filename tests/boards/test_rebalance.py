"""Boards come and go while answers are made: nothing of it shows in them. Deploys that are cut off are finished."""

import json
import signal
import time
from pathlib import Path

import pytest

from edgellm.shards.manifest import Manifest
from tests.boards.conftest import MAX_TOKENS, PROMPT, Answers
from tests.boards.harness import Board, Process, assert_at_rest, figure, lab

WHEELS = "/var/lib/edgellm/wheels"
MODELS = "/var/lib/edgellm/models"


def bytes_in(board: Board, folder: str) -> int:
    """Bytes of the files in a board's folder, seen from this machine: no ssh that would take its time."""
    root = Path(lab("root", board.number).strip() + folder)
    total = 0
    for path in root.rglob("*"):
        try:
            total += 0 if path.is_symlink() or not path.is_file() else path.stat().st_size
        except OSError:
            pass
    return total


def when_pushed(deploy: Process, board: Board, folder: str, least: int) -> None:
    """Wait until so many bytes of it have come to the board."""
    deadline = time.monotonic() + 300
    while bytes_in(board, folder) < least:
        assert deploy.running() and time.monotonic() < deadline, deploy.text[-3000:]
        time.sleep(0.02)


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


@pytest.fixture(scope="module")
def fourth(lab_up):
    """A blank fourth board, up and not in the inventory yet."""
    board = Board(4)
    board.destroy()
    yield board.up()
    board.destroy()


@pytest.mark.timeout(1200)
def test_ctrl_c_and_power_loss_in_mid_push_leave_the_others_alone(cluster, controller, fourth, reference):
    """The test after this one shows that the next deploy finishes what these have begun."""
    others = {b.name: 0 for b in cluster.boards}
    cluster.inventory(fourth)
    deploy = controller.playing("deploy.yml")
    when_pushed(deploy, fourth, WHEELS, 8 << 20)
    deploy.interrupt()
    assert deploy.wait(60) != 0

    deploy = controller.playing("deploy.yml")
    when_pushed(deploy, fourth, MODELS, 20 << 20)
    fourth.kill()
    played = controller.finish(deploy)
    assert played.rc != 0
    assert "board4" in played.text.partition("PLAY RECAP")[0][-2000:]
    assert played.touched(*cluster.boards) == others
    assert "board4" not in controller.plan()
    assert controller.ask(PROMPT, 10)["tokens"] == reference["tokens"][:10]
    figure("power loss in mid-push: that deploy ends after", played.seconds)
    fourth.up()


@pytest.mark.timeout(1200)
def test_a_fourth_board_comes_and_goes_during_answers(cluster, controller, fourth, reference):
    before, epoch, started = controller.plan(), controller.epoch(), [b.agent_started() for b in cluster.boards]
    cluster.inventory(fourth)
    deploy = controller.playing("deploy.yml")
    deploy.until(lambda: "TASK [shards : " in deploy.text, 400, "shards")  # the new plan is to come in some 15 s
    cluster.slow("2%")
    try:
        asking = controller.asking(PROMPT, MAX_TOKENS)
        asking.after(2)
        assert controller.epoch() == epoch, "the new plan was there before the first token: it proves nothing"
        deploy.until(lambda: controller.epoch() > epoch, 200, "new plan")
        assert asking.running(), "the answer ended before the new plan: it proves nothing. Slow the agents more."
        had = len(asking.chunks)
    finally:
        cluster.slow("")
    played = controller.finish(deploy).good()
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
    pieces = fourth.root(f"find {WHEELS} {MODELS} -name '.*.??????' -o -name '*.part'")
    assert pieces == "", "the pushes that were cut off left pieces"

    with Answers(controller, reference):
        controller.ansible("playbooks/remove.yml", "-e", "board=board4").good()
    assert "board4" not in controller.plan()
    assert_at_rest(fourth)


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

