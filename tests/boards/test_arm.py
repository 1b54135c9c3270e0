"""One aarch64 board under qemu-user, deployed from this x86-64 machine: slow, so `make test-arm` alone runs it."""

import time

import pytest

from tests.boards.conftest import PROMPT, new_controller
from tests.boards.harness import figure, lab

pytestmark = [pytest.mark.arm, pytest.mark.timeout(3600)]


def test_an_aarch64_board_is_deployed_and_answers(lab_up, extra, reference):
    began = time.monotonic()
    lab("build", "arm64", timeout=1800)
    figure("aarch64 image built, or found", time.monotonic() - began)
    board = extra(1, image="arm64", memory=4096)
    assert board.ssh("uname -m") == "aarch64\n"
    controller = new_controller("arm")
    controller.inventory([board], edgellm_context=256, edgellm_slots=1)
    played = controller.deploy(timeout=3000).good()
    figure("deploy of an aarch64 board under qemu", played.seconds)
    answer = controller.ask(PROMPT, 8, timeout=600)
    assert answer["tokens"] == reference["tokens"][:8]
    again = controller.deploy(timeout=1200).good()
    assert again.changed(board) == {"board1": 0}
