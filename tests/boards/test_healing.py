"""What rotted is named by doctor, and is as it should be after the next deploy."""

from tests.boards.conftest import MAX_TOKENS, PROMPT
from tests.boards.harness import figure, wait_for


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


def test_a_corrupt_shard_elsewhere_does_not_delay_the_recovery_of_a_lost_board(cluster, controller, reference):
    """The board that would take over its layers has damaged files for them: the answer goes on without that board."""
    order = sorted(controller.plan().items(), key=lambda item: item[1])
    victim, heir = (next(b for b in cluster.boards if b.name == order[i][0]) for i in (1, 2))
    start, _ = controller.plan()[victim.name]
    paths = [
        heir.root(f"readlink -f /var/lib/edgellm/model/layer-{layer:04}.safetensors").strip()
        for layer in range(start, controller.plan()[heir.name][0])
    ]
    for path in paths:
        heir.flip_byte(path)
    asking = controller.asking(PROMPT, MAX_TOKENS)
    asking.after(40)
    victim.kill()
    assert asking.answer(150) == reference["text"]
    assert f"board {heir.name} (" in asking.errors and "the others go on without it" in asking.errors, asking.errors
    figure("power loss, and corrupt shards where its layers would go: longest time without a token",
           asking.longest_gap())  # fmt: skip
    assert asking.longest_gap() < 30
    victim.up()
    wait_for(lambda: controller.row(victim)["version"], 90, f"agent of {victim}")
    controller.deploy().good()
    assert controller.ask(PROMPT, 20)["tokens"] == reference["tokens"][:20]
    assert {heir.name, victim.name} <= controller.plan().keys()
