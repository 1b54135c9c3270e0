"""What boards say, beside the plan: who serves, who doesn't and why, which plan counts, what nonsense does."""

import json
import socket
from dataclasses import asdict, replace

import pytest

from edgellm.cli.cluster import _drafts
from edgellm.controller.status import Word, ask_boards, describe
from edgellm.errors import PlanError
from edgellm.manager.cluster_file import ClusterFile
from edgellm.manager.pairs import HERE, Pair
from edgellm.plan import Capacity, Draft, Plan, Settings
from edgellm.shards.manifest import Manifest
from edgellm.wire.reach import Outcome
from edgellm.wire.status import BoardStatus
from tests.certificates import make_cluster
from tests.fakes import Boards, make_manifest, make_plan, run

SHA = "5" * 64
MANIFEST = replace(make_manifest(), sha256=SHA)
ADDRESSES = {f"b{i}": ("10.0.0.1", 7710 + i) for i in range(4)}


def plan_of(cuts=(0, 3, 6), **changes):
    return make_plan(MANIFEST, cuts, **changes)


def cluster_of(plan, boards=3) -> ClusterFile:
    return ClusterFile.make("model", {f"b{i}": ADDRESSES[f"b{i}"] for i in range(boards)}, plan)


def said(name: str, serves=None, **changes) -> Word:
    """What board `name` says while it serves its section of a plan (None: it has none)."""
    status = {
        "name": name, "version": "0.1.0", "model": "fake", "manifest_sha256": SHA, "draining": False, "claimed": False,
        "epoch": serves.epoch if serves else None, "plan": serves.to_dict() if serves else None,
        "addresses": {b: list(ADDRESSES[b]) for b in serves.boards} if serves else None,
        "disk_free_bytes": 5_000_000_000,
        "capacity": {"board": name, "ram_bytes": 2_000_000_000, "layer_s": 0.01, "head_s": 0.0, "hop_s": 0.001,
                     "cores": 4, "batch_layer_s": None, "prefill_layer_s": None},
        "compute": {"threads": 4, "cores": [4, 5, 6, 7], "kernels": "dotprod"},
        "section": None,
        "health": {"temperature_c": 51.5, "throttled": False, "undervoltage": None, "link_mbit": 1000,
                   "ram_total_bytes": 4_000_000_000, "uptime_s": 100.5},
    }  # fmt: skip
    if serves:
        own = serves.section_of(name)
        status["section"] = {
            "epoch": serves.epoch, "start": own.start, "end": own.end, "path": "generic", "slots": 4, "free_slots": 3,
            "steps": 100, "sent_bytes": 5, "decode_steps": 50, "decode_s": 1.2,
        }  # fmt: skip
    return Word(*ADDRESSES[name], BoardStatus.from_dict(name, {**status, **changes}))


def dead(name: str) -> Word:
    return Word(*ADDRESSES[name], error="no answer within 4 s")


def states(content: dict) -> dict[str, str]:
    return {row["board"]: row["state"] for row in content["boards"]}


def test_a_cluster_that_serves():
    plan = plan_of()
    content = describe(cluster_of(plan, 2), {"b1": said("b1", plan), "b0": said("b0", plan)}, MANIFEST)
    assert content["serving"] and content["notes"] == [] and content["epoch"] == content["cluster_file_epoch"] == 1
    first = content["boards"][0]
    assert first == {
        "board": "b0", "address": "10.0.0.1:7710", "state": "serving", "serving": True, "ready": False,
        "in_plan": True, "others": [], "loading": None,
        "section": {"start": 0, "end": 3}, "path": "generic", "ram_total_bytes": 4_000_000_000,
        "ram_offered_bytes": 2_000_000_000, "ram_free_bytes": first["ram_free_bytes"],
        "disk_free_bytes": 5_000_000_000, "slots": 4, "free_slots": 3, "temperature_c": 51.5, "throttled": False,
        "undervoltage": None, "link_mbit": 1000, "uptime_s": 100.5, "decode_ms_per_token": 24.0, "hop_s": 0.001,
        "predicted_ms_per_token": None, "measured_ms_per_token": None, "cache": None,
        "degraded": None, "draft_model": None, "drafts": {},
        "kernels": "dotprod", "cores": [4, 5, 6, 7], "version": "0.1.0", "epoch": 1,
    }  # fmt: skip
    assert 1_990_000_000 < first["ram_free_bytes"] < 2_000_000_000
    assert content["tokens_per_s"] == pytest.approx(1 / (2 * (0.024 + 0.001)), abs=0.01)


def test_a_draft_model_takes_ram_and_tells_how_it_fares():
    settings = Settings(64, 2, 5, "float32")
    plan = plan_of(draft=Draft("small", "9" * 64, 400_000_000, 100_000_000, 5))
    told = {"draft_model": "small\x1b[2J", "drafts": {"model": [90, 60], "lookup": [4, 0], "x": [-1, 0], "y": "z"}}
    word = said("b1", plan)
    section = {**asdict(word.status.section), **told}
    words = {"b0": said("b0", plan), "b1": said("b1", plan, section=section)}
    first, last = describe(cluster_of(plan, 2), words, MANIFEST)["boards"]
    assert first["ram_free_bytes"] - last["ram_free_bytes"] > 600_000_000 and first["draft_model"] is None
    assert last["draft_model"] == "small[2J" and last["drafts"] == {"model": [90, 60], "lookup": [4, 0]}
    assert _drafts([first, last]) == [
        "drafts: small[2J drafts on b1, 60 of 90 accepted (model), 0 of 4 accepted (lookup)"
    ]
    assert Plan.from_dict(plan.to_dict()) == plan and "draft" not in plan_of().to_dict()
    assert Settings.from_dict(settings.to_dict()) == settings and "draft" not in settings.to_dict()
    with pytest.raises(PlanError, match="draft: weights_bytes is -1, expected an integer"):
        Plan.from_dict({**plan.to_dict(), "draft": {**asdict(plan.draft), "weights_bytes": -1}})
    with pytest.raises(PlanError, match="draft lacks manifest_sha256, model"):
        Plan.from_dict({**plan.to_dict(), "draft": {}})


OTHER = plan_of((0, 2, 6))


@pytest.mark.parametrize(
    ("word", "state"),
    [
        (dead("b1"), "unreachable: no answer within 4 s"),
        (said("b1"), "no section"),
        (said("b1", claimed=True), "no section, a plan is under way"),
        (said("b1", plan_of(), draining=True), "stopping"),
        (said("b1", manifest_sha256="6" * 64, model="gpt2"), "has another model: gpt2"),
        (said("b1", plan_of(epoch=3)), "serves epoch 3"),
        (said("b1", OTHER), "serves another plan of this epoch"),
    ],
)
def test_a_board_of_the_plan_that_does_not_serve_it(word, state):
    content = describe(cluster_of(plan_of(epoch=1)), {"b0": said("b0", plan_of()), "b1": word}, MANIFEST)
    assert states(content)["b1"] == state and not content["serving"]
    assert any("b1 (1 of the plan's 2 boards) can't serve" in note for note in content["notes"])
    assert content["tokens_per_s"] is None or state.startswith(("stopping", "serves"))
    assert not content["ready"]


SHARDS = {"embedding": True, "layers": [[0, 6]], "head": True}


def test_boards_that_have_just_started_are_ready_though_none_holds_its_section():
    content = describe(cluster_of(plan_of()), {n: said(n, shards=SHARDS) for n in ("b0", "b1")}, MANIFEST)
    assert states(content) == {f"b{i}": f"ready: loads layers {3 * i}-{3 * i + 3} at the next question" for i in (0, 1)}
    assert content["ready"] and not content["serving"] and content["notes"] == []


def test_one_board_that_has_just_started_beside_one_that_serves_is_ready():
    plan = plan_of()
    shards = {"embedding": False, "layers": [[0, 1], [3, 6]], "head": True}  # those of its own section
    content = describe(cluster_of(plan), {"b0": said("b0", plan), "b1": said("b1", shards=shards)}, MANIFEST)
    assert states(content) == {"b0": "serving", "b1": "ready: loads layers 3-6 at the next question"}
    assert content["ready"] and not content["serving"]


@pytest.mark.parametrize(
    "changes",
    [
        {"shards": {**SHARDS, "layers": [[0, 5]]}},
        {"shards": {**SHARDS, "head": False}},
        {"capacity": Capacity("b1", 1000, 0.01, 0.0, 0.001).to_dict()},
        {"claimed": True},
        {"draining": True},
        {"manifest_sha256": "6" * 64},
    ],
)
def test_a_board_that_could_not_load_its_section_is_not_ready_nor_are_the_others(changes):
    words = {"b0": said("b0", shards=SHARDS), "b1": said("b1", **{"shards": SHARDS, **changes})}
    content = describe(cluster_of(plan_of()), words, MANIFEST)
    assert not content["ready"] and not any(row["ready"] for row in content["boards"])
    assert states(content)["b0"] == "no section"



@pytest.mark.parametrize(
    ("objective", "changes", "state"),
    [
        ("throughput", {}, "spare: not in the plan of epoch 1"),
        ("latency", {}, "spare: fewer boards answer sooner"),
        (
            "latency",
            {"capacity": Capacity("b2", 1000, 0.01, 0.0, 0.001).to_dict()},
            "spare: offers 0.00 GB, a layer needs 0.07 GB",
        ),
        ("latency", {"manifest_sha256": "6" * 64}, "has another model: fake"),
    ],
)
def test_a_spare_board_is_shown_last_with_the_reason(objective, changes, state):
    plan = replace(plan_of(), objective=objective)
    words = {"b2": said("b2", **changes), "b0": said("b0", plan), "b1": said("b1", plan)}
    content = describe(cluster_of(plan), words, MANIFEST)
    assert list(states(content).items())[-1] == ("b2", state) and content["serving"]
    assert not content["boards"][-1]["in_plan"]


def test_a_newer_plan_that_all_its_boards_serve_counts():
    ours, newer = plan_of(epoch=4), plan_of((0, 4, 6), epoch=5)
    content = describe(cluster_of(ours), {"b0": said("b0", newer), "b1": said("b1", newer)}, MANIFEST)
    assert content["serving"] and content["epoch"] == 5 and content["cluster_file_epoch"] == 4
    assert "the cluster file has epoch 4, the boards serve epoch 5" in content["notes"][0]


def test_a_newer_plan_that_broke_off_is_told():
    ours, newer = plan_of(epoch=4), plan_of((0, 4, 6), epoch=5)
    content = describe(cluster_of(ours), {"b0": said("b0", newer), "b1": said("b1", ours)}, MANIFEST)
    assert not content["serving"] and content["epoch"] == 4
    assert any("b0 has moved on to epoch 5, which not all" in note for note in content["notes"])


def test_an_older_plan_or_one_of_another_model_never_counts():
    ours, older = plan_of(epoch=4), plan_of(epoch=3)
    assert describe(cluster_of(ours), {n: said(n, older) for n in ("b0", "b1")}, MANIFEST)["epoch"] == 4
    other = replace(plan_of(epoch=9), manifest_sha256="6" * 64)
    words = {n: said(n, other, manifest_sha256="6" * 64) for n in ("b0", "b1")}
    assert describe(cluster_of(ours), words, MANIFEST)["epoch"] == 4


def test_a_board_that_another_manager_added():
    ours, newer = plan_of(epoch=1), plan_of((0, 2, 4, 6), epoch=2)
    words = {n: said(n, newer) for n in ("b0", "b1", "b2")}
    content = describe(cluster_of(ours, 2), words, MANIFEST)
    assert content["serving"] and any(note.startswith("b2: in a plan of these boards") for note in content["notes"])


def pairs_of(outcomes: dict[str, Outcome | None]) -> list[Pair]:
    """Tried pairs by "dialler>board"."""
    ways = [(*way.split(">"), outcome) for way, outcome in outcomes.items()]
    return [Pair(d or HERE, b, ADDRESSES[b], o, "" if o else "its edgellm is too old to try") for d, b, o in ways]


OK, DROPS = Outcome("ok"), Outcome("timeout", "no answer within 2 s")


def test_a_link_of_the_plan_that_is_blocked_means_that_no_answer_comes():
    plan = plan_of()
    words, good = {n: said(n, plan) for n in ("b0", "b1")}, {">b0": OK, ">b1": OK, "b1>b0": OK}
    assert describe(cluster_of(plan, 2), words, MANIFEST, pairs_of({**good, "b0>b1": OK}))["serving"]
    content = describe(cluster_of(plan, 2), words, MANIFEST, pairs_of({**good, "b0>b1": DROPS}))
    assert not content["serving"] and states(content) == {"b0": "can't reach b1", "b1": "serving"}
    assert content["notes"] == [
        "b0 can't reach b1 at 10.0.0.1:7711: no answer within 2 s. Allow TCP port 7711 between the boards, with ufw on "
        "b1: 'sudo ufw allow from 10.0.0.1 to any port 7711 proto tcp'."
    ]
    assert content["pairs"] == [
        {"from": "b1", "to": "b0", "address": "10.0.0.1:7710", "ok": True, "reason": ""},
        {"from": "b0", "to": "b1", "address": "10.0.0.1:7711", "ok": False, "reason": "no answer within 2 s"},
    ]


def test_a_pair_that_the_plan_does_not_need_is_a_note():
    plan = plan_of()
    words = {"b0": said("b0", plan), "b1": said("b1", plan), "b2": said("b2")}
    content = describe(cluster_of(plan), words, MANIFEST, pairs_of({"b0>b1": OK, "b1>b0": OK, "b0>b2": DROPS}))
    assert content["serving"] and content["notes"][0].startswith("b0 can't reach b2")


def test_an_older_agent_is_no_broken_pair_but_a_note():
    plan = plan_of()
    words = {n: said(n, plan) for n in ("b0", "b1")}
    content = describe(cluster_of(plan, 2), words, MANIFEST, pairs_of({"b0>b1": OK, "b1>b0": None}))
    assert content["serving"] and content["pairs"][1]["ok"] is None
    assert content["notes"] == ["whether b1 reaches the others is not known: its edgellm is too old to try"]


def test_a_board_that_only_this_machine_does_not_reach_is_told():
    plan = plan_of()
    words = {"b0": said("b0", plan), "b1": dead("b1")}
    content = describe(cluster_of(plan, 2), words, MANIFEST, pairs_of({">b0": OK, ">b1": DROPS, "b0>b1": OK}))
    assert "though b0 reaches it there. Allow TCP port 7711 from this machine" in content["notes"][-1]
    content = describe(cluster_of(plan, 2), words, MANIFEST, pairs_of({">b0": OK, ">b1": DROPS, "b0>b1": DROPS}))
    assert len(content["notes"]) == 1  # it is just off, which is told already


def test_mixed_versions_are_told():
    plan = plan_of()
    words = {"b0": said("b0", plan), "b1": said("b1", plan, version="0.2.0")}
    assert "different versions (0.1.0, 0.2.0)" in describe(cluster_of(plan, 2), words)["notes"][0]


def test_without_the_manifest_free_ram_is_not_known():
    plan = plan_of()
    row = describe(cluster_of(plan, 2), {n: said(n, plan) for n in ("b0", "b1")})["boards"][0]
    assert row["ram_offered_bytes"] == 2_000_000_000 and row["ram_free_bytes"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"health": None, "section": None, "capacity": None, "plan": None},
        {"health": [1], "section": "x", "capacity": 7, "plan": [], "addresses": 3, "epoch": "9", "version": 5},
        {"plan": {"epoch": 10**30}, "epoch": -1, "disk_free_bytes": 1e300, "addresses": {"b9": ["h", 0]}},
        {"health": {"temperature_c": float("inf"), "throttled": 1, "link_mbit": True, "ram_total_bytes": 1 << 90}},
        {"plan": plan_of((0, 6)).to_dict()},  # a plan without this board
        {"capacity": {"ram_bytes": -5, "hop_s": "x"}, "section": {"decode_s": "x", "decode_steps": -1}},
        {"version": "\x1b[2J" * 100, "model": "\x1b]0;x\x07", "manifest_sha256": "y"},
    ],
)
def test_nonsense_from_a_board_is_taken_for_what_it_is(changes):
    content = describe(cluster_of(plan_of(), 2), {"b0": said("b0", plan_of()), "b1": said("b1", **changes)}, MANIFEST)
    assert not content["serving"]
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    assert "\x1b" not in text and "\\u001b" not in text and "\x07" not in text


def test_live_boards_are_asked_at_once_and_dead_ones_named(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.controller.status._REACH_TIMEOUT_S", 1.5)

    async def go():
        with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, and says nothing
            async with Boards(tmp_path, 2) as boards:
                plan = await boards.form((0, 3, 6))
                addresses = {**boards.addresses, "gone": ("127.0.0.1", 1), "mute": mute.getsockname()}
                late = []
                words = await ask_boards(addresses, None, late.extend)
                file = ClusterFile.make(tmp_path, boards.addresses, plan)
                return describe(file, words, Manifest.read(tmp_path)), late

    content, late = run(go())
    assert content["serving"] and late == ["mute"]
    by_name = {row["board"]: row for row in content["boards"]}
    assert by_name["b0"]["ram_total_bytes"] and by_name["b0"]["section"] == {"start": 0, "end": 3}
    assert by_name["gone"]["state"] == "unreachable: connection refused, is its agent running?"
    assert by_name["mute"]["state"].startswith("unreachable: no answer within 1.5 s")


def test_boards_that_only_other_boards_know_are_asked_too(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            await boards.form((0, 2, 4, 6))
            return await ask_boards({"b0": boards.addresses["b0"]})

    assert {name: word.error for name, word in run(go()).items()} == {"b0": None, "b1": None, "b2": None}


def test_over_tls_with_certificates(tmp_path):
    tls = make_cluster(tmp_path / "tls", ["b0"])

    async def go():
        (tmp_path / "model").mkdir()
        async with Boards(tmp_path / "model", 1, tls=tls) as boards:
            good = await ask_boards(boards.addresses, boards.client_tls)
            return good, await ask_boards(boards.addresses)

    good, without = run(go())
    assert good["b0"].error is None and without["b0"].status is None and without["b0"].error


def paced(name, plan, predicted_s, token_s, layer_s) -> Word:
    """What a board says whose steps tell how fast it is."""
    own = plan.section_of(name)
    section = {
        "epoch": plan.epoch, "start": own.start, "end": own.end, "path": "generic", "slots": 4, "free_slots": 4,
        "decode_steps": 50, "decode_s": 9.0, "predicted_s": predicted_s, "token_s": token_s,
    }  # fmt: skip
    capacity = Capacity(name, 2_000_000_000, layer_s, 0.0, 0.001)
    shards = {"embedding": True, "layers": [[0, 6]], "head": True}
    return said(name, plan, section=section, capacity=capacity.to_dict(), shards=shards)


def test_what_the_plan_predicted_is_told_beside_what_is_measured():
    plan = plan_of((0, 1, 6))
    words = {"b0": paced("b0", plan, 0.030, 0.010, 0.010), "b1": paced("b1", plan, 0.050, 0.051, 0.0102)}
    content = describe(cluster_of(plan, 2), words, MANIFEST)
    assert content["notes"] == [
        "b0 takes 10 ms a token, and the plan was made for 30 ms: it was probably busy when it was measured; "
        "with b0 layers 0-3, b1 layers 3-6 39% would be saved. The boards get that plan when they are idle, or by "
        "'edgellm rebalance'"
    ]
    assert [row["predicted_ms_per_token"] for row in content["boards"]] == [30, 50]
    assert [row["measured_ms_per_token"] for row in content["boards"]] == [10, 51]
    assert content["tokens_per_s"] == pytest.approx(1 / 0.063, abs=0.01)
    assert content["predicted_tokens_per_s"] == pytest.approx(1 / 0.082, abs=0.01)


def test_a_board_that_is_slower_than_predicted_and_no_better_plan():
    plan = plan_of((0, 3, 6))
    words = {"b0": paced("b0", plan, 0.030, 0.039, 0.013), "b1": paced("b1", plan, 0.030, 0.037, 0.0125)}
    notes = describe(cluster_of(plan, 2), words, MANIFEST)["notes"]
    assert notes == [
        "b0 takes 39 ms a token, and the plan was made for 30 ms: heat or other work slows it",
        "b1 takes 37 ms a token, and the plan was made for 30 ms: heat or other work slows it; no other plan would be "
        "a tenth faster",
    ]
    words = {"b0": paced("b0", plan, 0.030, 0.035, 0.0117), "b1": paced("b1", plan, 0.030, None, 0.010)}
    assert describe(cluster_of(plan, 2), words, MANIFEST)["notes"] == []


# Several models

OTHER_MANIFEST = replace(make_manifest(4), model="other", sha256="6" * 64)


def test_the_model_that_stands_counts_and_the_others_are_named():
    ours, other = plan_of(), make_plan(OTHER_MANIFEST, (0, 2, 4), epoch=2)
    cluster = cluster_of(ours, 2).adding("other", replace(other, epoch=0))
    more = [{"model": "other", "manifest_sha256": "6" * 64, "shards": {}, "capacity": said("b0").status.capacity}]
    default = describe(cluster, {n: said(n, ours, more=more) for n in ("b0", "b1")}, MANIFEST)
    assert (default["model"], default["models"], default["standing"]) == ("fake", ["fake", "other"], ["fake"])
    words = {n: said(n, other, model="other", manifest_sha256="6" * 64) for n in ("b0", "b1")}
    content = describe(cluster, words, OTHER_MANIFEST)
    assert (content["model"], content["standing"], content["epoch"]) == ("other", ["other"], 2)
    assert content["serving"] and content["ready"] and set(states(content).values()) == {"serving"}
    assert content["cluster_file_epoch"] == 0


def here_of(name: str, shards) -> dict:
    """What a board says of the fake model as a further one."""
    capacity = said(name).status.capacity.to_dict()
    return {"model": "fake", "manifest_sha256": MANIFEST.sha256, "shards": shards, "capacity": capacity}


def both_on(name: str, ours, other) -> Word:
    """What a board says that serves `other` beside `ours`."""
    more = [here_of(name, {})]
    section = {"start": 0, "end": 2, "ram_bytes": 300}
    held = {"committed": {"plan": ours.to_dict()}, "section": {"start": 0, "end": 3, "ram_bytes": 500}}
    return said(
        name, other, model="other", manifest_sha256="6" * 64, more=more, beside=[held], section=section, epoch=2
    )


def test_of_two_models_on_the_same_boards_each_can_be_asked_about():
    ours, other = plan_of(), make_plan(OTHER_MANIFEST, (0, 2, 4), epoch=2)
    cluster = cluster_of(ours, 2).adding("other", other)
    words = {name: both_on(name, ours, other) for name in ("b0", "b1")}
    content = describe(cluster, words, MANIFEST)
    assert (content["model"], content["standing"], content["epoch"]) == ("fake", ["fake", "other"], 1)
    assert content["serving"] and not content["notes"] and set(states(content).values()) == {"serving"}
    row = content["boards"][0]
    assert (row["section"], row["others"]) == (
        {"start": 0, "end": 3}, [{"model": "other", "start": 0, "end": 2, "ram_bytes": 300}],
    )  # fmt: skip
    assert row["ram_offered_bytes"] - row["ram_free_bytes"] == 800
    content = describe(cluster.led_by("other"), words, OTHER_MANIFEST, model="other")
    assert (content["model"], content["models"], content["epoch"]) == ("other", ["other", "fake"], 2)
    assert content["serving"] and content["boards"][0]["others"][0]["model"] == "fake"


def test_a_model_that_is_not_loaded_is_ready_if_boards_could_change_over():
    ours, other = plan_of(), make_plan(OTHER_MANIFEST, (0, 2, 4), epoch=2)
    cluster = cluster_of(ours, 2).adding("other", other)
    words = {
        n: said(n, other, model="other", manifest_sha256="6" * 64, more=[here_of(n, SHARDS)]) for n in ("b0", "b1")
    }
    content = describe(cluster, words, MANIFEST, model="fake")
    assert not content["serving"] and content["ready"] and content["standing"] == ["other"]


def test_two_models_that_stand_at_once_are_both_told():
    ours, other = plan_of((0, 6)), make_plan(OTHER_MANIFEST, (0, 4), epoch=2)
    other = replace(other, sections=(replace(other.sections[0], board="b1"),))
    cluster = cluster_of(ours, 2).adding("other", other)
    words = {"b0": said("b0", ours), "b1": said("b1", other, model="other", manifest_sha256="6" * 64)}
    content = describe(cluster, words, MANIFEST)
    assert content["standing"] == ["fake", "other"] and content["model"] == "fake" and content["serving"]
    assert states(content) == {"b0": "serving", "b1": "serves other"} and not content["notes"]
