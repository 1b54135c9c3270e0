"""The keeper of the plan: questions take what stands, and what changes it, changes it once, and only if that helps."""

import asyncio
import re
import threading
from dataclasses import replace

import pytest

from edgellm.errors import BoardError, DialError, LinkError, PlanError
from edgellm.manager.keeper import Keeper
from edgellm.manager.session import Session
from edgellm.manager.survey import Fleet
from edgellm.plan.around import links
from edgellm.wire.credentials import Identity
from tests.fakes import GREEDY, Boards, block, generate, make_plan, run, until

pytestmark = pytest.mark.usefixtures("quick")

PROMPT = [5, 17, 3, 42, 8, 1, 90]


class Manager:
    """A session, and all that it told and adopted."""

    def __init__(self, boards: Boards, plan, addresses=None, **kwargs):
        self.told: list[str] = []
        self.adopted: list = []
        self.session = Session(
            boards.manifest, plan, addresses or boards.addresses, tls=boards.client_tls, tell=self.told.append,
            adopted=lambda *what: self.adopted.append(what), **{"patience_s": 10, **kwargs},
        )  # fmt: skip
        self.keeper = self.session.keeper

    async def __aenter__(self) -> "Manager":
        await self.session.__aenter__()
        return self

    async def __aexit__(self, *exc) -> None:
        await self.session.__aexit__()

    async def ask(self, prompt=PROMPT, count: int = 10) -> list[int]:
        stream = self.session.generate(list(prompt), sampling=GREEDY, max_tokens=count, eos=())
        return [chosen.token async for chosen in stream]

    async def looked(self) -> None:
        """What `edgellm ask` does at its end: look whether there is a better plan, and take it."""
        self.keeper.look()
        await self.keeper.finish(20, self.told.append)


# Questions


def test_a_question_takes_the_known_plan_without_a_survey(tmp_path, surveys):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 2, 4, 6))
            async with Manager(boards, plan) as manager:
                return await manager.ask(), len(surveys), manager.told, manager.adopted

    assert run(go()) == (generate(PROMPT, 10), 0, [], [])


def test_hundreds_of_questions_share_a_connection_a_board_and_none_fails(tmp_path, surveys):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 2, 4, 6), slots=64)
            async with Manager(boards, plan) as manager:

                async def asker(i: int) -> int:
                    right = 0
                    for k in range(8):
                        ids = [i % 90 + 1, k, 3]
                        right += await manager.ask(ids, 4) == generate(ids, 4)
                    return right

                right = await asyncio.gather(*(asker(i) for i in range(32)))
                peers = [len(a.connections.peers) for a in boards.agents]
                return sum(right), {a.holding.epoch for a in boards.agents}, len(surveys), peers

    # Of each board's peers, one is the manager, and the others are its neighbours.
    assert run(go(), 60) == (256, {1}, 0, [2, 2, 2])


def test_a_question_doesn_t_wait_for_boards_that_load_a_better_plan(boards_of):
    async def go():
        async with boards_of(3) as boards:
            plan = await boards.form((0, 3, 6))
            loading, go_on = threading.Event(), threading.Event()
            load = boards.agents[2].holding._load

            def slowly(*args):
                loading.set()
                assert go_on.wait(20)
                return load(*args)

            boards.agents[2].holding._load = slowly
            async with Manager(boards, plan) as first, Manager(boards, plan) as second:
                first.keeper.look()
                await until(loading.is_set)
                answers = await first.ask(), await second.ask()
                assert {a.holding.epoch for a in boards.agents[:2]} == {1}, "the better plan was there before"
                go_on.set()
                await first.keeper.finish(20, first.told.append)
                return answers, first.session.plan, [*first.adopted], await second.ask(), second.session.plan

    answers, plan, adopted, later, followed = run(go())
    assert answers == (generate(PROMPT, 10),) * 2 and later == generate(PROMPT, 10)
    assert plan == followed == adopted[0][0] and len(plan.boards) == 3 and plan.epoch == 2


# Trouble


def test_answers_that_fail_together_share_one_survey_and_one_change(tmp_path, surveys):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 2, 4, 6), context=256, slots=16)
            async with Manager(boards, plan) as manager:
                answers = [asyncio.create_task(manager.ask([i + 1, 2, 3], 150)) for i in range(16)]
                await until(lambda: all(a.stage.engine.steps > 40 for a in boards.agents))
                await boards.stop(1)
                right = [await a == generate([i + 1, 2, 3], 150) for i, a in enumerate(answers)]
                return right, manager, len(surveys), len(boards.loads)

    right, manager, count, loads = run(go())
    assert right == [True] * 16 and manager.session.plan.epoch == 2 and loads == 3 + 1
    assert count <= 3 and len(manager.told) == 2, (count, manager.told)


def test_a_spare_with_a_corrupt_shard_costs_one_try_and_the_others_answer(tmp_path):
    async def go():
        async with Boards(tmp_path, 4) as boards:
            plan = await boards.form((0, 3, 6))
            boards.broken.add("b2")
            await boards.stop(1)
            async with Manager(boards, plan) as manager:
                return await manager.ask(), manager, boards.loads

    answer, manager, loads = run(go())
    assert answer == generate(PROMPT, 10) and manager.session.plan.boards == ("b0", "b3")
    assert sum(board == "b2" for board, *_ in loads) == 1
    (named,) = [text for text in manager.told if "SHA-256" in text]
    assert re.match(r"board b2 \(127.0.0.1:\d+\): .*SHA-256 differs. Deploy again; the others go on without it", named)


def test_a_board_that_can_t_load_is_named_if_the_others_are_too_small(boards_of):
    async def go():
        async with boards_of(3) as boards:
            plan = await boards.form((0, 3, 6))
            boards.broken.add("b2")
            await boards.stop(1)
            async with Manager(boards, plan, patience_s=0) as manager:
                with pytest.raises(PlanError) as e:
                    await manager.ask()
                boards.broken.clear()
                manager.keeper._failures.load_worked("b2")  # as after its time
                return str(e.value), await manager.ask()

    error, answer = run(go())
    assert "SHA-256 differs" in error and "board b1 (127.0.0.1:" in error and answer == generate(PROMPT, 10)


def test_two_boards_that_can_t_reach_each_other_are_planned_around(tmp_path, monkeypatch):
    from edgellm.agent import link

    monkeypatch.setattr("edgellm.manager.failures._ONE_CUT_S", 0.0)

    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 6))
            connect = link.connect

            async def cut(host, port, me, *args, **kwargs):
                if me.name == "b0" and port == boards.agents[1].port:
                    raise DialError("board b1: no route to host", "b1", "unreachable", "no route to host")
                return await connect(host, port, me, *args, **kwargs)

            monkeypatch.setattr(link, "connect", cut)
            async with Manager(boards, plan) as manager:
                return await manager.ask(), manager

    answer, manager = run(go())
    assert answer == generate(PROMPT, 10) and ("b0", "b1") not in links(manager.session.plan)
    assert any("board b0 can't reach board b1" in t or "no route to host" in t for t in manager.told), manager.told


def test_a_cable_that_is_plugged_in_again_changes_nothing(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 2, 4, 6))
            async with Manager(boards, plan) as manager:
                for _ in range(5):  # an answer came over this way in between, each time
                    error = LinkError("board b0: lost board b1", "b0", "b1")
                    assert await manager.keeper.after(plan, error) == plan
                    assert await manager.ask() == generate(PROMPT, 10)
                return manager.told

    assert run(go()) == []


# What a manager sees


def test_a_board_that_has_moved_is_found_where_its_neighbours_have_it(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            plan = await boards.form((0, 3, 6))
            stale = {**boards.addresses, "b1": ("127.0.0.1", 9)}
            async with Manager(boards, plan, stale) as manager:
                answer = await manager.ask()
                expected = [(plan, boards.addresses, None)]
                return answer, manager.session.plan, len(boards.loads), manager.adopted, expected

    answer, plan, loads, adopted, expected = run(go())
    assert answer == generate(PROMPT, 10) and plan.epoch == 1 and loads == 2, "nobody took another plan"
    assert adopted == expected, "the cluster file gets the address"


def test_a_manager_that_sees_less_than_the_boards_changes_nothing(tmp_path, monkeypatch):
    """It can't reach b1 anywhere; b0 can. As soon as b0 can't either, b1 is lost."""
    closed = block(monkeypatch)
    dial = Fleet._ask

    async def blind(fleet, name, *args):
        if name == "b1" and fleet.missing is not None and blinded:
            raise DialError("board b1: no route to host", "b1", "unreachable", "no route to host")
        return await dial(fleet, name, *args)

    blinded = True
    monkeypatch.setattr(Fleet, "_ask", blind)

    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 6))
            async with Manager(boards, plan) as manager:
                with pytest.raises(BoardError, match="board b1: no route to host, but board b0 reaches it") as e:
                    await manager.keeper.after(plan, BoardError("lost", "b1"))
                assert "The plan stays as it is" in str(e.value) and {a.holding.epoch for a in boards.agents[:2]} == {1}
                closed.add("b0>b1")
                after = await manager.keeper.after(plan, BoardError("lost", "b1"))
                return after.boards

    assert run(go()) == ("b0", "b2")


def test_a_board_that_was_reached_and_is_gone_is_not_asked_about(tmp_path, monkeypatch):
    block(monkeypatch)  # no way is closed: b0 would reach it

    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 6))
            async with Manager(boards, plan) as manager:
                assert await manager.ask() == generate(PROMPT, 10)
                asked = []
                monkeypatch.setattr(Fleet, "reached_by", lambda *args: asked.append(args))
                await boards.stop(1)
                assert await manager.ask() == generate(PROMPT, 10)
                return asked, manager.session.plan.boards

    assert run(go()) == ([], ("b0", "b2"))


def test_one_that_may_only_ask_says_so_and_follows_the_next_plan(tmp_path):
    async def go():
        async with Boards(tmp_path, 3) as boards:
            plan = await boards.form((0, 3, 6))
            keeper = Keeper(boards.manifest, plan, boards.addresses)
            keeper._may_plan, keeper._who = False, Identity("manager", "anna")
            try:
                assert await keeper.after(plan, BoardError("lost", "b1")) == plan
                await boards.stop(1)
                with pytest.raises(BoardError, match="board b1 .*manager anna may ask, but not plan"):
                    await keeper.after(plan, BoardError("lost", "b1"))
                async with Manager(boards, plan) as admin:
                    await admin.ask()
                return await keeper.after(plan, BoardError("lost", "b1")), admin.session.plan
            finally:
                keeper.close()

    followed, made = run(go())
    assert followed == made and made.epoch == 2


# Growing


def test_a_board_that_joins_is_in_the_plan_after_the_next_question_and_answers_go_on(tmp_path):
    async def go():
        async with Boards(tmp_path, 3, head_s=0.001) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            async with Manager(boards, plan) as manager:
                answer = await manager.ask(count=100)
                await manager.looked()
                return answer, await manager.ask(count=100), manager

    first, second, manager = run(go())
    plan = manager.session.plan
    assert first == second == generate(PROMPT, 100) and set(plan.boards) == {"b0", "b1", "b2"} and plan.epoch == 2
    assert [p for p, *_ in manager.adopted] == [plan]
    assert manager.told == ["epoch 2: " + ", ".join(f"{s.board} {s}" for s in plan.sections)]


def test_a_better_plan_that_can_t_be_loaded_is_told_once_and_tried_again_later(tmp_path, monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("edgellm.manager.keeper._clock_s", lambda: now_s)

    async def go():
        nonlocal now_s
        async with Boards(tmp_path, 3, head_s=0.001) as boards:
            plan = await boards.form((0, 3, 6))
            boards.broken.add("b2")
            async with Manager(boards, plan) as manager:
                tries = []
                for now_s in (1e3, 1e3 + 1, 1e3 + 6, 1e3 + 7, 1e3 + 17):  # noqa: B007
                    manager.keeper._growth._weighed = None
                    await manager.looked()
                    tries.append(sum(board == "b2" for board, *_ in boards.loads))
                assert await manager.ask() == generate(PROMPT, 10) and manager.session.plan == plan
                return tries, manager.told

    tries, told = run(go())
    assert tries == [1, 1, 2, 2, 3]
    assert len([t for t in told if re.match("a better plan could not be adopted: board b2 .*SHA-256 differs", t)]) == 1


def test_a_board_that_has_just_come_or_comes_and_goes_gets_no_section_that_it_needn_t_have(tmp_path, monkeypatch):
    now_s, up_s = 1e6, 3.0
    monkeypatch.setattr("edgellm.manager.keeper._clock_s", lambda: now_s)

    async def go():
        nonlocal now_s, up_s
        async with Boards(tmp_path, 3, head_s=0.001) as boards:
            plan = await boards.form((0, 3, 6))
            async with Manager(boards, plan) as manager:
                keeper, taken = manager.keeper, []
                survey = keeper._fleet.survey

                async def with_uptime(*args):
                    await survey(*args)
                    keeper._fleet.reports = {b: replace(r, up_s=up_s) for b, r in keeper._fleet.reports.items()}

                monkeypatch.setattr(keeper._fleet, "survey", with_uptime)
                for passed_s, losses in ((0, 0), (5, 0), (2, 2), (38, 0), (2, 0)):
                    now_s, up_s = now_s + passed_s, up_s + passed_s
                    for _ in range(losses):
                        keeper._failures.lost("b2", now_s)
                    keeper._growth._weighed = None
                    if passed_s == 2 and losses == 0:
                        keeper._failures.steady_in_s("b2", up_s, now_s)
                    await manager.looked()
                    taken.append(len(manager.session.plan.boards))
                return taken

    # Up for 3 s, 8 s, 10 s but lost twice, then for 38 s and 40 s since.
    assert run(go()) == [2, 2, 2, 2, 3]


def test_where_there_is_no_room_beside_the_old_section_a_better_plan_waits_until_boards_are_idle(tmp_path, monkeypatch):
    gate = threading.Event()
    gate.set()

    async def go():
        async with Boards(tmp_path, 3, head_s=0.001, gates={"b1": gate}) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            for agent in boards.agents:
                monkeypatch.setattr(agent.holding.room, "is_to_drain", lambda plan, held: False)
            async with Manager(boards, plan) as manager:
                answer = asyncio.create_task(manager.ask(count=100))
                await until(lambda: boards.agents[1].stage.engine.steps > 3)
                gate.clear()
                manager.keeper.look()
                await until(lambda: manager.keeper._looking.done())
                assert {a.holding.epoch for a in boards.agents[:2]} == {1} and not any(
                    a.holding.claimed for a in boards.agents
                )
                gate.set()
                tokens = await answer
                await manager.keeper.finish(20, manager.told.append)
                return tokens, manager.session.plan.epoch, [a.holding.epoch for a in boards.agents]

    assert run(go()) == (generate(PROMPT, 100), 2, [2, 2, 2])


def test_trouble_gives_up_a_move_that_is_only_better(boards_of):
    async def go():
        async with boards_of(4) as boards:
            plan = await boards.form((0, 3, 6))
            await boards.stop(3)
            loading, go_on = threading.Event(), threading.Event()
            load = boards.agents[2].holding._load

            def slowly_at_first(*args):
                if not loading.is_set():
                    loading.set()
                    assert go_on.wait(20)
                return load(*args)

            boards.agents[2].holding._load = slowly_at_first
            async with Manager(boards, plan) as manager:
                manager.keeper.look()
                await until(loading.is_set)
                await boards.stop(1)
                asking = asyncio.create_task(manager.ask())
                await until(lambda: manager.keeper._moving.done())
                go_on.set()
                return await asking, manager.session.plan

    answer, plan = run(go())
    assert answer == generate(PROMPT, 10) and set(plan.boards) == {"b0", "b2"}


def test_a_client_that_stays_mends_and_grows_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("edgellm.manager.growth._WEIGH_EVERY_S", 0.0)
    monkeypatch.setattr("edgellm.manager.failures.STEADY_S", 0.0)

    async def go():
        async with Boards(tmp_path, 3, head_s=0.001) as boards:
            plan = await boards.form((0, 3, 6))
            async with Manager(boards, plan, every_s=0.01) as manager:
                await until(lambda: len(manager.session.plan.boards) == 3)
                await boards.stop(1)
                await until(lambda: "b1" not in manager.session.plan.boards)
                await boards.start(1)
                await until(lambda: len(manager.session.plan.boards) == 3)
                return await manager.ask()

    assert run(go()) == generate(PROMPT, 10)


def test_a_plan_from_before_the_known_one_never_stands_again(tmp_path):
    async def go():
        async with Boards(tmp_path, 2) as boards:
            await boards.form((0, 3, 6), epoch=3)
            newer = make_plan(boards.manifest, (0, 6), epoch=8)  # what the cluster file knows
            async with Manager(boards, newer) as manager:
                return await manager.ask(), manager.session.plan

    answer, plan = run(go())
    assert answer == generate(PROMPT, 10) and plan.epoch == 9


def test_an_answer_that_runs_while_boards_take_a_better_plan_is_not_interrupted(tmp_path):
    gate = threading.Event()
    gate.set()

    async def go():
        async with Boards(tmp_path, 3, head_s=0.001, gates={"b1": gate}) as boards:
            plan = await boards.form((0, 3, 6), context=256)
            async with Manager(boards, plan) as manager:
                served, tokens = [], []
                stream = manager.session.generate(
                    PROMPT, sampling=GREEDY, max_tokens=100, eos=(), served=served.append
                )  # fmt: skip
                async for chosen in stream:
                    tokens.append(chosen.token)
                    if len(tokens) == 3:
                        gate.clear()
                        manager.keeper.look()
                        await until(lambda: manager.session.plan != plan)
                        assert {a.holding.epoch for a in boards.agents} == {2}
                        gate.set()
                later = await manager.ask()
                await until(lambda: all(not (a.holding.draining and a.holding.draining.running) for a in boards.agents))
                return tokens, later, served, plan, manager.told

    tokens, later, served, plan, told = run(go())
    assert tokens == generate(PROMPT, 100) and later == generate(PROMPT, 10)
    assert served == [plan], "it went on where it was"
    assert len(told) == 1 and told[0].startswith("epoch 2: ")
