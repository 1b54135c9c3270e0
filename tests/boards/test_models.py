"""Several models on the same boards: pushed beside each other, asked by name, removed when the inventory drops one."""

import json

import pytest

from edgellm.shards.manifest import Manifest
from tests.boards.conftest import PROMPT
from tests.tiny import split_tiny

pytestmark = pytest.mark.boards_all
MODELS = "/var/lib/edgellm/models"


def ask(controller, *args: object) -> list[int]:
    greedy = ("--temperature", 0, "--max-tokens", 8, "--json")
    return json.loads(controller.edgellm("ask", PROMPT, *greedy, *args).text)["tokens"]


@pytest.mark.timeout(900)
def test_boards_answer_with_each_of_their_models_and_lose_the_one_that_is_dropped(
    cluster, controller, reference, tmp_path
):
    other = split_tiny(tmp_path, "beta", "qwen3")
    folder = f"{MODELS}/{Manifest.read(other).sha256[:12]}"
    cluster.inventory(edgellm_models=other)
    controller.deploy().good()
    assert [m["model"] for m in controller.cluster()["more"]] == ["beta"]
    for board in cluster.boards:
        assert len(board.root(f"ls {folder}").split()) == len(list(other.iterdir()))
    assert controller.deploy().good().touched(*cluster.boards) == {b.name: 0 for b in cluster.boards}

    first = reference["tokens"][:8]
    assert ask(controller) == first
    beta = ask(controller, "--raw", "--model", "beta")
    assert controller.status()["standing"] == ["beta"]
    assert ask(controller) == first and ask(controller, "--raw", "--model", "beta") == beta
    assert controller.cluster()["more"][0]["plan"]["epoch"] > 0

    cluster.boards[0].flip_byte(f"{folder}/layer-0002.safetensors")  # a card that is wearing out
    played = controller.deploy().good()
    assert played.changed(*cluster.boards)[cluster.boards[0].name] > 0
    assert ask(controller, "--raw", "--model", "beta") == beta and ask(controller) == first

    cluster.inventory()
    controller.deploy().good()
    assert "more" not in controller.cluster() and ask(controller) == first
    for board in cluster.boards:
        assert not board.root(f"ls -d {folder}", check=False).strip()
