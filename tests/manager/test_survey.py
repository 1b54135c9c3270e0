"""What boards say of themselves is hostile until parsed, and which plan stands follows from all of it."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import EdgellmError, TagError
from edgellm.manager.survey import Fleet, Report, newest_plan, standing_plan
from edgellm.plan import Capacity, Plan, Section
from edgellm.shards.manifest import Manifest
from edgellm.wire import messages as m
from edgellm.wire.signed import Trust, sign
from edgellm.wire.status import BoardStatus
from tests.certificates import make_cluster
from tests.fakes import Boards, make_manifest, make_plan, run


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    folder = tmp_path_factory.mktemp("model")
    make_manifest().write(folder)
    return Manifest.read(folder)


def capacity(board: str) -> dict:
    return Capacity(board, 1 << 30, 0.001, 0.002, 0.0005).to_dict()


def status_of(manifest: Manifest, board: str = "b0", **changes) -> dict:
    """What an agent says that serves the first half of a plan of epoch 3."""
    plan = make_plan(manifest, (0, 3, 6), epoch=3)
    committed = sign(plan, {"b0": ("10.0.0.1", 7710), "b1": ("10.0.0.2", 7710)}, None)
    return {
        "committed": committed, "manifest_sha256": manifest.sha256, "model": "fake", "draining": False, "epoch": 3,
        "claimed": False, "plan": plan.to_dict(), "addresses": {"b0": ["10.0.0.1", 7710], "b1": ["10.0.0.2", 7710]},
        "shards": {"embedding": True, "layers": [[0, 2], [4, 6]], "head": True}, "capacity": capacity(board), **changes,
    }  # fmt: skip


def report_of(board: str, content: dict, manifest: Manifest) -> Report:
    """What the manager makes of a board's words."""
    return Report.of(BoardStatus.from_dict(board, content), manifest, Trust(None))


# Parsing


def test_a_status_is_parsed(manifest):
    report = report_of("b0", status_of(manifest), manifest)
    assert (report.epoch, report.held, report.claimed) == (3, (0, 3), False)
    assert report.plan == make_plan(manifest, (0, 3, 6), epoch=3)
    assert report.addresses == {"b0": ("10.0.0.1", 7710), "b1": ("10.0.0.2", 7710)}
    layers = {f"layer-{i:04}.safetensors" for i in (0, 1, 4, 5)}
    assert report.shards == layers | {"embedding.safetensors", "head.safetensors"}
    nothing = {"plan": None, "addresses": None, "epoch": None, "committed": None}
    empty = report_of("b0", status_of(manifest, **nothing, claimed=True), manifest)
    assert (empty.epoch, empty.held, empty.plan, empty.addresses, empty.claimed) == (None, None, None, {}, True)
    left = report_of("b0", status_of(manifest, plan=None, addresses=None), manifest)
    assert (left.epoch, left.plan) == (3, None)  # a board that a plan left out, or whose load failed at the commit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest_sha256": "0" * 64}, "board b0 has the shards of another model (fake). Deploy again."),
        ({"manifest_sha256": "0" * 64, "model": ["x" * 900]}, "another model (unknown)"),
        ({"manifest_sha256": None}, "another model"),
        ({"draining": True}, "board b0 is stopping"),
        ({"epoch": "3"}, "board b0 reports '3' as its epoch"),
        ({"epoch": True}, "board b0 reports True as its epoch"),
        ({"epoch": -1}, "board b0 reports -1 as its epoch"),
        ({"epoch": 1 << 32}, "board b0 reports 4294967296 as its epoch"),
        ({"epoch": 10**4000}, "as its epoch"),
        ({"epoch": [[]] * 1000}, "as its epoch"),
        ({"epoch": 4}, "board b0 reports a plan that isn't of its epoch 4"),
        ({"epoch": None}, "isn't of its epoch None"),
        ({"plan": []}, "plan is []"),
        ({"plan": {}}, "plan lacks"),
        ({"plan": 5}, "plan is 5"),
        ({"capacity": None}, "capacity is None"),
        ({"capacity": {}}, "capacity lacks"),
        ({"capacity": capacity("b1")}, "board b0 reports the capacity of b1"),
    ],
)
def test_what_no_agent_would_say_is_refused_with_the_board(manifest, changes, message):
    with pytest.raises(EdgellmError) as e:
        report_of("b0", status_of(manifest, **changes), manifest)
    assert message in str(e.value) and len(str(e.value)) < 200 and "\n" not in str(e.value)


def test_a_plan_that_is_another_board_s_or_another_model_s_is_refused(manifest):
    with pytest.raises(EdgellmError, match="board b7 has no section in the plan of epoch 3"):
        report_of("b7", status_of(manifest, "b7"), manifest)
    plan = status_of(manifest)["plan"]
    longer = {**plan, "num_layers": 7, "sections": [*plan["sections"], {"board": "b9", "start": 6, "end": 7}]}
    places = {b: ("10.0.0.9", 7710) for b in ("b0", "b1", "b9")}
    for other in ({**plan, "manifest_sha256": "f" * 64}, longer):
        with pytest.raises(EdgellmError, match="board b0 reports a plan that isn't of its model"):
            committed = sign(Plan.from_dict(other), places, None)
            report_of("b0", status_of(manifest, plan=other, committed=committed), manifest)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"committed": None}, "it reports epoch 3 without the plan"),
        ({"committed": None, "plan": None}, "it reports epoch 3 without the plan"),
        ({"committed": {}}, "a signed plan lacks"),
        ({"committed": 5}, "it reports epoch 3 without the plan"),
        ({"plan": None, "epoch": 4}, "it reports epoch 4; what was signed is another plan, of epoch 3"),
        ({"plan": "another"}, "it reports epoch 3; what was signed is another plan, of epoch 3"),
    ],
)
def test_a_plan_or_an_epoch_that_nobody_signed_is_a_lie(manifest, changes, why):
    if changes.get("plan") == "another":
        changes = {"plan": make_plan(manifest, (0, 4, 6), epoch=3).to_dict()}
    with pytest.raises(TagError) as e:
        report_of("b0", status_of(manifest, **changes), manifest)
    said = str(e.value)
    assert said.startswith("board b0 reports a plan that no admin of this cluster made (") and why in said
    assert e.value.board == "b0"


def test_with_tls_only_what_an_admin_signed_counts(manifest, tmp_path):
    tls, other = (make_cluster(tmp_path / name, ["b0", "b1"]) for name in ("ours", "theirs"))
    plan, places = make_plan(manifest, (0, 3, 6), epoch=3), {"b0": ("10.0.0.1", 7710), "b1": ("10.0.0.2", 7710)}
    trust = Trust(tls / "manager")

    def said(committed: dict) -> Report:
        status = BoardStatus.from_dict("b0", status_of(manifest, committed=committed))
        return Report.of(status, manifest, trust)

    ours = sign(plan, places, tls / "manager")
    assert said(ours).addresses == places and said(ours).tag == ours
    moved = {**ours, "addresses": {**ours["addresses"], "b1": ["10.6.6.6", 7710]}}
    for lie in (sign(plan, places, None), sign(plan, places, other / "manager"), moved):
        with pytest.raises(TagError, match="board b0 reports a plan that no admin of this cluster made"):
            said(lie)


@pytest.mark.parametrize("addresses", [None, 5, [], {"b1": ["10.6.6.6", 1]}, {"b7": ["10.6.6.6", 1]}])
def test_addresses_are_those_that_were_signed_whatever_else_a_board_says(manifest, addresses):
    report = report_of("b0", status_of(manifest, addresses=addresses), manifest)
    assert report.addresses == {"b0": ("10.0.0.1", 7710), "b1": ("10.0.0.2", 7710)}


@pytest.mark.parametrize(
    ("shards", "count"),
    [
        (None, 0), (5, 0), ([], 0), ({}, 0), ({"layers": None}, 0), ({"layers": {"0": 6}}, 0), ({"layers": "ab"}, 0),
        ({"layers": [[0, 6]]}, 6), ({"layers": [[-9, 2]]}, 2), ({"layers": [[0, 10**30]]}, 6),
        ({"layers": [[5, 2]]}, 0),
        ({"layers": [[0, 1], [2]]}, 1), ({"layers": [[0, 1], ["a", "b"]]}, 1), ({"layers": [[0.5, 2]]}, 0),
        ({"layers": [[0, 4096]] * 150_000}, 6), ({"embedding": 1, "head": "yes"}, 0), ({"embedding": True}, 1),
        ({"layers": [[0, 6]], "embedding": True, "head": True, "more": 1}, 8),
    ],
)  # fmt: skip
def test_shards_are_taken_where_they_are_ones(manifest, shards, count):
    assert len(report_of("b0", status_of(manifest, shards=shards), manifest).shards) == count


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from([
        "manifest_sha256", "draining", "epoch", "plan", "addresses", "claimed", "shards", "capacity", "committed",
        "links", "load_error", "section", "health", "draining_sequences",
    ]),
    _JSON, st.booleans(),
)  # fmt: skip
def test_any_json_is_parsed_or_refused(manifest, field, value, inside):
    status = status_of(manifest)
    if inside and isinstance(status.get(field), dict):
        for key in status[field]:
            status[field] = {**status[field], key: value}
    else:
        status[field] = value
    try:
        report = report_of("b0", status, manifest)
    except EdgellmError:
        return
    assert isinstance(report, Report)


# Which plan stands


def reports(**held: Plan | None) -> dict[str, Report]:
    """Boards that serve these plans, or none."""
    return {
        board: Report(board, Capacity(board, 1 << 30, 0.001, 0.002, 0.0), plan.epoch if plan else None, plan, {},
                      False, frozenset())
        for board, plan in held.items()
    }  # fmt: skip


def plan(epoch: int, *boards: str, chunk: int = 5) -> Plan:
    cuts = [round(i * 6 / len(boards)) for i in range(len(boards) + 1)]
    sections = tuple(Section(b, *cut) for b, cut in zip(boards, zip(cuts, cuts[1:], strict=False), strict=True))
    return Plan(epoch, "fake", "0" * 64, 6, "throughput", 64, 2, chunk, "float32", sections)


OLD, NEW = plan(1, "a", "b"), plan(2, "a", "b")
TWIN = plan(2, "a", "b", chunk=6)  # of the same epoch
THREE = plan(3, "a", "b", "c")


@pytest.mark.parametrize(
    ("held", "standing", "newest"),
    [
        ({}, None, None),
        ({"a": None, "b": None}, None, None),
        ({"a": OLD, "b": OLD}, OLD, OLD),
        ({"a": OLD, "b": OLD, "c": None}, OLD, OLD),
        ({"a": OLD, "b": None}, None, OLD),  # b restarted
        ({"a": OLD}, None, OLD),  # b is gone
        ({"a": NEW, "b": OLD}, None, NEW),  # partly committed
        ({"a": NEW, "b": TWIN}, None, max(NEW, TWIN, key=lambda p: p.digest)),  # two plans of one epoch
        ({"a": OLD, "b": OLD, "c": THREE}, OLD, THREE),  # c alone has switched
        ({"a": THREE, "b": THREE, "c": OLD}, None, THREE),
        ({"a": THREE, "b": THREE, "c": THREE}, THREE, THREE),
        ({"a": NEW, "b": NEW, "c": plan(1, "c")}, NEW, NEW),  # the newest that is complete
        ({"a": NEW, "c": plan(1, "c")}, plan(1, "c"), NEW),
        ({"a": plan(7, "a"), "b": plan(7, "b")}, max(plan(7, "a"), plan(7, "b"), key=lambda p: p.digest), None),
    ],
)
def test_the_newest_plan_that_all_its_boards_hold_stands(held, standing, newest):
    found = reports(**held)
    backwards = dict(reversed(found.items()))
    assert standing_plan(found) == standing_plan(backwards) == standing
    assert newest_plan(found) == newest_plan(backwards) == (newest or standing)


# Surveys


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("edgellm.manager.survey._REACH_TIMEOUT_S", 10.0)
    monkeypatch.setattr("edgellm.manager.survey._LOST_TIMEOUT_S", 0.5)
    monkeypatch.setattr("edgellm.manager.survey._GRACE_S", 0.02)


def fleet_of(boards: Boards, *names: str, **kwargs) -> Fleet:
    return Fleet(boards.manifest, {n: boards.addresses[n] for n in names or boards.addresses}, **kwargs)


def test_all_boards_are_asked_and_each_that_is_missing_has_its_reason(tmp_path, quick):
    async def go():
        async with Boards(tmp_path, 4, stored={"b1": (2, 4)}) as boards, fleet_of(boards) as fleet:
            await boards.form((0, 3, 6))
            await boards.stop(2)
            boards.agents[3].stop()  # it lets answers end, and there are none
            await fleet.survey()
            first = dict(fleet.reports), dict(fleet.missing)
            connected = fleet.clients(["b0", "b1"])
            await boards.start(2)
            await fleet.survey()
            assert fleet.clients(["b0", "b1"]) == connected and "b2" in fleet.reports
            return first

    there, missing = run(go())
    assert set(there) == {"b0", "b1"} and (there["b0"].held, there["b1"].held) == ((0, 3), (3, 6))
    assert len(there["b0"].shards) == 8 and there["b1"].shards == {"layer-0002.safetensors", "layer-0003.safetensors"}
    assert set(missing) == {"b2", "b3"} and all(name in reason for name, reason in missing.items())
    assert "connection refused, is its agent running?" in missing["b2"]


def test_a_board_that_is_not_needed_gets_a_moment_only(tmp_path, quick, monkeypatch):
    async def go():
        async with Boards(tmp_path, 3) as boards, fleet_of(boards) as fleet:
            await boards.form((0, 3, 6))
            await fleet.survey()
            for peer in boards.agents[2].connections.peers:
                peer.pause_reading()  # it hangs
            clock = asyncio.get_running_loop().time
            began_s = clock()
            await fleet.survey(needed=["b0", "b1"])
            took_s = clock() - began_s
            assert set(fleet.reports) == {"b0", "b1"} and fleet.missing == {"b2": "board b2 does not answer"}
            await fleet.survey()
            assert set(fleet.reports) == {"b0", "b1"} and "no status within 0.5 s" in fleet.missing["b2"]
            assert took_s < 5
            await fleet.survey()  # dialled anew, and accepted
            assert set(fleet.reports) == {"b0", "b1", "b2"}

    run(go())


def test_boards_that_others_tell_of_are_asked_too(tmp_path, quick):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            await boards.form((0, 2, 4, 6))
            async with fleet_of(boards, "b0") as fleet, fleet_of(boards, "b0", strangers=False) as small:
                await fleet.survey()
                await small.survey()
                return fleet.addresses == boards.addresses, set(fleet.reports), set(small.reports)

    assert run(go()) == (True, {"b0", "b1", "b2"}, {"b0"})


def test_boards_on_this_machine_share_its_ram_unless_told_otherwise(tmp_path, quick, monkeypatch):
    class Memory:
        available = 900_000_000

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 800_000_000)

    async def go():
        async with Boards(tmp_path, 3) as boards:
            async with fleet_of(boards) as fleet, fleet_of(boards, shared_ram=False) as apart:
                await fleet.survey()
                await apart.survey()
                offers = [{r.capacity.ram_bytes for r in f.reports.values()} for f in (fleet, apart)]
                boards.agents[0].options = replace(boards.agents[0].options, name="b9")  # it says odd things
                await fleet.survey()
                return offers, fleet.missing

    offers, missing = run(go())
    assert offers == [{300_000_000}, {800_000_000}]
    assert missing == {"b0": "board b0 reports the capacity of b9"}


def test_a_status_that_comes_late_is_not_taken_for_the_next_one(tmp_path, quick):
    async def go():
        async with Boards(tmp_path, 1) as boards, fleet_of(boards) as fleet:
            await fleet.survey()
            (board,) = fleet.clients(["b0"])
            board._message(board.peer, m.Status({"epoch": 9}, request=1))  # again
            await fleet.survey()
            return fleet.reports["b0"].epoch

    assert run(go()) is None
