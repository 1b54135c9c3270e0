"""What rotted is named by doctor, and is as it should be after the next deploy."""

from tests.boards.conftest import PROMPT


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
