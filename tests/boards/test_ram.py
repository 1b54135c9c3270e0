"""A model too large for any one board's free RAM: the sections follow what the agents measured."""

import json
import re
from dataclasses import fields, replace

import pytest

from edgellm.errors import PlanError
from edgellm.plan import Settings, make_plan, parse_board
from edgellm.plan.needs import Needs, usable_bytes
from edgellm.shards.manifest import Manifest
from tests.boards.conftest import MAX_TOKENS, PROMPT, Cluster
from tests.boards.harness import figure, wait_for

SMALL = (900, 800, 700)  # MB of RAM


def give(cluster: Cluster, memory: tuple[int, ...]) -> None:
    """Boards with so many MB of RAM each."""
    for board, megabytes in zip(cluster.boards, memory, strict=True):
        board.root("systemctl poweroff", check=False)
        wait_for(lambda board=board: not board.is_up(), 60, f"power-off of {board}")
        board.up(memory=megabytes)
    for board in cluster.boards:
        wait_for(lambda board=board: cluster.controller.row(board)["version"], 90, f"agent of {board}")


@pytest.fixture(scope="module")
def small(deployed):
    """The three boards with little RAM, and the plan of fewest boards that holds the model."""
    cluster, _ = deployed
    cluster.heal()
    give(cluster, SMALL)
    cluster.inventory(edgellm_objective="latency", edgellm_slots=slots(cluster))
    cluster.controller.deploy().good()
    yield cluster
    cluster.inventory()  # the RAM stays as little: the tests that follow don't need more
    cluster.controller.deploy().good()


def facts(cluster: Cluster) -> tuple[Manifest, Settings, dict[str, int]]:
    """The model, how it is served, and what each board offers."""
    file = cluster.controller.cluster()
    manifest = Manifest.read((cluster.controller.config / file["model_dir"]).resolve())
    settings = Settings.from_dict({f.name: file["plan"][f.name] for f in fields(Settings) if f.name in file["plan"]})
    return manifest, settings, {b.name: cluster.controller.row(b)["ram_offered_bytes"] for b in cluster.boards}


def needs_the_largest(needs: Needs, offers: dict[str, int]) -> bool:
    """Whether the model fits neither on one board nor on the two smaller ones."""
    usable = sorted(usable_bytes(x) for x in offers.values())
    return needs.total(0, needs.num_layers) > max(usable[-1], sum(usable[:2]))


def slots(cluster: Cluster) -> int:
    """So many that with their KV the model just fits on the boards, in this order and turned round: then each must hold
    as many layers as it has RAM for, and no old section can stay."""
    manifest, settings, offers = facts(cluster)

    def fits(count: int, amounts: list[int]) -> bool:
        boards = [parse_board(f"{b}={int(a * 0.97)}B", manifest) for b, a in zip(offers, amounts, strict=True)]
        try:
            return bool(make_plan(manifest, boards, replace(settings, slots=count), 1))
        except PlanError:
            return False

    amounts = list(offers.values())
    return max(n for n in range(1, 200) if fits(n, amounts) and fits(n, amounts[::-1]))


def check(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """No board could hold the model alone, and each holds a section that fits in what it offers; the sections."""
    manifest, settings, offers = facts(cluster)
    needs = Needs(manifest, settings)
    print(json.dumps(offers), cluster.controller.plan())
    assert needs_the_largest(needs, offers)
    sections = cluster.controller.plan()
    for board, (start, end) in sections.items():
        assert needs.total(start, end) <= 1.02 * usable_bytes(offers[board])  # it offered a little more, or less, then
    assert len(sections) > 1
    return sections


@pytest.mark.timeout(1200)
def test_sections_follow_the_ram_that_agents_measured(small, reference):
    cluster, controller = small, small.controller
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
def test_when_the_rest_cannot_hold_the_model_it_says_so_and_waits_for_the_board(small, reference):
    controller = small.controller
    check(small)
    board = max(small.boards, key=lambda b: controller.row(b)["ram_offered_bytes"])
    assert board.name in controller.plan()
    asking = controller.asking(PROMPT, MAX_TOKENS)
    asking.after(40)
    board.kill()
    asking.until(lambda: re.search(r"\d\.\d+ GB", asking.errors), 60, "sentence with numbers")
    board.up()
    assert asking.answer(150) == reference["text"]
    figure("power loss, and no room elsewhere: longest time without a token", asking.longest_gap())


def each(cluster: Cluster) -> int:
    """So many MB of RAM that three boards which offer as much hold the model with some to spare, and two don't."""
    manifest, settings, offers = facts(cluster)

    def fits(megabytes: float, count: int) -> bool:
        boards = [parse_board(f"{b}={megabytes:.0f}MB", manifest) for b in [*offers][:count]]
        try:
            return bool(make_plan(manifest, boards, settings, 1))
        except PlanError:
            return False

    megabytes = next(m for m in range(80, 2000, 5) if fits(m, 3))
    assert not fits(1.1 * megabytes, 2)
    return round(1.1 * megabytes)


@pytest.mark.boards_all
@pytest.mark.timeout(1200)
def test_limits_of_the_inventory_count_before_the_agents_have_them(small, reference):
    """Lowered as far as it goes, too far, and raised again, also for the share of a board that is dead."""
    cluster, controller = small, small.controller
    cluster.inventory()
    controller.deploy().good()
    ram = each(cluster)
    cluster.inventory(edgellm_ram=f"{ram}MB")
    controller.deploy().good()
    assert set(controller.plan()) == {b.name for b in cluster.boards}
    before, started = controller.plan(), [b.agent_started() for b in cluster.boards]

    cluster.inventory(edgellm_ram=f"{ram // 2}MB")
    refused = controller.deploy()
    assert refused.rc != 0 and "edgellm_ram holds board1 at" in " ".join(refused.text.split())
    assert (controller.plan(), [b.agent_started() for b in cluster.boards]) == (before, started)
    assert controller.ask(PROMPT, 20)["tokens"] == reference["tokens"][:20]

    first, second, dead = cluster.boards
    dead.kill()
    cluster.inventory(edgellm_ram=f"{ram}MB")
    refused = controller.deploy()
    said = " ".join(refused.text.split())
    steps = [f"First bring back what is left out: board {dead.name}", "can't be reached over SSH",
             f"edgellm_ram holds {first.name} at", "It would fit"]  # fmt: skip
    places = [said.find(step) for step in steps]
    assert refused.rc != 0 and -1 not in places and places == sorted(places), refused.text[-3000:]
    assert [b.agent_started() for b in (first, second)] == started[:2]

    cluster.inventory(edgellm_ram=f"{ram}MB", per_board={first: f"edgellm_ram={3 * ram}MB"})
    played = controller.deploy()
    assert played.recap[first.name]["failed"] == played.recap[second.name]["failed"] == 0, played.text[-3000:]
    assert set(controller.plan()) <= {first.name, second.name} and first.name in controller.plan()
    assert controller.ask(PROMPT, 20)["tokens"] == reference["tokens"][:20]

    dead.up()
    cluster.inventory()
    controller.deploy().good()
    assert set(controller.plan()) == {b.name for b in cluster.boards}
    assert controller.ask(PROMPT, 20)["tokens"] == reference["tokens"][:20]
