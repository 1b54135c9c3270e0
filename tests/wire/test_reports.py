"""Reports of boards: built and parsed by one class, and hostile until parsed."""

import json
from dataclasses import replace

import pytest

from edgellm.plan import Capacity, Plan, Section, Swapping
from edgellm.wire.addresses import is_host, is_loopback, parse_address
from edgellm.wire.section_status import SectionLoading, SectionStatus
from edgellm.wire.status import BoardStatus, CacheStatus, Compute, Health, SequenceStats, ShardsHere

PLAN = Plan(7, "fake", "5" * 64, 6, "latency", 64, 2, 8, "float32", (Section("b0", 0, 3), Section("b1", 3, 6)))
CAPACITY = Capacity("b0", 1 << 30, 0.001, 0.002, 0.0005, 4)
FULL = BoardStatus(
    "b0", "0.1.0", "fake", "5" * 64, False, 7, True, PLAN, {"b0": ("10.0.0.1", 7710), "b1": ("fe80::1%eth0", 7710)},
    ShardsHere(True, ((0, 2), (4, 6)), False), 5_000_000_000, Health(51.5, False, None, 1000, 4_000_000_000, 100.5),
    CAPACITY, Compute(4, (4, 5, 6, 7), "dotprod"), SectionStatus(7, 0, 3, "native", 2, 1, 100, 5, 50, 1.25),
    cache=CacheStatus(10**9, 300, 10**8, 5, 900, 10**7),
)  # fmt: skip
STATS = SequenceStats("native", 3, 12, 0.5, 9, 0.25, 2, 1, 400)
SWAPS = Swapping(8 * 10**9, 5 * 10**9, 3 * 10**8, 4e8, False, 0.75)


def said(content: dict) -> dict:
    """As it comes out of a frame."""
    return json.loads(json.dumps(content))


def test_a_status_comes_back_as_it_was_built():
    assert BoardStatus.from_dict("b0", said(FULL.to_dict())) == FULL
    idle = BoardStatus("b0", epoch=7, capacity=CAPACITY)
    content = said(idle.to_dict())
    assert BoardStatus.from_dict("b0", content) == idle and not idle.faults
    assert content["plan"] is content["addresses"] is content["section"] is None and "faults" not in content


def test_stats_come_back_as_they_were_built():
    assert SequenceStats.from_dict(said(STATS.to_dict())) == STATS
    assert SequenceStats.from_dict(said(replace(STATS, degraded=SWAPS).to_dict())) == replace(STATS, degraded=SWAPS)
    assert SequenceStats.from_dict({}) is None  # a sequence that the board doesn't have


@pytest.mark.parametrize("content", [None, 5, [], "x", [{"name": "b0"}]])
def test_what_is_no_object_says_nothing(content):
    status = BoardStatus.from_dict("b0", content)
    assert (status.name, status.version, status.epoch, status.plan, status.section) == ("b0", None, None, None, None)
    assert status.faults == ("board b0 reports an invalid capacity: capacity is None, expected an object",)
    assert SequenceStats.from_dict(content) is None


@pytest.mark.parametrize("value", [True, -1, 1 << 60, 1e999, float("nan"), "9", None, [], {}])
def test_a_number_that_is_none_is_not_taken_for_one(value):
    assert SequenceStats.from_dict({**STATS.to_dict(), "decode_steps": value}).decode_steps == 0
    assert SequenceStats.from_dict({**STATS.to_dict(), "decode_s": "x" if value == 1 << 60 else value}).decode_s == 0
    told = {"disk_free_bytes": value, "health": {"link_mbit": value}, "cache": {"bytes": value}}
    status = BoardStatus.from_dict("b0", {**FULL.to_dict(), **told})
    assert status.disk_free_bytes is status.health.link_mbit is status.cache.bytes is None


def test_a_text_is_short_and_moves_no_cursor():
    status = BoardStatus.from_dict("b0", {"version": "\x1b[2J" * 100, "model": "\x1b]0;x\x07", "name": "\x1b"})
    assert status.name == "b0" and status.model == "]0;x" and status.version.startswith("[2J[2J")
    assert len(status.version) <= 61 and BoardStatus.from_dict("b0", {"version": "\x07"}).version is None


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"epoch": True}, "board b0 reports True as its epoch"),
        ({"epoch": 8}, "board b0 reports a plan that isn't of its epoch 8"),
        ({"plan": {**PLAN.to_dict(), "slots": 0}}, "board b0 reports an invalid plan: plan: slots is 0, expected"),
        ({"plan": {**PLAN.to_dict(), "sections": [{"board": "b1", "start": 0, "end": 6}]}},
         "board b0 reports an invalid plan: board b0 has no section in the plan of epoch 7"),
        ({"capacity": {**CAPACITY.to_dict(), "board": "b1"}}, "board b0 reports the capacity of b1"),
        ({"capacity": {**CAPACITY.to_dict(), "layer_s": 0}}, "board b0 reports an invalid capacity: capacity of b0: "),
    ],
)  # fmt: skip
def test_what_no_agent_would_say_is_a_fault(changes, fault):
    (found,) = BoardStatus.from_dict("b0", {**said(FULL.to_dict()), **changes}).faults
    assert found.startswith(fault)


@pytest.mark.parametrize(
    ("content", "address"),
    [
        (["10.0.0.1", 7710], ("10.0.0.1", 7710)), (["pi.local", 1], ("pi.local", 1)), (["::1", 65535], ("::1", 65535)),
        (["10.0.0.1", 0], None), (["10.0.0.1", 65536], None), (["10.0.0.1", True], None), (["10.0.0", 1], None),
        (["-oProxyCommand=x", 1], None), (["a b", 1], None), (["", 1], None), (["x"], None), ("ab", None), (None, None),
    ],
)  # fmt: skip
def test_addresses(content, address):
    assert parse_address(content) == address


def test_hosts():
    assert is_host("pi_1.local.") and not is_host("1.2.3") and not is_host(5) and not is_host("x" * 64)
    assert is_loopback("127.0.0.9") and is_loopback("LOCALHOST.") and not is_loopback("10.0.0.1")


# Several sections

OTHER = Plan(5, "other", "6" * 64, 4, "latency", 64, 2, 8, "float32", (Section("b0", 0, 4),))
BESIDE = {"committed": {"plan": OTHER.to_dict(), "signature": "x"}, "section": {"start": 0, "end": 4, "ram_bytes": 9}}


def beside(*entries: object) -> BoardStatus:
    return BoardStatus.from_dict("b0", said({**FULL.to_dict(), "beside": list(entries)}))


def test_what_a_board_serves_beside_its_last_plan_comes_back_and_can_be_looked_at_from_there():
    status = beside(BESIDE)
    assert BoardStatus.from_dict("b0", said(status.to_dict())) == status and not status.faults
    assert set(status.sections) == {PLAN.manifest_sha256, OTHER.manifest_sha256}
    assert status.serves(PLAN) and status.serves(OTHER) and not status.serves(replace(OTHER, epoch=6))
    view = status.of_model(OTHER.manifest_sha256)
    assert (view.plan, view.section.ram_bytes, view.committed["signature"]) == (OTHER, 9, "x")
    assert view.sections == status.sections and view.of_model(PLAN.manifest_sha256).plan == PLAN
    assert status.of_model("0" * 64) == status


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (7, "board b0 reports an invalid plan: plan is None, expected an object"),
        ({**BESIDE, "committed": {"plan": {}}}, "board b0 reports an invalid plan: plan lacks chunk"),
        ({**BESIDE, "committed": {"plan": replace(OTHER, sections=(Section("b1", 0, 4),)).to_dict()}},
         "board b0 reports an invalid plan: board b0 has no section in the plan of epoch 5"),
        ({**BESIDE, "committed": {"plan": PLAN.to_dict()}}, "board b0 reports two plans of fake"),
    ],
)  # fmt: skip
def test_what_no_agent_would_serve_beside_is_a_fault(entry, fault):
    status = beside(entry)
    assert status.beside == () and status.faults[0].startswith(fault)


def test_two_sections_of_one_model_are_a_fault_and_too_many_are_left_out():
    assert beside(BESIDE, BESIDE).faults == ("board b0 reports two plans of other",)
    many = [
        {**BESIDE, "committed": {"plan": replace(OTHER, manifest_sha256=f"{i:064x}").to_dict()}} for i in range(50)
    ]
    assert len(beside(*many).beside) == 16
    assert BoardStatus.from_dict("b0", {**said(FULL.to_dict()), "beside": "x"}).beside == ()
    assert BoardStatus.from_dict("b0", {"beside": None}).beside is None


@pytest.mark.parametrize("change", [{"epoch": -1}, {"model": 5}, {"read_bytes": None}, {"total_bytes": "9"}])
def test_a_load_that_is_not_well_formed_is_none(change):
    told = {"epoch": 8, "model": "fake", "start": 0, "end": 3, "read_bytes": 5, "total_bytes": 4, "age_s": 1.5}
    assert SectionLoading.from_dict(told) == SectionLoading(8, "fake", 0, 3, 4, 4, 1.5)
    assert SectionLoading.from_dict({**told, **change}) is None


def test_a_section_that_swaps_experts_says_so_and_nothing_else_is_believed():
    section = replace(FULL.section, degraded=SWAPS, predicted_s=0.5, token_s=5.0)
    status = replace(FULL, section=section, capacity=replace(CAPACITY, disk_bytes_per_s=4e8))
    assert BoardStatus.from_dict("b0", said(status.to_dict())) == status
    assert not section.is_off, "how long it waits for the disk tells nothing of the board"
    for wrong in ({"held_bytes": -1}, {"disk_bytes_per_s": 0}, {"wait_s": "x"}):
        assert SectionStatus.from_dict({"degraded": {**vars(SWAPS), **wrong}}).degraded is None
