"""What was interrupted, or rotted, is as it should be after the next deploy."""

import time
from pathlib import Path

import pytest

from tests.boards.conftest import PROMPT
from tests.boards.harness import Board, Process, figure, lab

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


@pytest.mark.timeout(1500)
def test_power_loss_and_ctrl_c_in_mid_push_are_healed_by_the_next_deploy(cluster, controller, extra, reference):
    board, others = extra(4), {b.name: 0 for b in cluster.boards}
    cluster.inventory(board)

    deploy = controller.playing("deploy.yml")
    when_pushed(deploy, board, WHEELS, 60 << 20)
    board.kill()
    played = controller.finish(deploy)
    assert played.rc != 0
    assert "board4" in played.text.partition("PLAY RECAP")[0][-2000:]
    assert played.touched(*cluster.boards) == others
    assert controller.ask(PROMPT, 10)["tokens"] == reference["tokens"][:10]
    figure("power loss in mid-push: that deploy ends after", played.seconds)

    board.up()
    deploy = controller.playing("deploy.yml")
    when_pushed(deploy, board, MODELS, 20 << 20)
    deploy.interrupt()
    assert deploy.wait(60) != 0

    deploy = controller.playing("deploy.yml")
    when_pushed(deploy, board, MODELS, 60 << 20)
    board.kill()
    assert controller.finish(deploy).rc != 0

    board.up()
    played = controller.deploy().good()
    figure("  the deploy that heals it", played.seconds)
    assert "board4" in controller.plan()
    assert played.touched(*cluster.boards) == others
    assert controller.ask(PROMPT, 30)["tokens"] == reference["tokens"][:30]
    pieces = board.root(f"find {WHEELS} {MODELS} -name '.*.??????' -o -name '*.part'")
    assert pieces == "", "the push that was interrupted left pieces"

    controller.ansible("playbooks/remove.yml", "-e", "board=board4").good()
    assert "board4" not in controller.plan() and board.pids() == []
    assert controller.ask(PROMPT, 10)["tokens"] == reference["tokens"][:10]


def test_a_flipped_byte_in_a_shard_is_named_by_doctor_and_healed_by_deploy(cluster, controller, reference):
    board = cluster.boards[1]
    start, _ = controller.plan()[board.name]
    shard = f"layer-{start:04}.safetensors"
    path = board.root(f"readlink -f /var/lib/edgellm/model/{shard}").strip()
    good = board.root(f"sha256sum < {path}")
    board.flip_byte(path)
    assert board.root(f"sha256sum < {path}") != good

    doctor = controller.edgellm("doctor", check=False, timeout=180)
    assert doctor.wait(1) == 1
    named = [line for line in doctor.text.split("✗")[1:] if shard in line]
    assert len(named) == 1 and board.name in named[0], doctor.text

    played = controller.deploy().good()
    assert played.touched(cluster.boards[0], cluster.boards[2]) == {"board1": 0, "board3": 0}
    assert played.touched(board)["board2"] > 0
    assert board.root(f"sha256sum < {path}") == good
    assert controller.ask(PROMPT, 50)["tokens"] == reference["tokens"][:50]
    assert controller.edgellm("doctor", check=False, timeout=180).text.count(shard) == 0
