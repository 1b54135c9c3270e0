"""Experts that don't fit into RAM: allowed by the owner alone, only where the model fits nowhere, and predicted."""

import itertools
from dataclasses import replace

import pytest

from edgellm.errors import PlanError
from edgellm.plan import (
    Capacity,
    Needs,
    Settings,
    check_plan,
    explain_dict,
    explain_text,
    make_plan,
    next_plan,
    swapping,
)
from edgellm.plan.search import usable_kinds
from edgellm.shards.manifest import Manifest

MB = 10**6
HEADROOM = 64 << 20
ONE, MANY = Settings(64, swap_experts=True), Settings(64, slots=4, objective="throughput", swap_experts=True)


@pytest.fixture
def experts(make_manifest) -> Manifest:
    """Eight layers of 100 MB, 80 MB of them experts, an eighth of which a token touches."""
    touched = (30 * MB,) * 8
    return make_manifest([100] * 8, embedding=10, head=20, touched_bytes_per_token=touched, expert_bytes=(80 * MB,) * 8)


def board(name: str, usable_mb: int, disk_mb: float | None = None, layer_ms: float = 1.0) -> Capacity:
    disk = None if disk_mb is None else disk_mb * MB
    return Capacity(name, HEADROOM + usable_mb * MB, layer_ms / 1e3, layer_ms / 1e3, 0.0, disk_bytes_per_s=disk)


def test_only_if_the_owner_says_so_and_the_error_tells_what_it_would_cost(experts):
    boards = [board("pi1", 300, 100), board("pi2", 300, 100)]
    with pytest.raises(PlanError, match=r"with --swap-experts .* a token takes \d+ ms"):
        make_plan(experts, boards, replace(ONE, swap_experts=False), 1)
    plan = make_plan(experts, boards, ONE, 1)
    assert plan.swap_experts and len(plan.sections) == 2
    check_plan(plan, experts, boards)
    assert type(plan).from_dict(plan.to_dict()) == plan


def test_a_model_that_fits_is_planned_as_ever(experts):
    boards = [board("pi1", 500, 100), board("pi2", 500, 100)]
    plan = make_plan(experts, boards, ONE, 1)
    assert plan.sections == make_plan(experts, boards, replace(ONE, swap_experts=False), 1).sections
    assert [s["degraded"] for s in explain_dict(plan, experts, boards)["sections"]] == [None] * len(plan.sections)


def test_what_a_token_reads_and_waits(experts):
    boards = [board("pi1", 630, 100)]
    plan = make_plan(experts, boards, ONE, 1)
    needs = Needs(experts, ONE)
    missing = needs.total(0, 8) - 630 * MB
    waits = swapping(needs, boards[0].ram_bytes, 100e6, 0, 8)
    assert waits.expert_bytes == 640 * MB and waits.held_bytes == 640 * MB - missing
    assert waits.read_bytes == pytest.approx(missing / 8, abs=1)
    facts = explain_dict(plan, experts, boards)
    assert facts["token_s"] == pytest.approx(9e-3 + missing / 8 / 100e6, rel=1e-6), "eight layers, the head, the disk"
    line = next(line for line in explain_text(plan, experts, boards).splitlines() if line.startswith("degraded:"))
    assert "pi1: 0.44 GB of 0.64 GB of experts fit into RAM, so that a token reads 25.0 MB from the disk" in line
    assert "of 259 ms a token (predicted)" in line


def test_a_rate_that_was_not_measured_is_assumed_and_told(experts):
    boards = [board("pi1", 630)]
    assert "(0.10 GB/s, assumed)" in explain_text(make_plan(experts, boards, ONE, 1), experts, boards)


def test_what_isnt_experts_must_fit(experts):
    with pytest.raises(PlanError, match=r"experts|boards offer"):
        make_plan(experts, [board("pi1", 180, 1000)], ONE, 1)  # 8 x 20 MB of other weights, and 30 of both ends
    make_plan(experts, [board("pi1", 200, 1000)], ONE, 1)


@pytest.mark.parametrize("settings", [ONE, MANY], ids=["latency", "throughput"])
def test_the_search_finds_the_least_wait(experts, settings):
    """Every order and every cut of unequal boards is tried by brute force."""
    boards = [board("pi1", 250, 100), board("pi2", 180, 900, 2.0), board("pi3", 150, 30)]
    needs = Needs(experts, settings)
    kinds = usable_kinds(boards, needs)
    assert all(kind.swaps for kind in kinds)

    def figure(order, ends):
        cuts = list(zip(order, (0, *ends), (*ends, 8), strict=True))
        if any(needs.least(a, b, True) > kinds[k].usable_bytes for k, a, b in cuts):
            return None
        alone = len(cuts) == 1
        token = sum(kinds[k].token.of(a, b, alone) for k, a, b in cuts)
        turn = max(kinds[k].turn.of(a, b, alone) for k, a, b in cuts)
        return (turn, token) if settings.objective == "throughput" else (token,)

    least = min(
        found
        for count in (1, 2, 3)
        for order in itertools.permutations(range(3), count)
        for ends in itertools.combinations(range(1, 8), count - 1)
        if (found := figure(order, ends)) is not None
    )
    plan = make_plan(experts, boards, settings, 1)
    index = {b.board: i for i, b in enumerate(boards)}
    order = [index[s.board] for s in plan.sections]
    assert figure(order, [s.end for s in plan.sections[:-1]]) == least


def test_a_plan_that_swaps_stays_until_the_model_fits(experts):
    boards = [board("pi1", 300, 100), board("pi2", 300, 100)]
    first = next_plan(experts, None, boards, ONE, 1).plan
    assert not next_plan(experts, first, boards, ONE, 2).changed
    less = [replace(b, ram_bytes=b.ram_bytes - 20 * MB) for b in boards]
    assert not next_plan(experts, first, less, ONE, 2).changed, "it waits longer, as any other plan would"
    more = next_plan(experts, first, [*boards, board("pi3", 400, 100)], ONE, 2)
    assert more.changed and len(more.plan.sections) == 3


def test_plans_that_dont_swap_are_written_as_before():
    plain = Settings(64)
    assert "swap_experts" not in plain.to_dict() and "swap_experts" in ONE.to_dict()
    assert Settings.from_dict(plain.to_dict()) == plain and Settings.from_dict(ONE.to_dict()) == ONE
    assert "disk_bytes_per_s" not in board("pi1", 100).to_dict()
    with pytest.raises(PlanError, match="swap_experts is 'yes', expected true or false"):
        Settings.from_dict({**plain.to_dict(), "swap_experts": "yes"})
    with pytest.raises(PlanError, match="disk_bytes_per_s is 0"):
        Capacity.from_dict({**board("pi1", 100).to_dict(), "disk_bytes_per_s": 0})
