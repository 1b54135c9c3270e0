"""RAM that no plan needs: what sections hold and what comes with the next one isn't among it."""

from dataclasses import replace

import pytest

from edgellm.agent import measure
from edgellm.agent.room import Room
from edgellm.errors import PlanError
from edgellm.plan import headroom_bytes, usable_bytes
from tests.fakes import make_manifest, make_plan

GB = 1 << 30
MANIFEST = replace(make_manifest(ram_bytes=50 << 20), sha256="0" * 64)


def test_what_is_spare_counts_each_shard_once_and_the_kv_of_sections_as_taken(monkeypatch):
    monkeypatch.setattr(measure, "free_ram_bytes", lambda: 2 * GB)
    room = Room("b0", lambda plan: MANIFEST, None, lambda: GB // 2)
    now, then = (make_plan(MANIFEST, cuts, context=4000) for cuts in ((0, 3, 6), (0, 4, 6)))
    need, next_need = room.need(now), room.need(then)
    assert room.offer_bytes([]) == 2 * GB + GB // 2 and room.offer_bytes([now]) == 2 * GB + GB // 2 + need.kv
    assert room.spare_bytes([]) == usable_bytes(room.offer_bytes([]))
    assert room.spare_bytes([now]) == usable_bytes(room.offer_bytes([now])) - need.total
    both = need.kv + need.activations + next_need.total  # layers 0-2 are among 0-3
    assert room.spare_bytes([now], [then]) == usable_bytes(room.offer_bytes([now])) - both
    assert room.spare_bytes([now, then]) == usable_bytes(room.offer_bytes([now, then])) - both


def test_the_limit_of_the_owner_is_one_for_sections_and_their_pages(monkeypatch):
    monkeypatch.setattr(measure, "free_ram_bytes", lambda: 2 * GB)
    room = Room("b0", lambda plan: MANIFEST, GB)
    plan = make_plan(MANIFEST, (0, 3, 6))
    assert room.spare_bytes([plan]) == GB - headroom_bytes(GB) - room.need(plan).total
    assert room.spare_bytes([plan], capped=False) > 3 * GB // 2
    monkeypatch.setattr(measure, "free_ram_bytes", lambda: 0)
    assert room.spare_bytes([plan]) == 0


def test_pages_count_as_free_where_a_section_is_to_be_beside_another(monkeypatch):
    monkeypatch.setattr(measure, "free_ram_bytes", lambda: 100 << 20)
    plan = make_plan(MANIFEST, (0, 3, 6))
    for pages, fits in ((0, False), (GB, True)):
        room = Room("b0", lambda plan: MANIFEST, None, lambda pages=pages: pages)
        other = make_plan(MANIFEST, (0, 6), context=4000)
        assert room.is_beside(other, [plan]) is room.is_to_drain(other, [plan]) is fits


def test_a_section_that_swaps_needs_no_room_for_all_of_its_experts(monkeypatch):
    monkeypatch.setattr(measure, "free_ram_bytes", lambda: 1 << 30)
    manifest = replace(make_manifest(ram_bytes=1 << 29), sha256="0" * 64, expert_bytes=(1 << 28,) * 6)
    plan = make_plan(manifest, (0, 3, 6))
    swaps, room = replace(plan, swap_experts=True), Room("b0", lambda plan: manifest, None)
    with pytest.raises(PlanError, match="offers 1.07 GB now; layers 0-3 need"):
        room.check(plan, room.offer_bytes([]))
    need = room.need(swaps)
    assert need.total - need.least(True) == 3 << 28
    with pytest.raises(PlanError):
        room.check(swaps, need.least(True) - 1)
    room.check(swaps, need.least(True))
    assert room.swapping(plan, [], None) is None
    waits = room.swapping(swaps, [], 1e9)
    assert waits.expert_bytes == 3 << 28
    assert waits.held_bytes == max(0, (3 << 28) - (need.total - usable_bytes(1 << 30)))
