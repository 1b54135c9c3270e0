"""A model too large for any one board's free RAM: the sections follow what the agents measured."""

import json
import re
from dataclasses import fields

import pytest

from edgellm.checkpoint.manifest import Manifest
from edgellm.plan import Settings
from edgellm.plan.needs import Needs, usable_bytes
from tests.boards.conftest import MAX_TOKENS, PROMPT, Cluster
from tests.boards.harness import figure, wait_for

SMALL = (1100, 900, 800)  # MB of RAM; an agent takes about 450 of it for itself
USUAL = (4096, 4096, 2048)


def give(cluster: Cluster, memory: tuple[int, ...]) -> None:
    """Boards with so many MB of RAM each."""
    for board, megabytes in zip(cluster.boards, memory, strict=True):
        board.root("systemctl poweroff", check=False)
        wait_for(lambda board=board: not board.is_up(), 60, f"power-off of {board}")
        board.up(memory=megabytes)


@pytest.fixture
def small(cluster, controller):
    """The three boards with little RAM, and the plan of fewest boards that holds the model."""
    give(cluster, SMALL)
    cluster.inventory(edgellm_objective="latency")
    controller.deploy().good()
    yield
    cluster.inventory()
    give(cluster, USUAL)
    controller.deploy().good()


def check(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """No board could hold the model alone, and each holds a section that fits in what it offers; the sections."""
    file = cluster.controller.cluster()
    manifest = Manifest.read((cluster.controller.config / file["model_dir"]).resolve())
    settings = Settings(**{f.name: file["plan"][f.name] for f in fields(Settings)})
    needs = Needs(manifest, settings)
    offers = {b.name: cluster.controller.row(b)["ram_offered_bytes"] for b in cluster.boards}
    print(json.dumps(offers), cluster.controller.plan())
    assert needs.total(0, manifest.num_layers) > usable_bytes(max(offers.values()))
    sections = cluster.controller.plan()
    for board, (start, end) in sections.items():
        assert needs.total(start, end) <= usable_bytes(offers[board])
    assert len(sections) > 1
    return sections


@pytest.mark.timeout(1200)
def test_sections_follow_the_ram_that_agents_measured(cluster, controller, small, reference):
    sections = check(cluster)
    assert controller.ask(PROMPT, 50)["tokens"] == reference["tokens"][:50]
    largest = max(sections, key=lambda board: sections[board][1] - sections[board][0])

    give(cluster, SMALL[::-1])
    played = controller.deploy().good()
    figure("deploy: the boards have other RAM than before", played.seconds)
    assert check(cluster) != sections
    assert controller.ask(PROMPT, 50)["tokens"] == reference["tokens"][:50]
    sections = controller.plan()
    assert max(sections, key=lambda board: sections[board][1] - sections[board][0]) != largest


@pytest.mark.timeout(1200)
def test_when_the_rest_cannot_hold_the_model_it_says_so_and_waits_for_the_board(cluster, controller, small, reference):
    check(cluster)
    board = next(b for b in cluster.boards if b.name in controller.plan())
    asking = controller.asking(PROMPT, MAX_TOKENS)
    asking.after(40)
    board.kill()
    asking.until(lambda: re.search(r"\d\.\d+ GB", asking.errors), 60, "sentence with numbers")
    board.up()
    assert asking.answer(150) == reference["text"]
    figure("power loss, and no room elsewhere: longest time without a token", asking.longest_gap())
