"""Two models that stand at once on the same boards, each in the RAM that the other leaves."""

import asyncio
import threading
from dataclasses import replace

import pytest

from edgellm.errors import ClaimError, PlanError
from edgellm.manager.local import could_hold
from edgellm.manager.rebalance import settle
from edgellm.manager.session import Session
from edgellm.manager.survey import Fleet
from edgellm.manager.take import take
from edgellm.plan import Settings, section_need
from edgellm.sampling import Sampling
from edgellm.shards.manifest import Manifest
from tests.fakes import Boards, connect_all, make_manifest, run, until

pytestmark = pytest.mark.usefixtures("quick")

SETTINGS = Settings(64, 2, 5, "float32", "throughput")  # for which both models take both boards
LAYER_BYTES = 60_000_000
PROMPTS = ([1, 2, 3], [40, 2], [7, 7, 7, 9])


@pytest.fixture
def two(tmp_path):
    """Boards with models "fake", of six layers, and "other", of four."""

    def two(layer_bytes: int = LAYER_BYTES, count: int = 2, **kwargs):
        first = make_manifest(ram_bytes=layer_bytes)
        other = replace(make_manifest(4, ram_bytes=layer_bytes), model="other")
        boards = Boards(tmp_path, count, first, more={tmp_path / "other": other}, **kwargs)
        return boards, Manifest.read(tmp_path / "other")

    return two


class Both:
    """A session for each of two models on these boards, of which the first has been loaded."""

    def __init__(self, boards: Boards, other: Manifest):
        self.boards, self.other = boards, other

    async def __aenter__(self) -> "Both":
        async with Fleet(self.boards.manifest, self.boards.addresses) as fleet:
            await fleet.survey()
            plan = (await settle(fleet, SETTINGS, grow=True)).plan
        second = await could_hold(self.other, self.boards.addresses, SETTINGS)
        self.first = Session(self.boards.manifest, plan, self.boards.addresses)
        self.second = Session(self.other, second, self.boards.addresses)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.first.close()
        self.second.close()

    @property
    def standing(self) -> list[list[str]]:
        """By board, the models that it serves."""
        return [sorted(one.plan.model for one in agent.holding.held.served) for agent in self.boards.running]


async def answer(session: Session, prompt: list[int], count: int = 12) -> list[int]:
    stream = session.generate(prompt, sampling=Sampling(), max_tokens=count, eos=())
    return [chosen.token async for chosen in stream]


def expected(prompt: list[int], layers: int, count: int = 12) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        total = sum((i + 1) * (k + 1) for k, i in enumerate(ids)) + len(ids) * sum(range(layers))
        ids.append(total % 97)
    return ids[len(prompt) :]


def test_two_models_answer_at_once_on_the_same_boards_as_each_does_alone(two):
    async def go():
        boards, other = two()
        async with boards, Both(boards, other) as both:
            answers = await asyncio.gather(
                *(answer(session, prompt) for prompt in PROMPTS for session in (both.first, both.second))
            )
            again = [await answer(s, PROMPTS[0]) for s in (both.first, both.second, both.first)]
            return answers, again, both.standing, len(boards.loads), both.first.recoveries

    answers, again, standing, loads, recoveries = run(go())
    assert answers == [expected(prompt, layers) for prompt in PROMPTS for layers in (6, 4)]
    assert again == [expected(PROMPTS[0], layers) for layers in (6, 4, 6)]
    assert standing == [["fake", "other"]] * 2 and loads == 4 and recoveries == 0


def test_boards_tell_what_each_model_takes_and_offer_the_rest_to_another(two):
    async def go():
        boards, other = two()
        async with boards, Both(boards, other) as both:
            await answer(both.second, PROMPTS[0])
            clients = await connect_all(boards.addresses)
            statuses = [await client.status() for client in clients]
            for client in clients:
                client.close()
            async with Fleet(boards.manifest, boards.addresses) as fleet:
                await fleet.survey()
                return boards, other, statuses, fleet.reports, both.first.plan, both.second.plan

    boards, other, statuses, reports, first, second = run(go())
    for status in statuses:
        assert status.plan == second and [entry.plan for entry in status.beside] == [first]
        own = {m.model: p.section_of(status.name) for m, p in ((boards.manifest, first), (other, second))}
        need = {
            m.model: section_need(m, SETTINGS, own[m.model].start, own[m.model].end).total
            for m in (boards.manifest, other)
        }  # fmt: skip
        assert status.section.ram_bytes == need["other"] and status.beside[0].section.ram_bytes == need["fake"]
        report = reports[status.name]
        assert report.plan == first and [o.plan for o in report.others] == [second] and report.shares
        assert report.capacity.ram_bytes - report.beside({second.digest}).ram_bytes == need["other"]
        assert report.beside(set()) == report.capacity


def test_a_model_that_does_not_fit_beside_another_is_refused_in_a_sentence_and_takes_its_place(two):
    async def go():
        boards, other = two(300_000_000)
        async with boards, Both(boards, other) as both:
            with pytest.raises(PlanError) as e:
                await both.second.keeper.stand(beside=True)
            before = both.standing
            return str(e.value), before, await answer(both.second, PROMPTS[0]), both.standing

    text, before, tokens, after = run(go())
    assert text.startswith("other has no room beside fake: other needs 1.20 GB")
    assert before == [["fake"]] * 2 and tokens == expected(PROMPTS[0], 4) and after == [["other"]] * 2


def test_a_model_that_is_unloaded_frees_its_ram_and_the_other_one_goes_on(two):
    async def go():
        boards, other = two()
        async with boards, Both(boards, other) as both:
            for session in (both.first, both.second):
                await answer(session, PROMPTS[0])
            running = asyncio.create_task(answer(both.first, PROMPTS[1], 40))
            unloaded = [await both.second.keeper.unload(), await both.second.keeper.unload()]
            loads = len(boards.loads)
            standing, tokens = both.standing, await running
            async with Fleet(boards.manifest, boards.addresses) as fleet:
                await fleet.survey()
                offers = [r.beside({o.plan.digest for o in r.others}) == r.capacity for r in fleet.reports.values()]
            again = await answer(both.second, PROMPTS[0]), await answer(both.first, PROMPTS[0])
            return unloaded, standing, tokens, offers, loads, again, both.standing

    unloaded, standing, tokens, offers, loads, again, after = run(go())
    assert unloaded == [True, False] and standing == [["fake"]] * 2 and all(offers) and loads == 4
    assert tokens == expected(PROMPTS[1], 6, 40)
    assert again == (expected(PROMPTS[0], 4), expected(PROMPTS[0], 6)) and after == [["fake", "other"]] * 2


def test_a_model_that_answers_is_not_unloaded(two):
    gate = threading.Event()

    async def go():
        boards, other = two()
        async with boards, Both(boards, other) as both:
            await answer(both.second, PROMPTS[0])
            boards.sections["b0"].gate = gate
            running = asyncio.create_task(answer(both.second, PROMPTS[1]))
            await until(lambda: boards.agents[0].stage.running)
            try:
                with pytest.raises(ClaimError) as e:
                    await both.second.keeper.unload()
            finally:
                gate.set()
            claimed = [agent.holding.claimed for agent in boards.agents]
            return str(e.value), claimed, await running, both.standing

    text, claimed, tokens, standing = run(go())
    assert text == "board b0 still has 1 running answer of other. Ask it to give the model up once no answer runs."
    assert tokens == expected(PROMPTS[1], 4) and claimed == [False, False]
    assert standing[0] == ["fake", "other"]


def test_both_models_go_on_after_a_board_is_lost(two):
    async def go():
        boards, other = two(count=3)
        async with boards, Both(boards, other) as both:
            await asyncio.gather(answer(both.first, PROMPTS[0]), answer(both.second, PROMPTS[0]))
            running = [
                asyncio.create_task(answer(session, prompt, 40))
                for session, prompt in ((both.first, PROMPTS[1]), (both.second, PROMPTS[2]))
            ]
            await boards.stop(1)
            answers = [await task for task in running]
            return answers, [await answer(s, PROMPTS[0]) for s in (both.first, both.second)], both.standing

    answers, after, standing = run(go(), 60)
    assert answers == [expected(PROMPTS[1], 6, 40), expected(PROMPTS[2], 4, 40)]
    assert after == [expected(PROMPTS[0], 6), expected(PROMPTS[0], 4)]
    assert sorted({model for models in standing for model in models}) == ["fake", "other"]


def test_another_plan_of_one_model_leaves_the_other_one_alone(two):
    async def go():
        boards, other = two(count=2)
        async with boards, Both(boards, other) as both:
            await answer(both.second, PROMPTS[0])
            second = both.second.plan
            running = asyncio.create_task(answer(both.second, PROMPTS[1], 50))
            async with Fleet(boards.manifest, boards.addresses) as fleet:
                await fleet.survey()
                moved = replace(both.first.plan, epoch=fleet.reports["b0"].epoch + 1, slots=3)
                await take(fleet, moved, keep={second.digest})
            tokens = await running
            recoveries = both.second.recoveries
            return tokens, recoveries, await answer(both.first, PROMPTS[0]), both.standing, both.first.plan.slots

    tokens, recoveries, first, standing, slots = run(go())
    assert tokens == expected(PROMPTS[1], 4, 50) and recoveries == 0
    assert first == expected(PROMPTS[0], 6) and standing == [["fake", "other"]] * 2 and slots == 3
