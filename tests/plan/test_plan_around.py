"""Plans around pairs of boards that can't reach each other, held against every order and every choice of boards."""

import random
from dataclasses import replace
from itertools import permutations

import pytest

from edgellm.errors import PlanError
from edgellm.plan import Capacity, Settings, next_plan
from edgellm.plan.around import links, plan_around
from edgellm.shards.manifest import Manifest
from tests.fakes import make_manifest, make_plan


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Six layers of 300 MB: three fit on a board of 1.07 GB."""
    return replace(make_manifest(ram_bytes=300_000_000), sha256="5" * 64)


SETTINGS = Settings(64, 2, 5, "float32", "throughput")


def boards(count: int, **speeds: float) -> list[Capacity]:
    return [Capacity(f"b{i}", 1 << 30, speeds.get(f"b{i}", 0.001), 0.0005, 0.0) for i in range(count)]


def test_links_of_a_plan(manifest):
    assert links(make_plan(manifest, (0, 6))) == set()
    assert links(make_plan(manifest, (0, 3, 6))) == {("b0", "b1"), ("b1", "b0")}
    assert links(make_plan(manifest, (0, 2, 4, 6))) == {("b0", "b1"), ("b1", "b2"), ("b2", "b0")}


def test_without_a_broken_pair_on_its_way_the_plan_is_the_planner_s(manifest):
    current = make_plan(manifest, (0, 2, 4, 6))
    for broken in (set(), {("b1", "b0")}, {("b0", "b7")}):
        move = plan_around(manifest, current, boards(3), SETTINGS, 2, broken)
        assert move == next_plan(manifest, current, boards(3), SETTINGS, 2) and move.plan == current


def test_boards_change_places_where_that_avoids_the_pair(manifest):
    current = make_plan(manifest, (0, 2, 4, 6))
    move = plan_around(manifest, current, boards(3), SETTINGS, 2, {("b0", "b1")})
    assert move.changed and move.plan.epoch == 2 and set(move.plan.boards) == {"b0", "b1", "b2"}
    assert ("b0", "b1") not in links(move.plan)
    assert move.reason.startswith("board b0 can't reach board b1; ")


def test_a_board_is_left_out_where_no_order_avoids_the_pair(manifest):
    current = make_plan(manifest, (0, 3, 6))
    held = {"b0": (0, 3), "b1": (3, 6)}
    move = plan_around(manifest, current, boards(3), SETTINGS, 2, {("b0", "b1"), ("b2", "b1")}, held=held)
    assert set(move.plan.boards) == {"b0", "b2"} and move.moved_bytes <= 11 + 12 + 13 + 8
    assert move.plan.section_of("b0").start == 0, "it keeps what it has loaded"


def test_what_stands_is_kept_if_only_the_better_plan_needs_the_pair(manifest):
    """A third board would help, but it can't be reached from either of the others."""
    current = make_plan(manifest, (0, 3, 6))
    move = plan_around(manifest, current, boards(3), SETTINGS, 2, {("b0", "b2"), ("b1", "b2")})
    assert (move.changed, move.plan) == (False, current)


def test_if_nothing_else_fits_the_pair_is_named(manifest):
    with pytest.raises(PlanError, match="board b0 can't reach board b1, and no plan without that way fits") as e:
        plan_around(manifest, make_plan(manifest, (0, 3, 6)), boards(2), SETTINGS, 2, {("b0", "b1")})
    assert e.value.brief == "board b0 can't reach board b1, and no other plan fits"


@pytest.mark.parametrize("seed", range(12))
def test_a_plan_is_found_wherever_an_order_of_equal_boards_has_no_broken_pair(manifest, seed):
    rng = random.Random(seed)
    count = rng.choice([3, 4])
    pairs = [(f"b{a}", f"b{b}") for a in range(count) for b in range(count) if a != b]
    broken = set(rng.sample(pairs, rng.randint(1, len(pairs) - 2)))
    possible = any(
        broken.isdisjoint(zip(order, [*order[1:], order[0]], strict=True))
        for some in range(2, count + 1) for order in permutations([f"b{i}" for i in range(count)], some)
    )  # fmt: skip
    try:
        move = plan_around(manifest, None, boards(count), SETTINGS, 1, broken)
    except PlanError:
        assert not possible
    else:
        assert not links(move.plan) & broken
