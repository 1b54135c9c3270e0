"""Plans that change while boards join, leave and come back: no more is loaded than must be, and answers stay right."""

from dataclasses import replace

import pytest

from edgellm.errors import EdgellmError, PlanError
from edgellm.manager.rebalance import propose, settle, take
from edgellm.manager.session import Session
from edgellm.manager.survey import Fleet
from edgellm.sampling import Sampling
from tests.fakes import generate, make_plan, run
from tests.manager.managers import PROMPT, SETTINGS, answer, changed, fleet_of, held, sections

pytestmark = pytest.mark.usefixtures("quick")


def test_boards_without_a_plan_get_one_and_a_second_time_nothing_happens(boards_of):
    async def go():
        async with boards_of(2) as boards:
            first, loads = await changed(boards), list(boards.loads)
            second = await changed(boards)
            assert boards.loads == loads and await answer(boards, first.plan) == generate(PROMPT, 20)
            return first, second, boards.manifest

    first, second, manifest = run(go())
    assert sections(first.plan) == [("b0", 0, 3), ("b1", 3, 6)] and first.plan.epoch == 1
    assert (first.changed, second.changed, second.plan) == (True, False, first.plan)
    assert first.loaded_bytes == {"b0": 8 + 8 + 9 + 10, "b1": 11 + 12 + 13 + 8}
    assert sum(first.loaded_bytes.values()) == first.move.moved_bytes == sum(s.bytes for s in manifest.shards)


def test_a_board_that_joins_gets_a_section_and_no_more_is_loaded_than_the_move_says(boards_of):
    async def go():
        async with boards_of(3) as boards:
            before = await changed(boards)
            await boards.start(3)
            kept = await changed(boards, grow=False)
            grown = await changed(boards)
            assert await answer(boards, before.plan) == generate(PROMPT, 20)
            return before, kept, grown

    before, kept, grown = run(go())
    assert sections(before.plan) == [("b0", 0, 2), ("b1", 2, 4), ("b2", 4, 6)]
    assert (kept.changed, kept.plan) == (False, before.plan)
    assert grown.plan.epoch == 2 and set(grown.plan.boards) == {"b0", "b1", "b2", "b3"}
    assert 0 < sum(grown.loaded_bytes.values()) == grown.move.moved_bytes
    assert {b for b, n in grown.loaded_bytes.items() if n} == set(grown.move.moved)


def test_boards_that_leave_one_by_one_load_what_the_moves_say_until_the_rest_is_too_small(boards_of):
    async def go():
        async with boards_of(5) as boards:
            plan = (await changed(boards)).plan
            for gone in (2, 0, 4):
                await boards.stop(gone)
                outcome = await changed(boards, grow=False)
                assert outcome.plan.epoch == plan.epoch + 1 and f"b{gone}" not in outcome.plan.boards
                assert sum(outcome.loaded_bytes.values()) == outcome.move.moved_bytes
                assert f"board b{gone} is gone" in outcome.move.reason
                plan = outcome.plan
                assert await answer(boards, plan) == generate(PROMPT, 20)
            await boards.stop(1)
            with pytest.raises(PlanError, match=r"b3 .*1\.07 GB"):
                await changed(boards)
            return plan, await held(boards)

    plan, (standing, claimed) = run(go())
    assert sections(plan) == [("b1", 0, 3), ("b3", 3, 6)] and (standing, claimed) == (None, [])


def test_a_board_that_comes_back_empty_handed_gets_its_section_again_and_only_that_is_loaded(boards_of):
    async def go():
        async with boards_of(3) as boards:
            before = (await changed(boards)).plan
            await boards.stop(1)
            await boards.start(1)
            after = await changed(boards)
            assert await answer(boards, before) == generate(PROMPT, 20)
            return before, after, boards.loads

    before, after, loads = run(go())
    assert after.plan == replace(before, epoch=2) and after.changed
    assert after.move.plan == after.plan and after.move.changed and "come back without its own" in after.move.reason
    assert after.loaded_bytes == {"b0": 0, "b1": 10 + 11, "b2": 0} and after.move.moved_bytes == 21
    assert loads.count(("b1", 2, 4)) == 2 and len(loads) == 4


def test_epochs_rise_above_what_the_cluster_file_knows_though_the_boards_have_forgotten(boards_of):
    async def go():
        async with boards_of(3) as boards:
            old = await boards.form((0, 3, 5, 6), epoch=3)
            newest = replace(old, epoch=8)
            for i in (0, 1):
                await boards.stop(i)
                await boards.start(i)
            adopted = []
            async with Session(
                boards.manifest, newest, boards.addresses, adopted=lambda plan, *_: adopted.append(plan)
            ) as session:
                stream = session.generate(PROMPT, sampling=Sampling(), max_tokens=20, eos=())
                assert [c.token async for c in stream] == generate(PROMPT, 20)
            return adopted, old

    adopted, old = run(go())
    assert adopted == [replace(old, epoch=9)]


def test_a_board_gets_only_layers_whose_shards_it_has(boards_of):
    async def go():
        stored = {"b0": (0, 3), "b1": (3, 6), "b2": (2, 4)}
        async with boards_of(3, stored=stored) as boards:
            outcome = await changed(boards)
            await boards.stop(1)
            async with fleet_of(boards) as fleet:
                await fleet.survey()
                somewhere = await propose(fleet, SETTINGS, any_shard=True)
                with pytest.raises(PlanError) as e:
                    await propose(fleet, SETTINGS)
            return outcome, somewhere, str(e.value)

    outcome, somewhere, error = run(go())
    for section in outcome.plan.sections:
        start, end = {"b0": (0, 3), "b1": (3, 6), "b2": (2, 4)}[section.board]
        assert start <= section.start < section.end <= end
    assert sections(somewhere.plan) == [("b0", 0, 3), ("b2", 3, 6)]
    assert "no board has layers 4-6, the head" in error and "Bring back the board" in error


def test_other_settings_or_addresses_make_a_new_plan_even_if_nothing_moves(boards_of):
    async def go():
        async with boards_of(2) as boards:
            first = (await changed(boards)).plan
            longer = await changed(boards, replace(SETTINGS, context=80), grow=False)
            assert longer.changed and longer.plan.context == 80
            await boards.stop(1)
            boards.agents[1].port = 0  # its address has changed
            await boards.start(1)
            moved = await changed(boards, replace(SETTINGS, context=80))
            assert await answer(boards, first) == generate(PROMPT, 20)
            await changed(boards, replace(SETTINGS, context=80))
            elsewhere = dict(boards.addresses)
            async with Fleet(boards.manifest, {**elsewhere, "b1": ("localhost", elsewhere["b1"][1])}) as fleet:
                await fleet.survey()
                other = await settle(fleet, replace(SETTINGS, context=80), grow=False)
            return moved, other, boards.agents[0].stage.addresses

    moved, other, addresses = run(go())
    assert moved.changed and other.changed and other.loaded_bytes == {"b0": 0, "b1": 0}
    assert addresses["b1"][0] == "localhost"


def test_a_plan_that_leaves_a_board_out_frees_what_it_held(boards_of):
    async def go():
        async with boards_of(3) as boards:
            await boards.form((0, 2, 4, 6))
            async with fleet_of(boards) as fleet:
                await fleet.survey()
                await take(fleet, make_plan(boards.manifest, (0, 3, 6), epoch=2))
                await fleet.survey()
                return {b: (r.epoch, r.held) for b, r in fleet.reports.items()}

    assert run(go()) == {"b0": (2, (0, 3)), "b1": (2, (3, 6)), "b2": (2, None)}


def test_a_board_of_no_plan_is_not_asked_to_take_any(boards_of):
    async def go():
        async with boards_of(3) as boards:
            async with fleet_of(boards) as fleet:
                await fleet.survey()
                await take(fleet, make_plan(boards.manifest, (0, 3, 6)))
            return boards.agents[2].holding.epoch

    assert run(go()) is None


def test_boards_that_were_never_asked_for_a_plan_say_what_to_do(boards_of):
    async def go():
        async with boards_of(2) as boards, fleet_of(boards) as fleet:
            await fleet.survey()
            with pytest.raises(PlanError, match="no board holds a plan. Deploy again."):
                await settle(fleet, grow=True)
            for i in (0, 1):
                await boards.stop(i)
            await fleet.survey()
            for attempt in (settle(fleet, SETTINGS, grow=True), propose(fleet, SETTINGS)):
                with pytest.raises(EdgellmError, match="no board answers: board b0 .*; board b1 "):
                    await attempt

    run(go())
