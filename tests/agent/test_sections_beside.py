"""Sections of two models on one board: kept, counted, given up, and how far one that is being loaded has come."""

import asyncio
import threading
from dataclasses import replace

import pytest

from edgellm.manager.client import ClusterClient
from edgellm.plan import section_need
from edgellm.shards.manifest import Manifest
from edgellm.shards.reading import have_read
from edgellm.wire import messages as m
from tests.agent.changing import Manager
from tests.fakes import Boards, ask, generate, make_manifest, make_plan, run, until

PROMPT = [5, 17, 3]


@pytest.fixture
def on_two(tmp_path):
    """Run `go(boards, what board b0 holds, a manager, the manifest of a second model)`."""

    def on_two(go, layer_bytes=8):
        other = replace(make_manifest(4, ram_bytes=layer_bytes), model="other")

        async def between():
            first = make_manifest(ram_bytes=layer_bytes)
            async with Boards(tmp_path, 1, first, more={tmp_path / "other": other}) as boards:
                async with Manager.of(boards) as manager:
                    return await go(boards, boards.agents[0].holding, manager, Manifest.read(tmp_path / "other"))

        return run(between())

    return on_two


async def add(manager: Manager, plan, keep, replaces=1, drain=False) -> tuple[dict, dict]:
    """Give b0 a plan beside those with the digests in `keep`."""
    assert await manager.claim(replaces, plan.epoch) is None
    content = {**manager.assign(plan).content, "keep": keep, "drain": drain}
    prepared = (await manager.board.ask(m.Assign(content), m.Assigned)).content
    return prepared, (await manager.board.ask(m.Commit({"epoch": plan.epoch, "drain": drain}), m.Committed)).content


async def unload(manager: Manager, epoch: int, digests: object, replaces: int) -> str | None:
    assert await manager.claim(replaces, epoch) is None
    return (await manager.board.ask(m.Commit({"epoch": epoch, "unload": digests}), m.Committed)).content["error"]


def test_a_board_serves_both_plans_by_their_epochs(on_two):
    async def go(boards, holding, manager, other):
        first, second = make_plan(boards.manifest, (0, 6)), make_plan(other, (0, 4), epoch=2)
        await manager.take(first)
        prepared, committed = await add(manager, second, [first.digest])
        assert (prepared["beside"], committed["error"], holding.epoch) == (True, None, 2)
        answers = await asyncio.gather(
            *(ask(ClusterClient(plan, [manager.board]), PROMPT) for plan in (first, second, first))
        )
        status = await manager.board.status()
        return [[c.token for c in a] for a in answers], status, first, second

    answers, status, first, second = on_two(go)
    assert answers[0] == answers[2] == generate(PROMPT, 10) != answers[1]
    assert (status.epoch, status.plan, status.model) == (2, second, "other")
    assert [(entry.plan, entry.committed["plan"]) for entry in status.beside] == [(first, first.to_dict())]
    assert set(status.sections) == {first.manifest_sha256, second.manifest_sha256}
    view = status.of_model(first.manifest_sha256)
    assert (view.plan, view.section.epoch, view.model) == (first, 1, "fake")


def test_without_keep_the_other_model_goes_as_ever(on_two):
    async def go(boards, holding, manager, other):
        first, second = make_plan(boards.manifest, (0, 6)), make_plan(other, (0, 4), epoch=2)
        await manager.take(first)
        await manager.take(second, 1)
        assert [one.plan for one in holding.held.served] == [second] and not (await manager.board.status()).beside
        await add(manager, make_plan(other, (0, 4), epoch=3, slots=1), [second.digest], 2)  # its own can't be kept
        assert [one.plan.epoch for one in holding.held.served] == [3]

    on_two(go)


def test_what_the_first_takes_is_not_offered_to_the_second(on_two):
    async def go(boards, holding, manager, other):
        first, second = make_plan(boards.manifest, (0, 6)), make_plan(other, (0, 4), epoch=2)
        await manager.take(first)
        prepared, committed = await add(manager, second, [first.digest])
        alone, _ = await add(manager, replace(second, epoch=3), [])
        return prepared, committed, alone, section_need(boards.manifest, first.settings, 0, 6).total

    prepared, committed, alone, taken = on_two(go, 150_000_000)
    assert prepared["error"] == (
        f"board b0 offers 1.07 GB now, of which fake takes {taken / 1e9:.2f} GB; layers 0-4 need 0.60 GB. Plan again."
    )
    assert committed["error"] == "board b0 has not prepared epoch 2" and alone["error"] is None


def test_an_answer_goes_on_where_it_is_while_another_model_comes_beside_it_and_goes_again(on_two):
    gate = threading.Event()

    async def go(boards, holding, manager, other):
        boards.gates["b0"] = gate
        first, second = make_plan(boards.manifest, (0, 6)), make_plan(other, (0, 4), epoch=2)
        await manager.take(first)
        stage = holding.stage
        async with Manager.of(boards) as asker:
            running = asyncio.create_task(ask(ClusterClient(first, [asker.board]), PROMPT))
            await until(lambda: stage.running)
            del boards.gates["b0"]
            prepared, committed = await add(manager, second, [first.digest], drain=True)
            assert prepared["beside"] and committed["error"] is None and not holding.draining
            refused = await unload(manager, 3, [first.digest], 2)
            assert await unload(manager, 3, [second.digest], 2) is None
            gate.set()
            tokens = [c.token for c in await running]
        return tokens, refused, holding.stage, [one.stage for one in holding.held.served], stage, holding.epoch

    tokens, refused, now, served, stage, epoch = on_two(go)
    assert tokens == generate(PROMPT, 10)
    assert refused.startswith("board b0 still has 1 running answer of fake.")
    assert now is None and served == [stage] and epoch == 2


def test_a_load_that_fails_at_the_commit_leaves_the_other_model_alone(on_two, monkeypatch):
    async def go(boards, holding, manager, other):
        first, second = make_plan(boards.manifest, (0, 6)), make_plan(other, (0, 4), epoch=2)
        await manager.take(first)
        monkeypatch.setattr(holding.room, "is_beside", lambda *_: False)
        boards.broken.add("b0")
        prepared, committed = await add(manager, second, [first.digest])
        assert prepared["beside"] is False and "SHA-256 differs" in committed["error"]
        status = await manager.board.status()
        assert status.plan is None and [entry.plan for entry in status.beside] == [first]
        return [c.token for c in await ask(ClusterClient(first, [manager.board]), PROMPT)]

    assert on_two(go) == generate(PROMPT, 10)


@pytest.mark.parametrize("said", [7, ["x"] * 65, [1], "d"])
def test_digests_that_are_none_are_refused(on_two, said):
    async def go(boards, holding, manager, other):
        first = make_plan(boards.manifest, (0, 6))
        await manager.take(first)
        prepared, _ = await add(manager, make_plan(other, (0, 4), epoch=2), said)
        refused = await unload(manager, 2, said, 1)
        assert holding.stage is not None
        return prepared["error"], refused

    for text in on_two(go):
        assert "expected a list of at most 64 digests of plans" in text


def test_a_board_tells_how_much_of_a_section_it_has_read(on_two):
    gate = threading.Event()

    async def go(boards, holding, manager, other):
        load = holding._load

        def slow(manifest, folder, start, end):
            for count in (8, 9):
                have_read(count)
            assert gate.wait(20)
            have_read(1 << 40)  # more than there is
            return load(manifest, folder, start, end)

        holding._load = slow
        plan = make_plan(boards.manifest, (0, 6))
        assert (await manager.board.status()).loading is None
        assert await manager.claim(None, 1) is None
        preparing = asyncio.create_task(manager.prepare(plan))
        await until(lambda: holding.loading.status is not None and holding.loading.status.read_bytes)
        during = (await manager.board.status()).loading
        gate.set()
        await preparing
        return during, (await manager.board.status()).loading, boards.manifest

    during, after, manifest = on_two(go)
    total = sum(shard.bytes for shard in manifest.shards)
    assert (during.model, during.epoch, during.start, during.end) == ("fake", 1, 0, 6) and after is None
    assert (during.read_bytes, during.total_bytes) == (17, total)
