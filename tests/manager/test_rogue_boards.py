"""Boards with a valid certificate that lie: the user is told which one, and answers are those of the others."""

import asyncio
import re
from dataclasses import replace

import numpy as np
import pytest

from edgellm.agent.link import Links
from edgellm.agent.loading import Loaded
from edgellm.agent.stage import Stage
from edgellm.controller.status import ask_boards
from edgellm.errors import ClaimError, EdgellmError
from edgellm.manager.survey import MAX_BOARDS, Fleet
from edgellm.plan import Plan, Section
from edgellm.wire.section_status import SectionBeside, SectionStatus
from edgellm.wire.signed import sign
from tests.certificates import make_cluster
from tests.fakes import VOCAB, Boards, FakeSection, claim, generate, run
from tests.manager.test_keeper import PROMPT, Manager

pytestmark = pytest.mark.usefixtures("quick")

HIGHEST = (1 << 32) - 1


@pytest.fixture
def boards_of(tmp_path):
    def boards_of(count: int) -> Boards:
        tls = make_cluster(tmp_path / "tls", [f"b{i}" for i in range(count)])
        return Boards(tmp_path, count, tls=tls)

    return boards_of


def take_over(boards: Boards, i: int, plan: Plan, committed: dict | None) -> None:
    """Board i gives itself a stage that nobody asked it to take, and answers everybody alone."""
    agent = boards.agents[i]
    section = FakeSection(boards.manifest, 0, 6)
    section._logits = lambda held: np.eye(VOCAB, dtype=np.float32)[66]  # says 66, always
    name, slots = f"b{i}", [section.new_slot(64) for _ in range(2)]
    if agent.holding.stage is not None:
        agent.holding.stage.stop("taken over")
    agent.holding.epoch, agent.holding.committed = plan.epoch, committed
    place = {name: ("127.0.0.1", agent.port)}
    stage = Stage(plan, name, place, section, slots, links=Links(name, None))
    agent.holding.held.begin(stage, Loaded(section, slots), committed)


def evil(plan: Plan, board: str) -> Plan:
    return replace(plan, epoch=HIGHEST, sections=(Section(board, 0, 6),))


def unsigned(plan: Plan, boards: Boards) -> dict:
    return sign(plan, {b: boards.addresses[b] for b in plan.boards}, None)


def by_itself(plan: Plan, boards: Boards) -> dict:
    """Signed with a board's key: it has one, but it isn't an admin's."""
    signed = sign(plan, {b: boards.addresses[b] for b in plan.boards}, boards.tls / "manager")
    return {**signed, "certificate": (boards.tls / "boards" / "b1" / "cert.pem").read_text()}


@pytest.mark.parametrize("tag", [lambda *_: None, unsigned, by_itself], ids=["none", "unsigned", "own"])
def test_a_board_that_makes_itself_a_plan_is_left_out_and_named(boards_of, tag):
    async def go():
        async with boards_of(3) as boards:
            plan = await boards.form((0, 2, 4, 6))
            lie = evil(plan, "b1")
            take_over(boards, 1, lie, tag(lie, boards))
            async with Manager(boards, plan) as manager:
                return await manager.ask(), manager

    answer, manager = run(go())
    plan = manager.session.plan
    assert answer == generate(PROMPT, 10) and plan.epoch == 2 and set(plan.boards) == {"b0", "b2"}
    assert [p for p, *_ in manager.adopted] == [plan] and set(manager.adopted[0][2]) == {"certificate", "signature"}
    (named,) = [t for t in manager.told if "no admin of this cluster made" in t]
    assert re.match("board b1 reports a plan that no admin .*It is left out: deploy to it again, or remove it.", named)


def bare(plan: Plan, boards: Boards) -> dict:
    return {"plan": plan.to_dict()}


@pytest.mark.parametrize("tag", [bare, unsigned, by_itself], ids=["bare", "unsigned", "own"])
def test_a_board_that_says_it_serves_another_model_beside_is_not_believed_without_an_admin(boards_of, tag):
    async def go():
        async with boards_of(3) as boards:
            plan = await boards.form((0, 2, 4, 6))
            lie = replace(evil(plan, "b1"), epoch=0, model="lie", manifest_sha256="7" * 64)
            dispatcher, status = boards.agents[1].dispatcher, boards.agents[1].dispatcher._status
            beside = (SectionBeside(lie, tag(lie, boards), SectionStatus(ram_bytes=1 << 30)),)
            dispatcher._status = lambda: replace(status(), beside=beside)
            async with Fleet(boards.manifest, boards.addresses, boards.client_tls) as fleet:
                await fleet.survey()
                words = await ask_boards(boards.addresses, boards.client_tls)
                return fleet.liars, set(fleet.reports), words["b1"]

    liars, reports, word = run(go())
    assert set(liars) == {"b1"} and reports == {"b0", "b2"} and "no admin of this cluster made" in liars["b1"]
    assert word.lie == liars["b1"] and not word.status.sections


def test_epochs_can_t_be_used_up(boards_of):
    """A spare board claims to be at the last epoch but one: nobody counts from there, now and after it is gone."""

    async def go():
        async with boards_of(4) as boards:
            plan = await boards.form((0, 2, 4, 6))
            boards.agents[3].holding.epoch = HIGHEST - 1
            await boards.stop(2)
            async with Manager(boards, plan) as manager:
                answers = [await manager.ask()]
                after = manager.session.plan
            await boards.start(2)
            await boards.stop(3)
            for i in (0, 1, 2):
                await boards.stop(i)
                await boards.start(i)
            async with Manager(boards, after) as manager:
                answers.append(await manager.ask())
                return answers, [after.epoch, manager.session.plan.epoch]

    answers, epochs = run(go())
    assert answers == [generate(PROMPT, 10)] * 2 and epochs == [2, 3]


def test_a_plan_that_was_signed_once_and_is_long_past_does_not_come_back(boards_of):
    """b1 kept the plan of epoch 1, in which it held the whole model, and says that it still serves it."""

    async def go():
        async with boards_of(3) as boards:
            alone = evil(await boards.form((0, 2, 4, 6)), "b1")
            alone = replace(alone, epoch=1)
            old = sign(alone, {"b1": boards.addresses["b1"]}, boards.tls / "manager")
            plan = await boards.form((0, 2, 4, 6), epoch=5)
            take_over(boards, 1, alone, old)
            async with Manager(boards, plan) as manager:
                return await manager.ask(), manager.session.plan

    answer, plan = run(go())
    assert answer == generate(PROMPT, 10) and plan.epoch == 6


def test_strangers_are_asked_only_where_a_signed_plan_has_them_and_not_too_many(boards_of, monkeypatch):
    asked: list[tuple[str, tuple[str, int]]] = []
    ask = Fleet._ask

    def noted(fleet, name, address, *args):
        asked.append((name, address))
        return ask(fleet, name, address, *args)

    monkeypatch.setattr(Fleet, "_ask", noted)
    monkeypatch.setattr("edgellm.manager.survey._REACH_TIMEOUT_S", 10.0)

    async def go():
        async with boards_of(2) as boards:
            plan = await boards.form((0, 3, 6))
            places = {**boards.addresses, **{f"x{i}": ("127.0.0.1", 9) for i in range(MAX_BOARDS - 2)}}
            many = sign(plan, places, boards.tls / "manager")
            boards.agents[0].holding.committed = {**many, "addresses": {**many["addresses"], "b1": ["127.0.0.1", 9]}}
            async with Fleet(boards.manifest, {"b0": boards.addresses["b0"]}, boards.client_tls) as fleet:
                await fleet.survey()
                assert set(fleet.liars) == {"b0"} and len(asked) == 1, "an address that was changed leads nowhere"
                boards.agents[0].holding.committed = many
                asked.clear()
                await fleet.survey()
                assert len(asked) == MAX_BOARDS and set(fleet.reports) == {"b0", "b1"}

    run(go())


def test_whatever_a_board_says_nothing_but_a_board_error_comes_of_it(boards_of, monkeypatch):
    """The keeper's surveys and plans, over statuses that no agent would send."""
    odd = [
        {}, {"epoch": -1}, {"plan": []}, {"committed": {"plan": 5}}, {"capacity": {}}, {"links": {"b0": {"code": 1}}},
        {"links": {"b0": {"code": "refused", "reason": "x" * 10**5, "age_s": -1}}}, {"shards": {"layers": [[5, 1]]}},
        {"load_error": {"start": 9, "end": 2, "reason": "\x1b[2J", "age_s": float("1e300")}}, {"claimed": "yes"},
        {"health": {"uptime_s": 1e300}}, {"draining_sequences": 10**30}, {"section": {"free_slots": -5, "slots": "x"}},
    ]  # fmt: skip

    async def go():
        async with boards_of(3) as boards:
            plan = await boards.form((0, 3, 6))
            dispatcher = boards.agents[2].dispatcher
            status = dispatcher._status
            async with Manager(boards, plan) as manager:
                for changes in odd:

                    class Said:
                        changed = changes

                        def to_dict(self):
                            return {**status().to_dict(), **self.changed}

                    dispatcher._status = Said
                    manager.keeper._growth._weighed = None
                    try:
                        await manager.keeper.after(manager.session.plan, EdgellmError("lost"))
                    except EdgellmError:
                        pass
                    manager.keeper.look()
                    await asyncio.wait([manager.keeper._looking])
                    assert manager.keeper._looking.exception() is None
                    assert await manager.ask() == generate(PROMPT, 10)

    run(go(), 60)


@pytest.mark.parametrize("kind", ["says it is claimed", "refuses claims"])
def test_a_board_that_lets_nobody_change_the_plan_is_left_out(boards_of, monkeypatch, kind):
    monkeypatch.setattr("edgellm.manager.failures._ODD_S", 0.05)

    async def go():
        async with boards_of(3) as boards:
            plan = await boards.form((0, 2, 4, 6))
            holding = boards.agents[1].holding
            if kind == "refuses claims":

                def refuse(peer, content):
                    raise ClaimError("board b1 holds epoch 7")

                holding.claim = refuse
            else:
                claim(holding)
            await boards.stop(2)
            async with Manager(boards, plan) as manager:
                return await manager.ask(), manager

    answer, manager = run(go())
    assert answer == generate(PROMPT, 10) and manager.session.plan.boards == ("b0",)
    (named,) = [t for t in manager.told if t.endswith("; it is left out")]
    assert named.startswith("board b1 ")
