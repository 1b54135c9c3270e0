"""What boards remember of failures is shown by status and doctor, each with a way out."""

from edgellm.controller.doctor import Facts, diagnose
from edgellm.controller.remembered import failures
from edgellm.controller.status import ask_boards, describe
from edgellm.manager.pairs import Pair
from edgellm.wire.reach import Outcome
from edgellm.wire.status import BoardStatus
from tests.certificates import make_cluster
from tests.controller.test_status import ADDRESSES, cluster_of, plan_of, said
from tests.fakes import Boards, make_plan, run

DAMAGED = {"shards": {"embedding": True, "layers": [[0, 2]], "head": True, "damaged": ["layer-0002.safetensors"]}}
BY_SHARD = "/srv/layer-0002.safetensors: SHA-256 is 12, the manifest says 34; push it again"


def status(**fields) -> BoardStatus:
    return BoardStatus.from_dict("b1", fields)


def test_a_damaged_shard_is_named_with_a_way_out_and_its_load_isn_t_named_again():
    failed = {"start": 0, "end": 3, "reason": BY_SHARD, "age_s": 4.2}
    (found,) = failures(status(**DAMAGED, load_error=failed))
    assert found.about == "shards" and "layer-0002.safetensors" in found.what
    assert "edgellm deploy" in found.todo and "card" in found.todo


def test_a_load_that_failed_is_named_with_its_reason():
    (found,) = failures(status(load_error={"start": 0, "end": 3, "reason": BY_SHARD, "age_s": 4.2}))
    assert found.what == f"it could not load layers 0-3, 4 s ago: {BY_SHARD}" and "edgellm deploy" in found.todo
    (found,) = failures(status(load_error={"start": 3, "end": 6, "reason": "MemoryError: \x1b[2J", "age_s": 300}))
    assert found.what == "it could not load layers 3-6, 5 minutes ago: MemoryError: [2J"
    assert "edgellm logs b1" in found.todo


def test_links_that_broke_are_named_unless_they_were_just_tried():
    links = {
        "b2": {"code": "timeout", "reason": "no answer within 5 s", "hop_s": None, "age_s": 40.0},
        "b3": {"code": "ok", "reason": "", "hop_s": 0.001, "age_s": 3.0},
        "b4": {"code": "lost", "reason": "closed by the peer", "age_s": 3.0},
        "b5": {"code": "refused", "reason": "connection refused", "age_s": 1.0},
    }
    found = failures(status(links=links), tried=["b5"])
    assert [f.what for f in found] == ["it could not reach b2, 40 s ago: no answer within 5 s"]


def test_what_no_agent_would_say_is_left_out():
    for odd in ([], 5, "x", {"start": -1, "end": 3, "reason": "x"}, {"start": 0, "end": 3, "reason": 5}, {}):
        assert failures(status(load_error=odd, links=odd, shards=odd)) == []
    links = {"../b2": {"code": "timeout"}, "b2": {"code": "odd"}, "b3": 5, "b4": {"code": [], "reason": "x"}}
    assert failures(status(links=links)) == []
    many = {f"b{i}": {"code": "timeout", "reason": "x" * 5000} for i in range(5000)}
    found = failures(status(links=many, shards={"damaged": ["x" * 5000] * 5000}))
    assert len(found) == 65 and max(len(f.what) for f in found) < 1200


def test_status_says_what_boards_remember():
    plan = plan_of()
    words = {"b0": said("b0", plan), "b1": said("b1", plan, **DAMAGED, links={"b0": {"code": "refused", "age_s": 1}})}
    content = describe(cluster_of(plan, 2), words)
    assert any(n.startswith("b1: it doesn't use what is damaged: layer-0002.safetensors.") for n in content["notes"])
    assert any("b1: it could not reach b0, 1 s ago: refused." in n for n in content["notes"])
    pair = Pair("b1", "b0", ADDRESSES["b0"], Outcome("ok"))
    content = describe(cluster_of(plan, 2), words, pairs=[pair])
    assert not any("could not reach" in n for n in content["notes"])


def test_a_plan_that_nobody_signed_is_named_and_not_followed(tmp_path):
    """Neither its plan counts, nor whom it tells of."""
    tls = make_cluster(tmp_path / "tls", ["b0", "b1"])

    async def go():
        async with Boards(tmp_path, 2, tls=tls) as boards:
            plan = await boards.form((0, 3, 6))
            honest = await ask_boards(boards.addresses, boards.client_tls)
            evil = make_plan(boards.manifest, (0, 3, 6), epoch=plan.epoch + 1)
            holding = boards.agents[1].holding
            (served,) = holding.held.served
            holding.epoch, served.stage.plan = evil.epoch, evil
            served.stage.addresses["b9"] = ("192.0.2.1", 9)
            holding.committed = {**holding.committed, "plan": evil.to_dict()}
            asked: list[str] = []
            lying = await ask_boards(boards.addresses, boards.client_tls, asked.extend)
            return plan, honest, lying, asked

    plan, honest, lying, asked = run(go())
    content = describe(cluster_of(plan, 2), honest)
    assert content["serving"] and not content["notes"]
    content = describe(cluster_of(plan, 2), lying)
    assert [row["state"] for row in content["boards"]] == ["serving", "not believed"] and content["epoch"] == plan.epoch
    assert content["notes"][0].startswith("board b1 reports a plan that no admin of this cluster made (")
    assert lying.keys() == {"b0", "b1"} and not content["ready"]


def test_doctor_says_it_too_unless_it_has_read_the_shards_itself():
    found = tuple(failures(status(**DAMAGED)))
    assert [f.about for f in diagnose(Facts("b1", failures=found))] == ["shards"]
    sums = {"layer-0002.safetensors": "12"}
    seen = Facts(
        "b1", failures=found, files={"layer-0002.safetensors": 10}, sums=sums,
        manifest={"layer-0002.safetensors": (10, "34")},
    )  # fmt: skip
    (finding,) = diagnose(seen)
    assert finding.what == "damaged: layer-0002.safetensors"
