"""Boards that have the shards of two models: they answer with whichever is asked, and with both at once where both fit
on boards of their own."""

import asyncio
import threading
from dataclasses import replace

import pytest

from edgellm.manager.local import could_hold
from edgellm.manager.rebalance import settle
from edgellm.manager.session import Session
from edgellm.manager.survey import Fleet, other_models
from edgellm.plan import Settings
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from tests.fakes import Boards, generate, make_manifest, run, until

pytestmark = pytest.mark.usefixtures("quick")

SETTINGS = Settings(64, 2, 5, "float32", "throughput")
LAYER_BYTES = 150_000_000  # six of them need both boards
PROMPT = [1, 2, 3]


@pytest.fixture
def two(tmp_path):
    """Two boards with models "fake", of six layers, and "other", of four."""

    def two(layer_bytes: int = LAYER_BYTES, **kwargs):
        first = make_manifest(ram_bytes=layer_bytes)
        other = replace(make_manifest(4, ram_bytes=layer_bytes), model="other")
        boards = Boards(tmp_path, 2, first, more={tmp_path / "other": other}, **kwargs)
        return boards, Manifest.read(tmp_path / "other")

    return two


async def formed(boards: Boards):
    """Have the boards take a plan of their default model."""
    async with Fleet(boards.manifest, boards.addresses) as fleet:
        await fleet.survey()
        return (await settle(fleet, SETTINGS, grow=True)).plan


async def answer(session: Session, count: int = 10) -> list[int]:
    stream = session.generate(PROMPT, sampling=Sampling(), max_tokens=count, eos=())
    return [chosen.token async for chosen in stream]


def expected(count: int = 10, layers: int = 6) -> list[int]:
    ids = list(PROMPT)
    for _ in range(count):
        total = sum((i + 1) * (k + 1) for k, i in enumerate(ids)) + len(ids) * sum(range(layers))
        ids.append(total % 97)
    return ids[len(PROMPT) :]


async def standing(boards: Boards) -> list[str]:
    return [agent.stage.plan.model if agent.stage else "" for agent in boards.agents]


def test_boards_answer_with_the_model_that_is_asked_in_turns(two):
    async def go():
        boards, other = two(layer_bytes=300_000_000)  # four need both boards
        async with boards:
            plan = await formed(boards)
            second = await could_hold(other, boards.addresses, SETTINGS)
            assert second.epoch == 0 and second.model == "other" and len(second.boards) == len(plan.boards) == 2
            told, adopted = [], []
            async with (
                Session(boards.manifest, plan, boards.addresses, tell=told.append) as first,
                Session(
                    other, second, boards.addresses, tell=told.append, adopted=lambda plan, *_: adopted.append(plan)
                ) as after,
            ):
                answers = [await answer(first), await answer(after), await answer(after), await answer(first)]
                models = await standing(boards)
                return answers, models, told, adopted, boards.loads

    answers, models, told, adopted, loads = run(go())
    assert answers == [expected(), expected(layers=4), expected(layers=4), expected()]
    assert expected() == generate(PROMPT, 10)
    assert models == ["fake", "fake"] and not told
    assert [(plan.model, plan.epoch) for plan in adopted] == [("other", 2)]  # the second question found it standing
    assert len(loads) == 6


def test_answers_that_run_end_before_boards_without_room_change_over_and_others_are_told(two, monkeypatch):
    """Nothing computes until the gate opens, so the question to the other model comes in mid-answer."""
    gate = threading.Event()
    monkeypatch.setattr("edgellm.agent.room.Room.is_to_drain", lambda *_: False)

    async def go():
        boards, other = two(300_000_000, gates={"b0": gate})
        async with boards:
            plan = await formed(boards)
            second = await could_hold(other, boards.addresses, SETTINGS)
            told = []
            async with (
                Session(boards.manifest, plan, boards.addresses) as first,
                Session(other, second, boards.addresses, tell=told.append) as after,
            ):
                running = asyncio.create_task(answer(first))
                await until(lambda: boards.agents[0].stage.running)
                waiting = asyncio.create_task(answer(after))
                await until(lambda: told)
                waits, models = after.keeper.waits, await standing(boards)
                gate.set()
                return await running, await waiting, told, waits, models, after.keeper.waits

    first, second, told, waits, models, waits_after = run(go())
    assert first == expected() and second == expected(layers=4)
    assert waits and not waits_after and models == ["fake", "fake"]
    assert told == [
        "the boards still answer with fake; they change over once that is done; trying to continue for up to 900 s …"
    ]


def test_with_room_an_answer_goes_on_while_another_model_begins(two):
    gate = threading.Event()

    async def go():
        boards, other = two(300_000_000, gates={"b0": gate})
        async with boards:
            plan = await formed(boards)
            second = await could_hold(other, boards.addresses, SETTINGS)
            async with (
                Session(boards.manifest, plan, boards.addresses) as first,
                Session(other, second, boards.addresses) as after,
            ):
                running = asyncio.create_task(answer(first))
                await until(lambda: boards.agents[0].stage.running)
                boards.gates.clear()  # sections that are loaded from now on don't wait
                ahead = await answer(after)
                draining = [agent.holding.draining is not None for agent in boards.agents]
                gate.set()
                return ahead, draining, await running

    ahead, draining, running = run(go())
    assert ahead == expected(layers=4) and running == expected() and all(draining)


def test_two_models_stand_at_once_on_boards_of_their_own(two):
    async def go():
        boards, other = two(100_000_000)  # either fits on one board
        async with boards:
            async with Fleet(boards.manifest, boards.addresses) as fleet:
                await fleet.survey()
                plan = (await settle(fleet, replace(SETTINGS, objective="latency"), grow=True)).plan
            second = await could_hold(other, boards.addresses, replace(SETTINGS, objective="latency"))
            async with (
                Session(boards.manifest, plan, boards.addresses) as first,
                Session(other, second, boards.addresses) as after,
            ):
                answers = [await answer(s) for s in (first, after, first, after)]
                return answers, await standing(boards), boards.loads

    answers, models, loads = run(go())
    assert answers == [expected(), expected(layers=4)] * 2
    assert sorted(models) == ["fake", "other"] and len(loads) == 2


def test_a_client_that_stays_takes_the_boards_back_only_when_somebody_asks(two, surveys):
    async def go():
        boards, other = two(300_000_000)
        async with boards:
            plan = await formed(boards)
            second = await could_hold(other, boards.addresses, SETTINGS)
            async with (
                Session(boards.manifest, plan, boards.addresses, every_s=0.02) as first,
                Session(other, second, boards.addresses) as after,
            ):
                await answer(after)
                seen = len(surveys)
                await until(lambda: len(surveys) > seen + 3)
                models = await standing(boards)
                return models, await answer(first), await standing(boards)

    models, first, then = run(go())
    assert models == ["other", "other"] and first == expected() and then == ["fake", "fake"]


def test_a_survey_tells_whose_plan_stands(two):
    async def go():
        boards, other = two(300_000_000)
        async with boards:
            plan = await formed(boards)
            async with Fleet(other, boards.addresses) as fleet:
                await fleet.survey()
                reports, missing = fleet.reports, fleet.missing
            async with Fleet(replace(other, sha256="0" * 64), boards.addresses) as fleet:
                await fleet.survey()
                return plan, reports, missing, fleet.missing

    plan, reports, missing, without = run(go())
    assert not missing and [r.plan for r in reports.values()] == [None, None]
    assert other_models(reports) == {plan.digest: plan} and [r.epoch for r in reports.values()] == [1, 1]
    assert all("head.safetensors" in r.shards and "layer-0004.safetensors" not in r.shards for r in reports.values())
    assert without["b0"] == "board b0 has the shards of another model (fake). Deploy again."


def test_answers_of_another_model_hold_this_one_up_only_for_so_long(two, monkeypatch):
    monkeypatch.setattr("edgellm.agent.room.Room.is_to_drain", lambda *_: False)
    monkeypatch.setattr("edgellm.manager.beside.YIELD_S", 0.3)
    gate = threading.Event()

    async def go():
        boards, other = two(300_000_000, gates={"b0": gate})
        async with boards:
            plan = await formed(boards)
            second = await could_hold(other, boards.addresses, SETTINGS)
            async with (
                Session(boards.manifest, plan, boards.addresses) as first,
                Session(other, second, boards.addresses) as after,
            ):
                running = asyncio.create_task(answer(first))
                await until(lambda: boards.agents[0].stage.running)
                boards.gates.clear()
                opens = asyncio.get_running_loop().call_later(1.0, gate.set)  # the running step has to end
                try:
                    return await answer(after), await running
                finally:
                    opens.cancel()
                    gate.set()

    assert run(go()) == (expected(layers=4), expected())
