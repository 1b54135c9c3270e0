"""Who may ask, who may plan, and who may not any more: askers, the revoked, and a controller that takes over."""

import json
import shutil

import pytest

from tests.boards.conftest import PROMPT, new_controller
from tests.boards.harness import PORT, Controller

REVOKED = "it has been revoked"
FEW = 20  # tokens


def answer(controller: Controller) -> list[int]:
    """What the cluster answers to this controller."""
    return controller.ask(PROMPT, FEW)["tokens"]


def probe(controller: Controller, board, folder) -> dict:
    """What an agent answers to whoever has the certificate in a folder."""
    said = controller.python("-m", "tests.boards.probe", "tls", board.host, PORT, folder)
    return json.loads(said.text)


def claim(controller: Controller, board) -> dict:
    """What an agent answers to a controller that begins to change the plan."""
    return json.loads(controller.python("-m", "tests.boards.probe", "claim", *at(controller, board)).text)


def at(controller: Controller, board) -> tuple:
    """A board, and who asks it, for the probe."""
    return board.host, PORT, controller.config / "tls/manager", board.name


def join(controller: Controller, name: str, *options: str) -> Controller:
    """Another machine, with an identity of that name from the controller."""
    file = controller.home / f"{name}.edgellm"
    file.unlink(missing_ok=True)
    said = controller.edgellm("manager", name, "--to", file, "-i", controller.inventory_path, *options)
    assert f"lets {name} ask" in said.errors
    there = new_controller(name)
    there.edgellm("join", file, "--force")
    assert not (there.config / "ca").exists()
    return there


def test_an_asker_asks_and_does_not_plan_and_is_revoked_while_it_is_connected(cluster, controller):
    right, anna = answer(controller), join(controller, "anna")
    assert answer(anna) == right
    for who, why in ((anna, "manager anna may ask, but not change the plan"), (controller, "None")):
        assert why in str(claim(who, cluster.boards[0])["error"])
    first = next(b for b in cluster.boards if b.name == min(controller.plan(), key=lambda b: controller.plan()[b]))
    assert "anna asks: sequence" in first.journal()

    stands = anna.start("python", "-m", "tests.boards.probe", "stand", *at(anna, first))
    stands.until(lambda: "stands" in stands.text, 60, "connection")
    played = controller.ansible("playbooks/revoke.yml", "-e", "name=anna").good()
    assert played.touched(*cluster.boards) == {b.name: 1 for b in cluster.boards}
    assert stands.wait(10) == 0
    assert "refused: the certificate of manager anna has been revoked" in stands.text
    refused = anna.edgellm("ask", "Hi", "--max-tokens", 2, check=False)
    assert refused.wait(1) != 0 and REVOKED in refused.errors
    assert answer(controller) == right
    again = controller.ansible("playbooks/revoke.yml", "-e", "name=anna").good()
    assert again.touched(*cluster.boards) == {b.name: 0 for b in cluster.boards}
    assert controller.deploy().good().touched(*cluster.boards) == {b.name: 0 for b in cluster.boards}


def test_a_removed_board_s_key_is_refused_and_the_board_comes_back_with_another(cluster, controller, tmp_path):
    board, neighbour = cluster.boards[2], cluster.boards[0]
    stolen = tmp_path / "stolen"
    shutil.copytree(controller.config / "ca/boards" / board.name, stolen)
    assert not is_revoked(controller, neighbour, stolen)
    controller.ansible("playbooks/remove.yml", "-e", f"board={board.name}").good()
    assert is_revoked(controller, neighbour, stolen) and board.name not in controller.plan()
    controller.deploy().good()  # its line is still there
    assert board.name in controller.plan() and cluster.answers()
    assert is_revoked(controller, neighbour, stolen)
    assert (stolen / "key.pem").read_bytes() != (controller.config / "ca/boards" / board.name / "key.pem").read_bytes()


def is_revoked(controller: Controller, board, folder) -> bool:
    return "certificate revoked" in probe(controller, board, folder)["refused"].lower()


@pytest.mark.timeout(1500)
def test_a_second_controller_takes_over_with_a_copy_of_the_ca_and_the_inventory(cluster, controller):
    right, heir = answer(controller), new_controller("heir")
    shutil.rmtree(heir.config, ignore_errors=True)
    shutil.copytree(controller.config / "ca", heir.config / "ca")
    heir.inventory(cluster.boards, edgellm_objective="throughput", edgellm_threads=1, edgellm_manager="heir")
    played = heir.deploy().good()
    assert played.touched(*cluster.boards) == {b.name: 0 for b in cluster.boards}  # no board got another key
    assert answer(heir) == right
    before = _name(controller)
    heir.ansible("playbooks/revoke.yml", "-e", f"name={before}").good()
    refused = controller.edgellm("ask", "Hi", "--max-tokens", 2, check=False)
    assert refused.wait(1) != 0 and REVOKED in refused.errors
    assert answer(heir) == right
    # And back again: the first machine gets the CA with all that was issued and revoked since, and a new key.
    shutil.rmtree(controller.config / "ca")
    shutil.copytree(heir.config / "ca", controller.config / "ca")
    controller.deploy().good()
    assert answer(controller) == right


def _name(controller: Controller) -> str:
    """The controller's name as a manager."""
    issued = json.loads((controller.config / "ca/issued.json").read_text())["issued"]
    return next(one["uri"] for one in issued if one["uri"].startswith("edgellm:admin:")).rpartition(":")[2]


@pytest.mark.boards_all
def test_a_lost_ca_is_replaced_by_deploying_to_all_boards(cluster, controller, tmp_path):
    right = answer(controller)
    shutil.copytree(controller.config / "tls/manager", tmp_path / "before")
    shutil.rmtree(controller.config / "ca")
    played = controller.deploy()
    assert played.rc != 0 and "there is no folder" in played.text and "asking goes on" in played.text
    assert answer(controller) == right
    shutil.rmtree(controller.config / "tls/manager")
    controller.deploy().good()
    assert answer(controller) == right
    assert "unknown ca" in probe(controller, cluster.boards[0], tmp_path / "before")["refused"].lower()
