"""Forming the cluster: who takes what, and what is left alone."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.controller import forming
from edgellm.errors import BoardError, PlanError
from edgellm.manager.cluster_file import ClusterFile, SshAccess
from edgellm.manager.session import Session
from edgellm.manager.survey import Fleet, other_models
from edgellm.manager.take import take
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from tests.certificates import make_cluster
from tests.controller.asked import LARGE, SETTINGS, request_of
from tests.fakes import Boards, claim, generate, make_manifest, make_plan, run, unclaim, until

PROMPT = [5, 17, 3, 42, 8, 1, 90]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("edgellm.manager.survey._REACH_TIMEOUT_S", 1.0)
    monkeypatch.setattr("edgellm.manager.survey._LOST_TIMEOUT_S", 0.5)
    monkeypatch.setattr("edgellm.manager.survey.Fleet._share_ram", lambda fleet: None)
    monkeypatch.setattr("edgellm.agent.measure.free_ram_bytes", lambda: 4 << 30)
    monkeypatch.setattr("edgellm.controller.forming._RETRY_FOR_S", 0.3)


class Deploy:
    """A controller that forms boards, again and again, and writes the cluster file."""

    def __init__(self, boards: Boards, path: Path):
        self.boards, self.path = boards, path
        self.told: list[str] = []

    async def form(self, addresses=None, details=None, dry_run=False, **changes) -> dict:
        at = self.path.with_name("request.json")
        at.parent.mkdir(exist_ok=True)
        request = request_of(at, self.boards.folder, addresses or self.boards.addresses, details, **changes)
        return await asyncio.to_thread(forming.form, request, self.path, self.told.append, dry_run=dry_run)

    async def answer(self) -> list[int]:
        file = ClusterFile.read(self.path)
        async with Session(
            self.boards.manifest, file.plan, file.addresses(), tls=file.client_tls(self.path), patience_s=5
        ) as session:
            stream = session.generate(PROMPT, sampling=Sampling(), max_tokens=20, eos=())
            return [c.token async for c in stream]


@pytest.fixture
def deploy(tmp_path):
    """Run `go(boards, a Deploy)`."""

    def deploy(go, count=2, manifest=LARGE, **kwargs):
        folder = tmp_path / "model"
        folder.mkdir()

        async def between():
            async with Boards(folder, count, manifest, **kwargs) as boards:
                return await go(boards, Deploy(boards, tmp_path / "config" / "cluster.json"))

        return run(between())

    return deploy


def test_a_cluster_is_formed_and_a_second_time_nothing_changes(deploy):
    async def go(boards, deploy):
        first = await deploy.form()
        before, stat = deploy.path.read_bytes(), deploy.path.stat()
        second = await deploy.form()
        assert deploy.path.read_bytes() == before and deploy.path.stat().st_mtime_ns == stat.st_mtime_ns
        assert await deploy.answer() == generate(PROMPT, 20)
        return first, second, deploy, ClusterFile.read(deploy.path), boards

    first, second, deploy, file, boards = deploy(go)
    sections = [{"board": "b0", "start": 0, "end": 3}, {"board": "b1", "start": 3, "end": 6}]
    assert (first["changed"], first["epoch"], first["sections"]) == (True, 1, sections)
    assert first["moved_bytes"] == sum(first["loaded_bytes"].values()) > 0 and "there was no plan" in first["reason"]
    assert (first["unused"], first["missing"], first["cluster_file"]) == ([], {}, str(deploy.path))
    assert (second["changed"], second["epoch"], second["moved_bytes"], second["loaded_bytes"]) == (False, 1, 0, {})
    assert second["sections"] == sections and deploy.told == ["epoch 1: b0 layers 0-3, b1 layers 3-6"]
    assert file.addresses() == boards.addresses and file.tls is None
    json.dumps([first, second])


def test_a_dry_run_says_what_would_be_and_changes_nothing(deploy):
    async def go(boards, deploy):
        dry = await deploy.form(dry_run=True)
        assert not deploy.path.exists() and [a.holding.epoch for a in boards.agents] == [None] * 3
        wet = await deploy.form()
        again = await deploy.form(dry_run=True)
        return dry, wet, again

    # Shards that aren't on a board yet may be pushed.
    stored = {"b0": (0, 1), "b1": (3, 4)}
    dry, wet, again = deploy(go, 3, make_manifest(), stored=stored)
    assert dry["changed"] and {s["board"] for s in dry["sections"]} == {"b0", "b1", "b2"}
    assert (dry["epoch"], wet["epoch"], again["epoch"]) == (1, 1, 2) and wet["sections"][0]["board"] == "b0"
    assert again["loaded_bytes"] == {}


def test_a_board_whose_disk_is_full_gets_no_layers(deploy):
    async def go(boards, deploy):
        return await deploy.form(details={"b1": {"disk_bytes": 1000}, "b0": {"disk_bytes": 1 << 40}}, dry_run=True)

    done = deploy(go, 3)
    assert [s["board"] for s in done["sections"]] == ["b0", "b2"] and done["unused"] == ["b1"]


def test_a_board_that_does_not_answer_is_left_out_and_named_and_comes_in_when_it_is_back(deploy):
    async def go(boards, deploy):
        await boards.stop(1)
        without = await deploy.form()
        await boards.start(1)
        back = await deploy.form()
        assert await deploy.answer() == generate(PROMPT, 20)
        return without, back, ClusterFile.read(deploy.path)

    without, back, file = deploy(go, 3, make_manifest())
    assert {s["board"] for s in without["sections"]} == {"b0", "b2"} and without["unused"] == []
    assert set(without["missing"]) == {"b1"} and "connection refused" in without["missing"]["b1"]
    assert back["changed"] and back["missing"] == {} and len(back["sections"]) == 3
    assert {b.name for b in file.boards} == {"b0", "b1", "b2"}  # also while it was missing


def test_too_few_boards_are_named_with_numbers_and_nothing_is_touched(deploy):
    async def go(boards, deploy):
        await deploy.form()
        before, epochs = deploy.path.read_bytes(), [a.holding.epoch for a in boards.agents]
        await boards.stop(1)
        with pytest.raises(PlanError, match=r"b0 .*1\.07 GB"):
            await deploy.form()
        assert deploy.path.read_bytes() == before and [a.holding.epoch for a in boards.agents][:1] == epochs[:1]
        await boards.stop(0)
        with pytest.raises(BoardError, match="no board answers: board b0 .*; board b1 .*"):
            await deploy.form()
        with pytest.raises(BoardError, match="no board answers"):
            await deploy.form(dry_run=True)

    deploy(go)


def test_another_address_other_settings_and_a_lost_file_are_changes(deploy):
    async def go(boards, deploy):
        done = [await deploy.form()]
        moved = {n: ("localhost", port) for n, (_, port) in boards.addresses.items()}
        done.append(await deploy.form(moved))
        assert ClusterFile.read(deploy.path).addresses() == moved
        assert boards.agents[0].stage.addresses == moved  # the boards have been told, too
        done.append(await deploy.form(moved))
        done.append(await deploy.form(moved, settings=replace(SETTINGS, context=80).to_dict()))
        done.append(await deploy.form(moved, settings=replace(SETTINGS, context=80).to_dict()))
        deploy.path.unlink()
        done.append(await deploy.form(moved, settings=replace(SETTINGS, context=80).to_dict()))
        deploy.path.write_text("{")
        done.append(await deploy.form(moved, settings=replace(SETTINGS, context=80).to_dict()))
        ssh = {"b1": {"ssh": {"host": "10.0.0.9", "user": "pi", "port": None, "key": None}}}
        done.append(await deploy.form(moved, ssh, settings=replace(SETTINGS, context=80).to_dict()))
        assert ClusterFile.read(deploy.path).boards[1].ssh == SshAccess("10.0.0.9", "pi")
        assert await deploy.answer() == generate(PROMPT, 20)
        return [(d["changed"], d["epoch"], sum(d["loaded_bytes"].values())) for d in done]

    changed = [(True, 1), (True, 2), (False, 2), (True, 3), (False, 3), (True, 3), (True, 3), (True, 3)]
    done = deploy(go)
    assert [x[:2] for x in done] == changed and [x[2] for x in done][1:] == [0] * 7


def test_a_board_that_left_the_inventory_gets_no_section_any_more(deploy):
    async def go(boards, deploy):
        await deploy.form()
        rest = {n: a for n, a in boards.addresses.items() if n != "b1"}
        done = await deploy.form(rest)
        assert await deploy.answer() == generate(PROMPT, 20)
        return done, ClusterFile.read(deploy.path).addresses() == rest

    done, same = deploy(go, 3, make_manifest())
    assert same and {s["board"] for s in done["sections"]} == {"b0", "b2"} and "board b1 is gone" in done["reason"]


def test_another_manager_is_waited_for(deploy, monkeypatch):
    monkeypatch.setattr("edgellm.controller.forming._RETRY_FOR_S", 10.0)
    surveys = []
    survey = Fleet.survey

    async def counted(fleet, *args):
        surveys.append(fleet)
        await survey(fleet, *args)

    monkeypatch.setattr(Fleet, "survey", counted)

    async def go(boards, deploy):
        holding = boards.agents[1].holding
        claim(holding)
        forming = asyncio.create_task(deploy.form())
        await until(lambda: len(surveys) > 1)  # tried twice
        unclaim(holding)
        return await forming, deploy.told

    done, told = deploy(go)
    assert done["changed"] and told[0] == "another manager is giving board b1 a plan; trying again for up to 10 s …"
    assert told[0] not in told[1:]


def test_a_board_that_can_not_load_is_named_and_the_plan_before_stays(deploy):
    async def go(boards, deploy):
        await deploy.form()
        before = deploy.path.read_bytes()
        boards.broken.add("b1")
        with pytest.raises(BoardError, match="board b1 .*SHA-256 differs"):
            await deploy.form(settings=replace(SETTINGS, context=80).to_dict())
        assert deploy.path.read_bytes() == before
        boards.broken.clear()
        assert await deploy.answer() == generate(PROMPT, 20)
        assert [a.holding.epoch for a in boards.agents] == [1, 1]

    deploy(go)


def test_a_cluster_is_formed_over_tls_and_its_file_says_where_the_certificate_is(deploy, tmp_path):
    tls = make_cluster(tmp_path / "config" / "tls", ["b0", "b1"])

    async def go(boards, deploy):
        done = await deploy.form(tls=str(tls / "manager"))
        assert await deploy.answer() == generate(PROMPT, 20)
        with pytest.raises(BoardError, match="no board answers: board b0 .*its certificate belongs to another cluster"):
            await deploy.form(tls=str(tls / "other" / "manager"))
        return done, ClusterFile.read(deploy.path)

    done, file = deploy(go, tls=tls)
    assert done["changed"] and file.tls == "tls/manager"


def test_further_models_get_a_plan_that_is_kept_and_one_that_can_not_be_held_is_named(deploy, tmp_path):
    other = replace(make_manifest(4, ram_bytes=300_000_000), model="other")
    strange = replace(make_manifest(3), model="strange")
    (tmp_path / "strange").mkdir()
    strange.write(tmp_path / "strange")

    async def go(boards, controller):
        more = [str(tmp_path / "other")]
        first = await controller.form(more=more)
        file = ClusterFile.read(controller.path)
        again = await controller.form(more=more)
        known = file.choose("other")
        async with Session(
            Manifest.read(tmp_path / "other"), known.plan, file.addresses(), patience_s=5,
            adopted=lambda plan, places, tag: file.with_plan(plan, places, tag).write(controller.path),
        ) as session:
            stream = session.generate(PROMPT, sampling=Sampling(), max_tokens=5, eos=())
            tokens = [c.token async for c in stream]
        held = ClusterFile.read(controller.path).choose("other").plan
        back = await controller.form(more=[*more, str(tmp_path / "strange")])
        return first, again, known.plan, tokens, held, back, ClusterFile.read(controller.path), controller.told

    first, again, plan, tokens, held, back, file, told = deploy(go, more={tmp_path / "other": other})
    assert first["models"] == ["fake", "other"] and first["changed"] and not again["changed"]
    assert plan.epoch == 0 and plan.boards == ("b0", "b1") and len(tokens) == 5
    assert held.epoch == 2 and back["epoch"] == 3 and file.choose("other").plan == held
    assert list(back["without"]) == ["strange"] and file.models == ["fake", "other"]
    assert "strange is left out: " in told[-1] and "has the shards of another model" in told[-1]


def test_a_deploy_leaves_another_model_alone_that_has_room_beside(deploy, tmp_path):
    other = replace(make_manifest(4, ram_bytes=20_000_000), model="other")

    async def go(boards, controller):
        await controller.form()
        manifest = Manifest.read(tmp_path / "other")
        second = make_plan(manifest, (0, 2, 4), epoch=2)
        async with Fleet(manifest, boards.addresses) as fleet:
            await fleet.survey()
            (first,) = other_models(fleet.reports)
            await take(fleet, second, keep={first})
        more = [str(tmp_path / "other")]
        again = await controller.form(more=more)
        changed = await controller.form(more=more, settings={**SETTINGS.to_dict(), "slots": 1})
        held = [{one.plan.model: one.plan.epoch for one in a.holding.held.served} for a in boards.agents]
        return again, changed, held, boards.loads

    again, changed, held, loads = deploy(go, more={tmp_path / "other": other})
    assert again["epoch"] == 1 and changed["epoch"] == 3
    assert held == [{"fake": 3, "other": 2}] * 2 and len(loads) == 6
