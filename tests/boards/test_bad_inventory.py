"""Bad inventories and boards that can't be used: named in a sentence, and nothing half-done."""

import re
import subprocess

import pytest

from tests.boards.conftest import PROMPT
from tests.boards.harness import HOME, SUBNET


def sentence(text: str, *words: str) -> str:
    """The place in a playbook's output, however its lines are wrapped, where all these words stand together."""
    flat = " ".join(text.split())
    for place in re.finditer(re.escape(words[0]), flat):
        near = flat[max(0, place.start() - 100) : place.end() + 300]
        if all(w in near for w in words):
            return near
    raise AssertionError(f"nowhere in it stand {words} together:\n{text[-3000:]}")


@pytest.fixture
def untouched(cluster, controller):
    """Nothing was changed on the cluster, and it answers."""
    before = controller.epoch(), controller.plan(), [b.agent_started() for b in cluster.boards]
    yield
    assert (controller.epoch(), controller.plan(), [b.agent_started() for b in cluster.boards]) == before
    assert len(controller.ask(PROMPT, 3)["tokens"]) == 3


def test_a_wrong_inventory_is_named_whole_and_nothing_is_changed(cluster, controller, untouched):
    cluster.inventory(edgellm_slots="lots", edgellm_port=77100, edgellm_objective="speed", edgellm_slot=4)
    text = controller.inventory_path.read_text()
    controller.inventory_path.write_text(text.replace("board2 ansible_host", "board1 ansible_host"))
    played = controller.deploy()
    assert played.rc != 0
    sentence(played.text, "board1", "twice")
    sentence(played.text, "edgellm_slots", "lots")
    sentence(played.text, "edgellm_port", "77100")
    sentence(played.text, "edgellm_objective", "speed", "latency")
    sentence(played.text, "edgellm_slot", "no variable")
    assert all(counts["changed"] == 0 for counts in played.recap.values())

    cluster.inventory()
    text = controller.inventory_path.read_text()
    controller.inventory_path.write_text(text.replace(f"ansible_host={SUBNET}.12", f"ansible_host={SUBNET}.11"))
    played = controller.deploy()
    assert played.rc != 0
    sentence(played.text, "board1", "board2", f"{SUBNET}.11")
    assert all(counts["changed"] == 0 for counts in played.recap.values())


def test_a_model_that_does_not_fit_says_how_much_is_missing(cluster, controller, untouched):
    cluster.inventory(edgellm_slots=1000)
    played = controller.deploy()
    assert played.rc != 0
    assert re.search(r"\d[\d.]* [GM]B", sentence(played.text, "GB"))
    assert played.touched(*cluster.boards) == {"board1": 0, "board2": 0, "board3": 0}


def test_a_limit_that_is_lowered_too_far_stops_nothing_though_the_agents_offer_enough_now(
    cluster, controller, untouched
):
    cluster.inventory(edgellm_ram="90MB")
    played = controller.deploy()
    assert played.rc != 0
    said = sentence(played.text, "edgellm_ram holds board1 at 90.0 MB, of", "edgellm_ram holds board2 at 90.0 MB, of")
    flat = " ".join(played.text.split())
    assert "the model fits if board1 offers" in flat and "Nothing was changed on any board." in flat, said
    assert played.touched(*cluster.boards) == {"board1": 0, "board2": 0, "board3": 0}


@pytest.mark.timeout(1200)
def test_boards_that_cannot_be_used_are_named_and_the_others_deployed(
    cluster, controller, extra, untouched, monkeypatch
):
    monkeypatch.setitem(controller.env, "UV_PYTHON_INSTALL_MIRROR", "file:///nowhere")  # nobody has a Python for board8
    full, readonly, clock, key, bare, gone = (
        extra(n, memory=1024, image="bare" if n == 8 else "full") for n in range(4, 10)
    )
    full.fill(30)
    readonly.readonly()
    clock.clock(-5 * 3600)
    gone.kill()
    other = HOME / "other_key"
    if not other.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True, timeout=10)
    wrong_key = {key: f"ansible_ssh_private_key_file={other}"}
    cluster.inventory(full, readonly, clock, key, bare, gone, per_board=wrong_key)
    played = controller.deploy()
    assert played.rc != 0
    assert played.touched(*cluster.boards) == {"board1": 0, "board2": 0, "board3": 0}
    sentence(played.text, "board4", "MB free")
    sentence(played.text, "board5", "read-only")
    sentence(played.text, "board6", "clock", "5.0 hours")
    sentence(played.text, "board7", "SSH key")
    sentence(played.text, "board8", "Python 3.11", "mirror")
    sentence(played.text, "board9", "can't be reached")
    for board in (full, clock, key, bare):
        assert board.ours() == set()
