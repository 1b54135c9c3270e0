"""Boards that are off, or that the user leaves out: named at the end of every playbook, with the way on.

And who may run playbooks, when, and from where.
"""

import getpass

import pytest

from tests.boards.conftest import new_controller
from tests.boards.harness import ROOT, Board, Played

OFF = Board(19)  # never up: nobody has its address


def ending(played: Played) -> list[str]:
    """The lines after Ansible's recap."""
    _, _, after = played.text.rpartition("PLAY RECAP")
    return [line for line in after.partition("\n\n")[2].splitlines() if line.strip()]


def test_every_board_is_named_when_none_can_be_used(lab_up, extra):
    controller, clock = new_controller("unusable"), extra(4, memory=1024)
    clock.clock(-5 * 3600)
    controller.inventory([clock, OFF])
    played = controller.deploy()
    assert played.rc != 0
    said = ending(played)
    assert len(said) == 3, said
    assert said[0].startswith("board board4: its clock is 5.0 hours behind") and "timedatectl" in said[0]
    assert said[1].startswith(f"board board19 ({OFF.host}) can't be reached") and "cable" in said[1]
    assert said[2] == "No board is left to form a cluster with."
    assert clock.ours() == set()


def test_boards_left_out_come_before_advice_when_the_model_does_not_fit(cluster, controller):
    cluster.inventory(OFF, edgellm_slots=1000)
    before = controller.epoch()
    played = controller.deploy()
    assert played.rc != 0 and played.touched(*cluster.boards) == {"board1": 0, "board2": 0, "board3": 0}
    said = " ".join(ending(played))
    assert "The model doesn't fit" in said and "Nothing was changed on any board." in said
    reason, advice = said.find("board19"), said.find("It would fit")
    assert -1 < reason < advice and "can't be reached" in said and said.count("can't be reached") == 1
    assert "\\n" not in said
    assert controller.epoch() == before


def test_boards_left_out_are_named_when_the_cluster_can_not_be_formed(cluster, controller):
    cluster.inventory(OFF)
    file = controller.config / "cluster.json"
    file.rename(file.with_suffix(".kept"))
    file.mkdir()
    try:
        played = controller.deploy()
    finally:
        file.rmdir()
        file.with_suffix(".kept").rename(file)
    assert played.rc != 0
    said = ending(played)
    assert said[0].startswith(f"board board19 ({OFF.host}) can't be reached") and "cluster.json" in said[-1], said


def test_an_upgrade_says_which_board_holds_it_up_and_goes_on_without_it(cluster, controller):
    cluster.boards[2].cut()
    played = controller.ansible("playbooks/upgrade.yml")
    assert played.rc != 0
    said = ending(played)
    assert said[0].startswith("board board3") and "can't be reached" in said[0]
    assert said[1].startswith("No board was upgraded, because board3 can't be.") and "-e without=board3" in said[1]

    played = controller.ansible("playbooks/upgrade.yml", "-e", "without=board3")
    assert played.rc == 0, ending(played)
    assert any("board3 was left as it is, because of -e without=board3" in line for line in ending(played))

    played = controller.ansible("playbooks/upgrade.yml", "-e", "without=board33")
    assert played.rc != 0 and "There is no board board33 to go on without." in played.text


def test_reset_names_the_way_to_let_a_dead_board_go(lab_up, extra):
    controller, board = new_controller("reset"), extra(4, memory=1024)
    controller.inventory([board, OFF])
    controller.config.mkdir(parents=True, exist_ok=True)
    kept = controller.config / "boards.json"
    kept.write_text("{}\n")
    played = controller.ansible("playbooks/reset.yml")
    assert played.rc != 0 and kept.exists()
    said = ending(played)
    assert said[0].startswith("board board19") and "-e without=board19" in said[1], said

    played = controller.ansible("playbooks/reset.yml", "-e", "without=board19")
    assert played.rc == 0 and not kept.exists()
    assert any(line.startswith("board board19 was left as it is") for line in ending(played))


def test_a_second_run_says_who_is_at_work_and_one_that_was_killed_blocks_nobody(cluster, controller):
    first = controller.playing("deploy.yml")
    first.until(lambda: "Probe the board" in first.text, 60, "the probe")
    second = controller.deploy()
    assert second.rc != 0
    said = " ".join(second.text.split())
    assert "Another run is at work on this cluster: deploy.yml, process " in said and getpass.getuser() in said
    assert "since 20" in said
    controller.finish(first).good()

    killed = controller.playing("deploy.yml")
    killed.until(lambda: "Probe the board" in killed.text, 60, "the probe")
    killed.kill()
    controller.deploy().good()


@pytest.mark.boards_all
def test_passwords_for_ssh_and_sudo(extra):
    """-k and -K ask for them; their files are read by the same code."""
    board, controller = extra(4), new_controller("passwords")
    board.root("echo edge:horse | chpasswd; echo 'edge ALL=(ALL) ALL' >/etc/sudoers.d/edge; "
               "mv /home/edge/.ssh/authorized_keys /home/edge/.ssh/gone")  # fmt: skip
    controller.inventory([board], edgellm_threads=1)
    text = controller.inventory_path.read_text()
    lines = [line for line in text.splitlines() if "private_key" not in line]
    controller.inventory_path.write_text("\n".join(lines) + "\n")
    password = controller.home / "password"
    password.write_text("horse\n")
    password.chmod(0o600)

    played = controller.deploy()
    assert played.rc != 0 and "refuses the SSH key or user" in ending(played)[0]
    played = controller.deploy("--connection-password-file", password)
    assert played.rc != 0 and "can't use sudo without a password" in ending(played)[0]
    both = ("--connection-password-file", password, "--become-password-file", password)
    played = controller.deploy(*both).good()
    assert ending(played)[-1].startswith("ready: edgellm ask ")
    assert controller.deploy(*both).good().changed(board) == {"board4": 0}
    assert "horse" not in played.text


def test_a_run_without_the_projects_configuration_is_refused_in_a_sentence(lab_up):
    controller = new_controller("elsewhere")
    controller.inventory([OFF])
    played = controller.ansible(f"{ROOT}/deploy.yml", root=controller.home)
    assert played.rc != 0
    assert "Ansible does not read the ansible.cfg of these playbooks. Run it in " in played.text

