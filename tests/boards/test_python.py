"""Boards without a Python that is new enough: the controller has one for them."""

import pytest

from tests.boards import cpython
from tests.boards.conftest import PROMPT, new_controller
from tests.boards.harness import Board, Controller, figure, lab


def deployed(board: Board, controller: Controller, reference: dict) -> None:
    """The board answers, with what the controller has pushed, and a second deploy changes nothing."""
    played = controller.deploy(timeout=900).good()
    figure(f"deploy: one board of image {board.image()}, no uplink", played.seconds)
    assert controller.ask(PROMPT, 20)["tokens"] == reference["tokens"][:20]
    weighs = board.weighs()
    figure(f"pushed to a board of image {board.image()}, besides shards", weighs["pushed"], "MB")
    figure("on its disk, its Python", weighs["python"], "MB")
    figure("on its disk, all else besides shards", weighs["software"], "MB")
    assert weighs["pushed"] < 90 and weighs["python"] < 100 and weighs["software"] < 150, weighs
    runs = board.root("readlink -f /opt/edgellm/current/bin/python").strip()
    assert runs == f"/opt/edgellm/python-{cpython.VERSION}-{cpython.BUILD}/bin/python3.11"
    assert controller.deploy().good().changed(board) == {board.name: 0}


def test_a_board_without_python_and_without_a_mirror(extra, reference):
    board = extra(4, image="bare", memory=2048)
    controller = new_controller("pythonless")
    controller.inventory([board], edgellm_threads=1)
    controller.env |= cpython.mirror("full")
    blank = board.files()
    deployed(board, controller, reference)
    assert board.ssh("command -v python3", check=False) == ""

    controller.ansible("playbooks/reset.yml").good()
    assert board.files() - blank == set()


@pytest.mark.boards_all
@pytest.mark.timeout(3600)  # CPython is compiled once
def test_a_debian_11_board(lab_up, extra, reference):
    for image in ("bullseye", "cpython"):
        lab("build", image, timeout=3000)
    board = extra(4, image="bullseye", memory=2048)
    assert board.ssh("python3 --version; getconf GNU_LIBC_VERSION") == "Python 3.9.2\nglibc 2.31\n"
    controller = new_controller("bullseye")
    controller.inventory([board], edgellm_threads=1)
    controller.env |= cpython.mirror("cpython")
    deployed(board, controller, reference)
